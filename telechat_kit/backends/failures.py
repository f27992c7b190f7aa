"""What an error of a device means: too little memory, a device that is lost, or one operator that failed."""

import re

#: CANN's codes for too little memory: ACL_ERROR_BAD_ALLOC, ACL_ERROR_RT_MEMORY_ALLOCATION (acl/error_codes)
MEMORY_CODES = (200000, 207001)
#: CANN's codes after which a process cannot use the device: exception or time-out of an AI core, a vector core or an
#: AI CPU, a lost heartbeat, an internal error of the driver or of an AI CPU, a broken connection (acl/error_codes)
LOST_CODES = (507010, 507014, 507015, 507016, 507017, 507018, 507034, 507035, 507036, 507899, 507900, 507901)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` of torch or of CANN says that memory was too small."""
    said = ("out of memory", "can't allocate memory")  # the second one by torch of a CPU
    return any(words in str(error) for words in said) or bool(_codes(error) & set(MEMORY_CODES))


def is_lost(error: BaseException) -> bool:
    """Whether `error` of CANN says that this process can no longer use the device."""
    return bool(_codes(error) & set(LOST_CODES))


def first_line(error: BaseException) -> str:
    """The first line of the message, or the kind of error where it has none."""
    lines = str(error).splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _codes(error: BaseException) -> set[int]:
    """Six-digit codes that the message names as such, not any number of that length, as sizes have."""
    return {
        int(code) for code in re.findall(r"(?:code|ret|error|retcode)\D{0,12}(\d{6})\b", str(error), re.I)
    }

"""What an error of a device means: too little memory, a device that is lost, or one operator that failed."""

import re

#: CANN's codes for too little memory: ACL_ERROR_BAD_ALLOC, ACL_ERROR_RT_MEMORY_ALLOCATION (acl/error_codes)
MEMORY_CODES = (200000, 207001)
#: CANN's codes after which a process cannot use the device: exception or time-out of an AI core, a vector core or an
#: AI CPU, a lost heartbeat, an internal error of the driver or of an AI CPU, a broken connection (acl/error_codes)
LOST_CODES = (507010, 507014, 507015, 507016, 507017, 507018, 507034, 507035, 507036, 507899, 507900, 507901)
#: torch_npu's queue of operators says so when one of them failed behind its call. From then on it executes nothing in
#: this process, and says nothing either: going on would give what the memory happened to hold (NPUQueue.cpp, CAN_EXIT)
QUEUE_ENDED = "The process exits for this inner error"
#: CUDA's errors after which all further work of a process fails (cudaError_t: "leaves the process in an inconsistent state")
CUDA_LOST = (
    "an illegal memory access",
    "unspecified launch failure",
    "device-side assert triggered",
    "an illegal instruction",
    "misaligned address",
    "uncorrectable ECC error",
    "the launch timed out",
    "hardware stack error",
    "invalid program counter",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` of torch or of CANN says that memory was too small."""
    # the second by torch of a CPU, the third by torch_npu
    said = ("out of memory", "can't allocate memory", "Memory_Allocation_Failure")
    return any(words in str(error) for words in said) or bool(_codes(error) & set(MEMORY_CODES))


def is_lost(error: BaseException) -> bool:
    """Whether `error` of CANN, torch_npu or CUDA says that this process can no longer use the device."""
    text = str(error)
    cuda = "CUDA error" in text and any(words in text for words in CUDA_LOST)
    return bool(_codes(error) & set(LOST_CODES)) or QUEUE_ENDED in text or cuda


def failed_kernels(error: BaseException) -> set[str]:
    """The operators that failed, as far as an error of CANN names them: without "aclnn" and the version of their interface.

    Operators fail behind their call, so the one that was called when the error came is not among them.
    """
    text = str(error)
    names = re.findall(r"fault kernel_name=([A-Za-z0-9]+)", text) or re.findall(
        r"current working operator name is ([A-Za-z0-9]+)", text
    )
    return {re.sub(r"^aclnn|V\d+$", "", name) for name in names}


def first_line(error: BaseException) -> str:
    """The first line of the message, or the kind of error where it has none."""
    lines = str(error).splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _codes(error: BaseException) -> set[int]:
    """Six-digit codes that the message names as such, not any number of that length, as sizes have."""
    return {
        int(code) for code in re.findall(r"(?:code|ret|error|retcode)\D{0,12}(\d{6})\b", str(error), re.I)
    }

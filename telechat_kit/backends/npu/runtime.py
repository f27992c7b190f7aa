"""torch_npu at the kit's service: imported when a device is asked for, and explained when it cannot be."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from telechat_kit.backends.failures import first_line
from telechat_kit.backends.npu import torch_npu_guard as npu_import
from telechat_kit.backends.npu.chips import Chip, chip_of
from telechat_kit.errors import DeviceError
from telechat_kit.messages import Message, marked

_SOURCE = marked(
    "source /usr/local/Ascend/ascend-toolkit/set_env.sh, or from CANN 8.5 on /usr/local/Ascend/cann/set_env.sh, "
    "in the shell that starts the kit"
)


def torch_npu() -> Any:
    """The module torch_npu.

    Raises:
        DeviceError: it cannot be imported; with the import's own error and what to do about it.
    """
    try:
        return importlib.import_module("torch_npu")
    except ImportError as error:
        cause = npu_import.cause or error
        raise DeviceError(
            "torch_npu cannot be imported ({first_line}). {remedy}.",
            first_line=first_line(cause),
            remedy=_remedy(cause),
        ) from cause


def _remedy(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name == "torch_npu":
        return Message(
            "Install the torch_npu that belongs to torch {version}, or use device: cpu",
            version=torch.__version__,
        )
    if "undefined symbol" in text:
        return Message(
            "It was built for another torch than {version}: install a pair that belongs together",
            version=torch.__version__,
        )
    if "cannot open shared object file" in text:
        return Message(
            "The CANN toolkit is not installed or not on the library path: {source}", source=_SOURCE
        )
    return Message(
        "Check that torch {version}, torch_npu and CANN belong together, and {source}",
        version=torch.__version__,
        source=_SOURCE,
    )


def device_count() -> int:
    """Number of NPUs that this process may use."""
    return int(torch_npu().npu.device_count())


def open_device(index: int) -> None:
    """Make the NPU `index` the current one and set it up for ready-built operators and blocked weights.

    Raises:
        DeviceError: the chip is unknown, or the device cannot be opened.
    """
    npu = torch_npu().npu
    try:
        npu.set_device(index)
        # compiled while running, each new shape would cost seconds on a 310P
        npu.set_compile_mode(jit_compile=False)
        npu.config.allow_internal_format = True
    except RuntimeError as error:
        raise DeviceError(
            "the NPU {index} cannot be opened ({first_line}). See with npu-smi info whether it is healthy "
            "and free, and whether the kernels package of its chip is installed.",
            index=index,
            first_line=first_line(error),
        ) from error
    current_chip()


@cache
def current_chip() -> Chip:
    """The row of the capability table for the current device."""
    npu = torch_npu().npu
    return chip_of(int(npu.get_soc_version()), npu.get_device_name())


@cache
def has(name: str) -> bool:
    """Whether the chip has the operator `name`, and this torch_npu too."""
    return name in current_chip().operators and hasattr(torch_npu(), name)


def operator(name: str) -> Callable[..., Any]:
    """The operator `name` of torch_npu."""
    found: Callable[..., Any] = getattr(torch_npu(), name)
    return found

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

_SOURCE = (
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
        raise DeviceError(f"torch_npu cannot be imported ({first_line(cause)}). {_remedy(cause)}.") from cause


def _remedy(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name == "torch_npu":
        return f"Install the torch_npu that belongs to torch {torch.__version__}, or use device: cpu"
    if "undefined symbol" in text:
        return (
            f"It was built for another torch than {torch.__version__}: install a pair that belongs together"
        )
    if "cannot open shared object file" in text:
        return f"The CANN toolkit is not installed or not on the library path: {_SOURCE}"
    return f"Check that torch {torch.__version__}, torch_npu and CANN belong together, and {_SOURCE}"


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
            f"the NPU {index} cannot be opened ({first_line(error)}). See with npu-smi info whether it is healthy "
            "and free, and whether the kernels package of its chip is installed."
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

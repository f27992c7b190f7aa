"""The NPU backend: torch_npu operators where chip and release have them, plain torch where they do not.

`chips` says what each chip takes, `runtime` finds torch_npu, `operations` holds the ways of each operation, best first, and
can set one aside; `operators` tells a record which way was used.
"""

import torch

from telechat_kit.backends import plain
from telechat_kit.backends.data_sheets import data_sheet
from telechat_kit.backends.npu.attention import attention, rotate
from telechat_kit.backends.npu.forms import operations
from telechat_kit.backends.npu.graphs import capture
from telechat_kit.backends.npu.linears import (
    blocked_float_weight,
    dynamic_int8_linear,
    int8_linear,
    prepare_dynamic_linear,
    prepare_float_linear,
    prepare_linear,
    quantize,
    restore_float_weight,
    restore_linear,
    sharded_int8_linear,
)
from telechat_kit.backends.npu.norms import add_rms_norm, rms_norm, swiglu
from telechat_kit.backends.npu.runtime import current_chip, device_count, open_device, torch_npu
from telechat_kit.backends.plain import (
    accumulate,
    float_linear,
    quantize_per_token,
    sharded_dynamic_linear,
    silu_product,
    turn,
)
from telechat_kit.errors import DeviceError

__all__ = [
    "accumulate",
    "add_rms_norm",
    "attention",
    "blocked_float_weight",
    "capture",
    "choose_dtype",
    "collectives",
    "device_count",
    "device_name",
    "dynamic_int8_linear",
    "float_linear",
    "free_memory_bytes",
    "int8_linear",
    "joins_linears",
    "name",
    "open_device",
    "operations",
    "operators",
    "peak_memory_bytes",
    "prepare_dynamic_linear",
    "prepare_float_linear",
    "prepare_linear",
    "prepare_sharded_linear",
    "quantize",
    "quantize_per_token",
    "read_bandwidth",
    "restore_dynamic_linear",
    "restore_float_weight",
    "restore_linear",
    "rms_norm",
    "rotate",
    "sharded_dynamic_linear",
    "sharded_int8_linear",
    "silu_product",
    "swiglu",
    "synchronize",
    "turn",
]

name = "npu"
#: The library through which several chips add up their parts of a model
collectives = "hccl"
#: One token at batch 1 is bound by starting operators, not by what they do
joins_linears = True
#: Which operator did each operation in this process so far, and which was set aside
operators = operations.operators
#: A part of a model is multiplied in the same form as the whole
prepare_sharded_linear = prepare_linear
restore_dynamic_linear = restore_linear


def choose_dtype(asked: torch.dtype | None, stored: torch.dtype | None) -> torch.dtype:
    """The dtype of a model's float tensors: `asked`, else the checkpoint's own if it is a half precision here.

    Raises:
        DeviceError: the chip cannot calculate in the dtype asked for.
    """
    chip = current_chip()
    if asked is None:
        return stored if stored in chip.prompt_attention.dtypes else torch.float16
    if asked not in chip.dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in chip.dtypes)
        raise DeviceError(
            "{asked} asked for, but the {family} calculates in {known} only. Use float16.",
            asked=str(asked).removeprefix("torch."),
            family=chip.family,
            known=known,
        )
    return asked


def synchronize() -> None:
    """Wait until the device has done what was asked of it."""
    torch_npu().npu.synchronize()


def peak_memory_bytes() -> int:
    """Largest memory that tensors of this process held on the device."""
    return int(torch_npu().npu.max_memory_allocated())


def free_memory_bytes() -> int:
    """Memory of the device that no process holds, and what this process has set aside and does not use."""
    npu = torch_npu().npu
    return int(npu.mem_get_info()[0] + npu.memory_reserved() - npu.memory_allocated())


def device_name() -> str:
    """Name of the chip, such as "Ascend310P3"."""
    return str(torch_npu().npu.get_device_name())


def read_bandwidth() -> tuple[float, str]:
    """Bytes per second and where the figure comes from: the table of data sheets, or a measured pass over 512 MB."""
    if (sheet := data_sheet(device_name())) is not None:
        return sheet.bandwidth, sheet.basis
    return plain.measured_bandwidth(torch.device("npu"), synchronize), "measured"

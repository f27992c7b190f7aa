"""The NPU backend: torch_npu operators where chip and release have them, plain torch where they do not.

`chips` says what each chip takes, `runtime` finds torch_npu; `operators` tells a record which way was used.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from telechat_kit.backends import plain
from telechat_kit.backends.data_sheets import data_sheet
from telechat_kit.backends.npu.calls import call, operators, slower
from telechat_kit.backends.npu.graphs import capture
from telechat_kit.backends.npu.linears import (
    dynamic_int8_linear,
    int8_linear,
    prepare_float_linear,
    prepare_linear,
    quantize,
    restore_linear,
    sharded_int8_linear,
)
from telechat_kit.backends.npu.runtime import current_chip, device_count, has, open_device, torch_npu
from telechat_kit.backends.plain import (
    accumulate,
    float_linear,
    quantize_per_token,
    sharded_dynamic_linear,
    silu_product,
)
from telechat_kit.errors import DeviceError

__all__ = [
    "accumulate",
    "add_rms_norm",
    "attention",
    "capture",
    "choose_dtype",
    "collectives",
    "device_count",
    "device_name",
    "dynamic_int8_linear",
    "float_linear",
    "free_memory_bytes",
    "int8_linear",
    "name",
    "open_device",
    "operators",
    "peak_memory_bytes",
    "prepare_float_linear",
    "prepare_linear",
    "prepare_sharded_linear",
    "quantize",
    "quantize_per_token",
    "read_bandwidth",
    "restore_linear",
    "rms_norm",
    "rotate",
    "sharded_dynamic_linear",
    "sharded_int8_linear",
    "silu_product",
    "synchronize",
]

name = "npu"
#: The library through which several chips add up their parts of a model
collectives = "hccl"
#: A part of a model is multiplied in the same form as the whole
prepare_sharded_linear = prepare_linear

#: Size of the fixed causal mask that sparse_mode 2 of the attention operators takes
TRIANGLE = 2048
_ALL_TOKENS = 2**31 - 1


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of the last axis of `x [..., H]`; the operator needs 32 bytes there and one dtype for both."""
    if has("npu_rms_norm") and _norm_fits(x, weight):
        return call("rms_norm", "npu_rms_norm", x, weight, epsilon)[0]
    slower("rms_norm")
    return plain.rms_norm(x, weight, epsilon)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The RMS norm of `x + residual`, both `[..., H]`, and that sum: in one operator where the chip has it."""
    if has("npu_add_rms_norm") and _norm_fits(x, weight) and x.dtype == residual.dtype:
        normed, _, total = call("add_rms_norm", "npu_add_rms_norm", x, residual, weight, epsilon)
        return normed, total
    slower("add_rms_norm")
    total = x + residual
    return rms_norm(total, weight, epsilon), total


def _norm_fits(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == weight.dtype and x.shape[-1] * x.element_size() >= 32


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x [B, heads, T, d]` with tables `[T, d]`, halves split as in GPT-NeoX."""
    if has("npu_rotary_mul") and current_chip().allows_rotary(x, cos):
        return call("rotate", "npu_rotary_mul", x, cos[None, None], sin[None, None])
    slower("rotate")
    return plain.rotate(x, cos, sin)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `query [B, heads, T, d]` over `key` and `value [B, kv_heads, S, d]`, scaled by 1/sqrt(d).

    `mask` as in `plain.attention`. With one, the slower way is taken: what the operators give for a row that may
    see nothing is not documented, and such rows (padding) must stay finite.
    """
    chip = current_chip()
    decode = query.shape[2] == 1
    operator = "npu_incre_flash_attention" if decode else "npu_prompt_flash_attention"
    limits = chip.decode_attention if decode else chip.prompt_attention
    if mask is not None or not has(operator) or not limits.allow(query, key):
        slower("attention")
        return plain.attention_in_products(query, key, value, mask)
    length, common = key.shape[2], _attention_options(query)
    if decode:
        lengths = [length] * len(query)
        groups = {} if key.shape[1] == query.shape[1] else {"num_key_value_heads": key.shape[1]}
        return call("attention", operator, query, key, value, actual_seq_lengths=lengths, **groups, **common)
    # the 310P's operator for prompts knows no groups
    key, value = (plain.expanded(shared, query.shape[1]) for shared in (key, value))
    triangle = chip.causal_mask == "triangle"
    size = TRIANGLE if triangle else length
    options = {"atten_mask": _hidden(size, query.device), "pre_tokens": _ALL_TOKENS, "next_tokens": 0}
    options |= {"sparse_mode": 2} if triangle else {}
    return call("attention", operator, query, key, value, **options, **common)


def _attention_options(query: Tensor) -> dict[str, Any]:
    return {
        "num_heads": query.shape[1],
        "scale_value": query.shape[-1] ** -0.5,
        "input_layout": "BNSD",
    }


@lru_cache(maxsize=4)
def _hidden(size: int, device: torch.device) -> Tensor:
    """Causal mask `[size, size]` of the attention operators: True where a key must not be seen."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)


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
            f"{str(asked).removeprefix('torch.')} asked for, but the {chip.family} calculates in {known} only. "
            "Use float16."
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

"""The CUDA backend: int8 products on the tensor cores through torch's own operator, exact for any shape."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from telechat_kit.backends import plain
from telechat_kit.backends.data_sheets import data_sheet
from telechat_kit.backends.forms import PLAIN, Forms, Way
from telechat_kit.backends.plain import (
    AddUp,
    add_rms_norm,
    blocked_float_weight,
    capture,
    float_linear,
    prepare_dynamic_linear,
    quantize,
    quantize_per_token,
    restore_dynamic_linear,
    restore_float_weight,
    rms_norm,
    rotate,
    silu_product,
    swiglu,
    turn,
)

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

name = "cuda"
#: The library through which several processes add up their parts of a model
collectives = "nccl"
#: The operations that have more than one way here
operations = Forms()
#: Starting an operator costs little here: linears of one input are multiplied one after the other
joins_linears = False

#: torch._int_mm on CUDA refuses 16 rows and fewer, and sides of the weight that are no multiples of 8
LEAST_ROWS, MULTIPLE = 17, 8


def padded_size(size: int, least: int = 0) -> int:
    """`size`, or more, so that it is at least `least` and a multiple of 8."""
    return -(-max(size, least) // MULTIPLE) * MULTIPLE


def padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """`matrix` with zeros below and to the right up to `[rows, columns]`; itself if it is that large."""
    below, right = rows - matrix.shape[0], columns - matrix.shape[1]
    return functional.pad(matrix, (0, right, 0, below)) if below or right else matrix


def prepare_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the int8 `weight` padded by zeros to sides that are multiples of 8, once and not per call."""
    weight = tensors["weight"]
    return {**tensors, "weight": padded(weight, *map(padded_size, weight.shape))}


def restore_linear(tensors: Mapping[str, Tensor], out: int, size: int) -> dict[str, Tensor]:
    """The tensors with the weight `[out, size]` without its padding."""
    return {**tensors, "weight": tensors["weight"][:out, :size].contiguous()}


def prepare_float_linear(linear: nn.Linear) -> None:
    """Float weights are used as they are."""


def accumulate(x_q: Tensor, weight: Tensor) -> Tensor:
    """`x_q [M, K]` int8 times `weight [N, K]` int8, transposed: the exact int32 products `[M, N]`."""
    product: Tensor = _products(x_q, weight)
    return product


def _int_mm(x_q: Tensor, weight: Tensor) -> Tensor:
    """`accumulate` on the tensor cores. Zeros fill up what the operator's shape rules ask for, up to 24 rows for a
    single token: its time is that of reading the weight, which is read once. A GPU without int8 products refuses.
    """
    (rows, inner), outputs = x_q.shape, weight.shape[0]
    inner = padded_size(inner)
    x_q = padded(x_q, padded_size(rows, LEAST_ROWS), inner)
    product = torch._int_mm(x_q, padded(weight, padded_size(outputs), inner).t())
    return product[:rows, :outputs]


_products = operations.form("int8_linear", Way("torch._int_mm", _int_mm), Way(PLAIN, plain.accumulate))
_prompt_attention, _decode_attention = (
    operations.form(
        name,
        Way("scaled_dot_product_attention", plain.attention),
        Way(PLAIN, plain.attention_in_products),
    )
    for name in ("prompt_attention", "decode_attention")
)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `query [B, heads, T, d]` over `key` and `value [B, kv_heads, S, d]`, as in `plain`."""
    form = _decode_attention if query.shape[2] == 1 else _prompt_attention
    mixed: Tensor = form(query, key, value, mask)
    return mixed


def int8_linear(
    x: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    input_offset: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
) -> Tensor:
    """W8A8 linear of `x [..., K]` with the tensors of `prepare_linear`: `[..., N]` in the dtype of `x`."""
    x_q = quantize(x, input_scale, input_offset).reshape(-1, x.shape[-1])
    product = accumulate(padded(x_q, x_q.shape[0], weight.shape[1]), weight)[:, : len(quant_bias)]
    scaled = (product + quant_bias).float().mul_(deq_scale)
    return scaled.to(x.dtype).view(*x.shape[:-1], len(quant_bias))


def dynamic_int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """W8A8 linear of `x [..., K]` by `weight [N, K]` int8, every token with a scale of its own, to `[..., N]`."""
    return plain.dynamic_product(x, weight, weight_scale, bias, accumulate)


def prepare_sharded_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are: `accumulate` pads what has to be padded."""
    return dict(tensors)


def sharded_int8_linear(x: Tensor, add_up: AddUp, **tensors: Tensor) -> Tensor:
    """The part of a W8A8 linear whose inputs are split over GPUs, added up exactly."""
    return plain.sharded_int8_linear(x, add_up, **tensors, accumulate=accumulate)


def sharded_dynamic_linear(
    x: Tensor, add_up: AddUp, largest: AddUp, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """The same with dynamic activations."""
    return plain.sharded_dynamic_linear(x, add_up, largest, weight, weight_scale, bias, accumulate)


def operators() -> dict[str, str]:
    """Which operator does each verb that has more than one way."""
    ways = {"attention": "scaled_dot_product_attention", "int8_linear": "torch._int_mm"}
    return {**ways, **operations.avoided()}


def choose_dtype(asked: torch.dtype | None, stored: torch.dtype | None) -> torch.dtype:
    """The dtype of a model's float tensors: `asked`, else the checkpoint's own."""
    return asked or stored or torch.float16


def device_count() -> int:
    """Number of GPUs that this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def open_device(index: int) -> None:
    """Make the GPU `index` the current one."""
    torch.cuda.set_device(index)


def synchronize() -> None:
    """Wait until the device has done what was asked of it."""
    torch.cuda.synchronize()


def peak_memory_bytes() -> int:
    """Largest memory that tensors of this process held on the device."""
    return torch.cuda.max_memory_allocated()


def free_memory_bytes() -> int:
    """Memory of the device that no process holds, and what this process has set aside and does not use."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def device_name() -> str:
    """Name of the GPU."""
    return torch.cuda.get_device_name()


def read_bandwidth() -> tuple[float, str]:
    """Bytes per second and where the figure comes from: the data sheet of a known card, or a measured pass."""
    if (sheet := data_sheet(device_name())) is not None:
        return sheet.bandwidth, sheet.basis
    return plain.measured_bandwidth(torch.device("cuda"), synchronize), "measured"

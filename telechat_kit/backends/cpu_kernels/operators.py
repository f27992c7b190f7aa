"""The kernels as operators on tensors, for the network's modules: bit for bit what a whole step of the engine does.

All take float32 on the CPU and need the library. Weights of int8 linears are in panels.
"""

import ctypes

import torch
from torch import Tensor

from telechat_kit.backends.cpu_kernels.library import AttentionShape, Linear, Turn, library
from telechat_kit.backends.cpu_kernels.panels import LANES
from telechat_kit.backends.hadamard import Rotation


def kernels() -> ctypes.CDLL:
    """The library, which the caller knows to be there."""
    found = library()
    if found is None:
        raise RuntimeError("the compiled kernels are not there")
    return found


def linear_record(
    weight: Tensor,
    input_scale: Tensor,
    input_offset: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
    inputs: int,
) -> Linear:
    """The record of an int8 linear in panels. It holds addresses: the tensors must outlive it."""
    addresses = (weight.data_ptr(), quant_bias.data_ptr(), deq_scale.data_ptr())
    return Linear(*addresses, None, input_scale.item(), input_offset.item(), inputs, len(deq_scale))


def dynamic_record(
    weight: Tensor, weight_scale: Tensor, bias: Tensor | None, shift: Tensor, inputs: int
) -> Linear:
    """The record of an int8 linear in panels that scales each row. It holds addresses: the tensors must outlive it."""
    address = None if bias is None else bias.data_ptr()
    pointers = (weight.data_ptr(), address, weight_scale.data_ptr(), shift.data_ptr())
    return Linear(*pointers, 1.0, 0.0, inputs, len(weight_scale))


def float_record(weight: Tensor, bias: Tensor | None) -> Linear:
    """The record of a linear of float32 or bfloat16, `bias` float32. It holds addresses: the tensors must outlive it."""
    out, size = weight.shape
    address, half = None if bias is None else bias.data_ptr(), weight.dtype == torch.bfloat16
    return Linear(weight=weight.data_ptr(), bias=address, inputs=size, outputs=out, bfloat16=half)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    input_offset: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
) -> Tensor:
    """W8A8 linear of `x [..., in]` in any float dtype: equal to the torch path bit for bit."""
    record = linear_record(weight, input_scale, input_offset, quant_bias, deq_scale, x.shape[-1])
    return _linear(x.float().contiguous(), record).to(x.dtype)


def dynamic_int8_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, shift: Tensor
) -> Tensor:
    """W8A8 linear that scales each row of `x [..., in]`: equal to the torch path bit for bit."""
    record = dynamic_record(weight, weight_scale, bias, shift, x.shape[-1])
    return _linear(x.float().contiguous(), record).to(x.dtype)


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x [..., in] . weight^T + bias` of float32; each output summed in an order that only `in` decides.

    A weight of bfloat16 takes `x` rounded to bfloat16; the order of its sums depends on the number of rows too.
    """
    return _linear(x.contiguous(), float_record(weight, bias))


def _linear(x: Tensor, record: Linear) -> Tensor:
    rows = x.numel() // x.shape[-1]
    out = torch.empty(*x.shape[:-1], record.outputs)
    scratch, scales = torch.empty(rows * (record.inputs + 3), dtype=torch.uint8), torch.empty(rows)
    halves = torch.empty((rows + LANES) * record.inputs if record.bfloat16 else 0, dtype=torch.bfloat16)
    addresses = x.data_ptr(), rows, scratch.data_ptr(), scales.data_ptr(), halves.data_ptr(), out.data_ptr()
    kernels().linear_rows(record, *addresses, torch.get_num_threads())
    return out


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of the last axis."""
    x, out, size = x.contiguous(), torch.empty(x.shape), x.shape[-1]
    kernels().rms_norm_rows(
        x.data_ptr(),
        weight.data_ptr(),
        x.numel() // size,
        size,
        epsilon,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    gate, up, out = gate.contiguous(), up.contiguous(), torch.empty(gate.shape)
    kernels().silu_product(
        gate.data_ptr(), up.data_ptr(), gate.numel(), out.data_ptr(), torch.get_num_threads()
    )
    return out


def turn_record(rotation: Rotation) -> Turn:
    """The record of a rotation without signs. It holds the address of its base, which the rotation keeps."""
    base = rotation.base_like(torch.empty(0))
    return Turn(None if base is None else base.data_ptr(), rotation.size >> rotation.power, rotation.power)


def turn(x: Tensor, rotation: Rotation) -> Tensor:
    """`x [..., n]` turned by a rotation without signs."""
    x, out = x.contiguous(), torch.empty(x.shape)
    rows, threads = x.numel() // rotation.size, torch.get_num_threads()
    kernels().turn_rows(turn_record(rotation), x.data_ptr(), rows, out.data_ptr(), threads)
    return out


def can_attend(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether `attention` covers the case: float32, no mask, one query or as many as positions, whole vectors."""
    whole = query.shape[3] % LANES == 0 and query.shape[2] in (1, key.shape[2]) and query.numel() > 0
    return mask is None and query.dtype == torch.float32 and whole


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of `query [B, heads, T, d]` over `key`, `value [B, kv_heads, S, d]`; T is 1 or S."""
    batch, heads, queries, dim = query.shape
    query, key = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
    value = value if value.stride()[2:] == (dim, 1) else value.contiguous()
    strides = ((ctypes.c_int64 * 3)(*x.stride()[:3]) for x in (query, key, value))
    shape = AttentionShape(batch, heads, key.shape[1], queries, key.shape[2], dim, *strides)
    threads = torch.get_num_threads()
    scratch = torch.empty(threads * kernels().attention_scratch(shape))
    out = torch.empty(batch, queries, heads, dim)
    addresses = (x.data_ptr() for x in (query, key, value, scratch, out))
    kernels().attention(shape, *addresses, threads)
    return out.transpose(1, 2)

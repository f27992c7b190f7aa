"""The operations of a backend in plain torch: right on every device, replaced where a device has a faster exact form."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from telechat_kit.backends.hadamard import Rotation
from telechat_kit.errors import DeviceError

#: Products of int8 values are at most 2^14: so many of them add up exactly in the 24 bits of a float32 mantissa
EXACT_TERMS = 2**24 // 2**14

#: Joins what several devices hold of one tensor: gives each of them the sum, or the largest, of all parts
AddUp = Callable[[Tensor], Tensor]


def capture(step: Callable[[], object]) -> Callable[[], None]:  # noqa: ARG001  (what a backend is given)
    """The graph of a device for which the kit has none.

    Raises:
        DeviceError: always.
    """
    raise DeviceError('graph "capture" is for an NPU. Use graph: none.')


def same(part: Tensor) -> Tensor:
    """The join of a model that lies on one device: the part is all there is."""
    return part


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of the last axis, `x [..., H]`: normalized in float32, cast to the dtype of `x`, then weighted."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The RMS norm of `x + residual`, and that sum."""
    total = x + residual
    return rms_norm(total, weight, epsilon), total


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, the heart of SwiGLU."""
    return functional.silu(gate) * up


def turn(x: Tensor, rotation: Rotation) -> Tensor:
    """`x [..., n]` turned by `rotation`."""
    return rotation.rows(x)


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x . weight^T + bias` of a linear that a W8A8 model keeps in float."""
    return functional.linear(x, weight, bias)


def swiglu(both: Tensor) -> Tensor:
    """`silu(gate) * up` of `[..., 2 F]`, the gate in front: `[..., F]`."""
    return silu_product(*both.chunk(2, dim=-1))


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of `query [B, heads, T, d]` and `key [B, kv_heads, T, d]` with tables `[T, d]`."""
    return rotate_one(query, cos, sin), rotate_one(key, cos, sin)


def rotate_one(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x [B, heads, T, d]` with tables `[T, d]`, halves split as in GPT-NeoX.

    The product is taken in the wider of both dtypes: bfloat16 would lose digits of the tables.
    """
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `query [B, heads, T, d]` over `key` and `value [B, kv_heads, S, d]`, scaled by 1/sqrt(d).

    Neighboring heads of the query share a key and value head. `mask` is None or additive, `[B, 1, T, S]`. Without one the T queries are the last T of the S positions;
    T is then 1 or S.
    """
    attend = partial(
        functional.scaled_dot_product_attention, query, key, value, enable_gqa=query.shape[1] != key.shape[1]
    )
    if mask is None and query.shape[2] > 1:  # a branch: torch.compile may have a symbol for the shape
        return attend(is_causal=True)
    return attend(attn_mask=mask)


def expanded(shared: Tensor, heads: int) -> Tensor:
    """Keys or values `[B, kv_heads, S, d]` with one head for each of `heads` of the query: copies, where some share one."""
    return shared if shared.shape[1] == heads else shared.repeat_interleave(heads // shared.shape[1], dim=1)


def attention_in_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """`attention` without torch's fused operator, which not every device has; softmax in float32."""
    shape, length = query.shape, query.shape[2]
    # the queries of a group are rows of one product
    rows = (query * shape[-1] ** -0.5).reshape(shape[0], key.shape[1], -1, shape[-1])
    scores = (rows @ key.transpose(-1, -2)).float().view(*shape[:3], -1)
    if mask is None and length > 1:
        hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min)
    if mask is not None:
        # the lowest value of the mask's dtype may not be low enough beside float32 scores
        scores = scores.masked_fill(mask < 0, torch.finfo(torch.float32).min)
    shares = scores.softmax(-1).to(value.dtype).view(*rows.shape[:3], -1)
    return (shares @ value).view(shape)


def quantize(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`clamp(round(x / scale) + offset, -128, 127)` as int8; `scale`, `offset` of one element, half to even."""
    return x.float().div(scale).round_().add_(offset).clamp_(-128, 127).to(torch.int8)


def quantize_per_token(x: Tensor, largest: AddUp = same) -> tuple[Tensor, Tensor]:
    """Int8 form `[..., K]` of `x [..., K]` and the float32 scale `[..., 1]` of each token: `max|x| / 127`, symmetric.

    `largest` joins the maxima where other devices hold other columns of the same tokens.

    A token of zeros has scale 0 and zeros. The scale of a token that is not finite is not finite either, so that
    nothing computed from it looks like a result.
    """
    wide = x.float()
    scale = largest(wide.abs().amax(dim=-1, keepdim=True)) / 127
    divisor = torch.where(scale > 0, scale, 1)
    return wide.div(divisor).round_().clamp_(-127, 127).to(torch.int8), scale


def dynamic_product(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    accumulate: Callable[[Tensor, Tensor], Tensor],
    largest: AddUp = same,
) -> Tensor:
    """W8A8 linear `[..., N]` of `x [..., K]`, quantized token by token, with a device's exact product `accumulate`."""
    x_q, x_scale = quantize_per_token(x.reshape(-1, weight.shape[1]), largest)
    y = accumulate(x_q, weight).float().mul_(x_scale).mul_(weight_scale)
    if bias is not None:
        y.add_(bias)
    return y.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def accumulate(x_q: Tensor, weight: Tensor) -> Tensor:
    """`x_q [M, K]` int8 times `weight [N, K]` int8, transposed: the exact int32 products `[M, N]`.

    In float32, so many terms at a time as float32 adds exactly: for devices without an int8 product.
    """
    parts = zip(x_q.split(EXACT_TERMS, dim=1), weight.split(EXACT_TERMS, dim=1), strict=True)
    return sum((x.float() @ w.float().t()).to(torch.int32) for x, w in parts)


def scaled_product(
    x_q: Tensor,
    weight: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
    dtype: torch.dtype,
    accumulate: Callable[[Tensor, Tensor], Tensor] = accumulate,
) -> Tensor:
    """`(x_q . weight^T + quant_bias) * deq_scale` of `x_q [..., K]` and `weight [N, K]`: `[..., N]` in `dtype`.

    `accumulate` is a device's exact product.
    """
    rows = accumulate(x_q.reshape(-1, weight.shape[1]), weight)
    scaled = rows.add_(quant_bias).float().mul_(deq_scale)
    return scaled.to(dtype).view(*x_q.shape[:-1], weight.shape[0])


def sharded_int8_linear(
    x: Tensor,
    add_up: AddUp,
    weight: Tensor,
    input_scale: Tensor,
    input_offset: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
    accumulate: Callable[[Tensor, Tensor], Tensor] = accumulate,
) -> Tensor:
    """W8A8 linear of the columns `x [..., K]` that this device holds: int32 products are added up, then scaled.

    `quant_bias` is this device's share. The result is that of one device, bit for bit.
    """
    x_q = quantize(x, input_scale, input_offset).reshape(-1, x.shape[-1])
    rows = add_up(accumulate(x_q, weight).add_(quant_bias))
    return rows.float().mul_(deq_scale).to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def sharded_dynamic_linear(
    x: Tensor,
    add_up: AddUp,
    largest: AddUp,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    accumulate: Callable[[Tensor, Tensor], Tensor] = accumulate,
) -> Tensor:
    """`dynamic_product` of the columns that this device holds, with scales over the columns of all devices."""

    def joined(x_q: Tensor, weight: Tensor) -> Tensor:
        return add_up(accumulate(x_q, weight))

    return dynamic_product(x, weight, weight_scale, bias, joined, largest)


def prepare_dynamic_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a linear with dynamic activations as they are, for a device that reads no other form."""
    return dict(tensors)


def restore_dynamic_linear(tensors: Mapping[str, Tensor], out: int, size: int) -> dict[str, Tensor]:  # noqa: ARG001
    """What `prepare_dynamic_linear` was given."""
    return dict(tensors)


def blocked_float_weight(weight: Tensor) -> Tensor | None:  # noqa: ARG001  (what a backend is given)
    """None: the device multiplies with float weights as they are."""
    return None


def restore_float_weight(weight: Tensor) -> Tensor:
    """The float weight that `blocked_float_weight` was given: `weight`, where the device reads no other form."""
    return weight


def measured_bandwidth(device: torch.device, synchronize: Callable[[], None]) -> float:
    """Bytes that `device` reads per second: the best of five passes over 512 MB."""
    data = torch.ones(1 << 26, dtype=torch.int64, device=device)
    data.sum()
    seconds = []
    for _ in range(5):
        synchronize()
        start = time.perf_counter()
        data.sum()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)

"""The operations of a backend in plain torch: right on every device, replaced where a device has a faster exact form."""

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of the last axis, `x [..., H]`: normalized in float32, cast to the dtype of `x`, then weighted."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, the heart of SwiGLU."""
    return functional.silu(gate) * up


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x . weight^T + bias` of a linear that a W8A8 model keeps in float."""
    return functional.linear(x, weight, bias)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x [B, heads, T, d]` with tables `[T, d]`, halves split as in GPT-NeoX.

    The product is taken in the wider of both dtypes: bfloat16 would lose digits of the tables.
    """
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `query [B, heads, T, d]` over `key` and `value [B, heads, S, d]`, scaled by 1/sqrt(d).

    `mask` is None or additive, `[B, 1, T, S]`. Without one the T queries are the last T of the S positions;
    T is then 1 or S.
    """
    causal = mask is None and query.shape[2] > 1
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)


def quantize(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`clamp(round(x / scale) + offset, -128, 127)` as int8; `scale`, `offset` of one element, half to even."""
    return x.float().div(scale).round_().add_(offset).clamp_(-128, 127).to(torch.int8)

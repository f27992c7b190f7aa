"""Int8 weights, the tensors of a W8A8 linear as on disk, and the plain integer linears that judge backends.

A static activation's scale and offset come from `observers`; fast products are the backends' business.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from telechat_kit.errors import CheckpointError
from telechat_kit.model.int8_linears import decode_scale, encode_scale, product_scale, quantized_bias
from telechat_kit.quantization.int8.observers import EPS

#: Largest bias in units of deq_scale: leaves int32 room for the products and offsets of 32768 inputs.
BIAS_LIMIT = 2**30


def weight_scale(weight: Tensor) -> Tensor:
    """Symmetric scale of each output channel: `weight [out, in]` -> `[out, 1]`, in the weight's dtype.

    The largest absolute value of a row lands on 127 (W8A8 of msModelSlim, mm_tensor=False).

    Raises:
        CheckpointError: the weight holds NaN or infinity.
    """
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=EPS)
    if not torch.isfinite(scale).all():
        raise CheckpointError(
            "a weight to be quantized holds NaN or infinite values. Check the float checkpoint's files."
        )
    return scale


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 form of `weight [out, in]`: values `[out, in]` in -127..127, scale `[out, 1]` in its dtype."""
    scale = weight_scale(weight)
    return _to_int8(weight, scale), scale


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """`weight [out, in]` rounded to its int8 grid, still in its dtype, as calibration multiplies with it.

    As in msModelSlim the lower bound is -128 here and -127 in `quantize_weight`; 16-bit dtypes can tell.
    """
    scale = weight_scale(weight)
    return torch.round(weight / scale).clamp(-128, 127) * scale


def pack_linear(
    weight: Tensor,
    bias: Tensor | None,
    input_scale: Tensor,
    input_offset: Tensor,
    rounded: Tensor | None = None,
) -> dict[str, Tensor]:
    """Tensors of a W8A8 linear, named as on disk, from its float weight and the range of its input.

    Args:
        weight: `[out, in]`, already smoothed, in the model's dtype.
        bias: `[out]` or None.
        input_scale: `[1]`, from an observer.
        input_offset: `[1]`, an integer stored as float.
        rounded: int8 `[out, in]` on the grid of `weight_scale(weight)`, if not to the nearest.

    Returns:
        `weight` int8 `[out, in]`; `weight_scale`, `weight_offset` `[out, 1]`; `input_scale`, `input_offset`
        `[1]`; `quant_bias` int32 `[out]`; `deq_scale` `[out]`, an int64 bit pattern, float32 for a bfloat16
        weight; `bias` as given. The arithmetic is that of msModelSlim's saver.
    """
    scale = weight_scale(weight)
    if bias is not None:
        scale = torch.maximum(scale, _scale_for_bias(bias, input_scale).to(scale.dtype))
    quantized = _to_int8(weight, scale) if rounded is None else rounded
    deq_scale = product_scale(input_scale, scale)
    packed = {
        "weight": quantized,
        "weight_scale": scale,
        "weight_offset": torch.zeros_like(scale),
        "input_scale": input_scale,
        "input_offset": input_offset,
        "quant_bias": quantized_bias(quantized, bias, deq_scale, input_offset),
        "deq_scale": deq_scale if weight.dtype == torch.bfloat16 else encode_scale(deq_scale),
    }
    return packed if bias is None else {**packed, "bias": bias}


def pack_dynamic_linear(
    weight: Tensor, bias: Tensor | None, rounded: Tensor | None = None
) -> dict[str, Tensor]:
    """Tensors of a W8A8 linear with dynamic activations, named as on disk: msModelSlim's W8A8_DYNAMIC.

    Args:
        weight: `[out, in]`, already smoothed.
        bias: `[out]` or None.
        rounded: int8 `[out, in]` on the grid of `weight_scale(weight)`, if not to the nearest.

    Returns:
        `weight` int8 `[out, in]`; `weight_scale`, `weight_offset` `[out, 1]`; `bias` as given. Scales of the input
        are found while the model runs.
    """
    quantized, scale = quantize_weight(weight)
    quantized = quantized if rounded is None else rounded
    packed = {"weight": quantized, "weight_scale": scale, "weight_offset": torch.zeros_like(scale)}
    return packed if bias is None else {**packed, "bias": bias}


def pack(
    linear: nn.Module, input_range: tuple[Tensor, Tensor] | None, rounded: Tensor | None = None
) -> dict[str, Tensor]:
    """Tensors of the W8A8 linear that a float `linear` becomes: of a static `input_range` (scale, offset), or dynamic."""
    parts = {name: parameter.data for name, parameter in linear.named_parameters()}
    if input_range is None:
        return pack_dynamic_linear(parts["weight"], parts.get("bias"), rounded)
    return pack_linear(parts["weight"], parts.get("bias"), *input_range, rounded)


def int8_accumulator(x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
    """Integer result of a W8A8 linear before its scaling: `x [..., in]` -> int32 `[..., out]`, on the CPU.

    `clamp(round(x / input_scale) + input_offset, -128, 127) . weight^T + quant_bias`, rounding half to even.
    """
    scale, offset = packed["input_scale"].float(), packed["input_offset"].float()
    x_q = (torch.round(x.float() / scale) + offset).clamp(-128, 127)
    product = x_q.to(torch.int64) @ packed["weight"].to(torch.int64).T
    return (product + packed["quant_bias"]).to(torch.int32)


def int8_linear(x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
    """W8A8 linear of `x [..., in]` -> `[..., out]` in the dtype of `x`: slow, exact, judge of backends."""
    return (int8_accumulator(x, packed) * decode_scale(packed["deq_scale"])).to(x.dtype)


def dynamic_int8_linear(x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
    """W8A8 linear with dynamic activations, `x [..., in]` -> `[..., out]` in its dtype: slow, judge of backends.

    `x_q = round(x / x_scale)` with `x_scale = max|x| / 127` of the token, the integer product, then
    `product * x_scale * weight_scale + bias` in float32, in this order.
    """
    x_scale = x.float().abs().amax(dim=-1, keepdim=True) / 127
    x_q = torch.round(x.float() / x_scale).nan_to_num(nan=0).clamp(-127, 127)  # 0 / 0 in a token of zeros
    product = x_q.to(torch.int64) @ packed["weight"].to(torch.int64).T
    y = product.float() * x_scale * packed["weight_scale"].float().squeeze(1)
    return (y + packed["bias"].float() if "bias" in packed else y).to(x.dtype)


def _to_int8(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.round(weight / scale).clamp(-127, 127).to(torch.int8)


def _scale_for_bias(bias: Tensor, input_scale: Tensor) -> Tensor:
    """Smallest scale `[out, 1]` whose `quant_bias` fits int32, float32.

    It matters for rows of zeros with a bias, whose scale is EPS; in the reference their bias overflows.
    """
    return (bias.float().abs() / (input_scale.float() * BIAS_LIMIT)).unsqueeze(1)

"""The linears of the NPU backend: int8 products with static and dynamic activations, whole or split over chips."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from telechat_kit.backends import plain
from telechat_kit.backends.npu.calls import call, slower
from telechat_kit.backends.npu.chips import FRACTAL_NZ, ND
from telechat_kit.backends.npu.runtime import current_chip, has, torch_npu
from telechat_kit.backends.plain import AddUp
from telechat_kit.errors import DeviceError


def prepare_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a W8A8 linear as the int8 product reads them, made once after loading.

    `weight` is cast to FRACTAL_NZ: still `[out, in]` on a 310P, `[in, out]` on a 910B. `matmul_scale` int64 is
    `deq_scale` encoded by npu_trans_quant_param, and `zero_point` int32 is `input_offset`.
    """
    if not all(map(has, ("npu_quant_matmul", "npu_trans_quant_param", "npu_format_cast"))):
        return dict(tensors)
    weight = tensors["weight"]
    if current_chip().cast_weight_as == "in, out":
        weight = weight.t().contiguous()
    scale = nearest_19_bits(tensors["deq_scale"])
    return {
        **tensors,
        "weight": _cast(weight),
        "matmul_scale": call("prepare_linear", "npu_trans_quant_param", scale),
        "zero_point": tensors["input_offset"].to(torch.int32),
    }


def restore_linear(tensors: Mapping[str, Tensor], out: int, size: int) -> dict[str, Tensor]:
    """The tensors that `prepare_linear` was given: `weight [out, size]` in the plain format."""
    kept = {name: tensor for name, tensor in tensors.items() if name not in ("matmul_scale", "zero_point")}
    if "matmul_scale" not in tensors:
        return kept
    weight = call("restore_linear", "npu_format_cast", tensors["weight"], ND)
    if current_chip().cast_weight_as == "in, out":
        weight = weight.t().contiguous()
    return {**kept, "weight": weight.reshape(out, size)}


def prepare_float_linear(linear: nn.Linear) -> None:
    """Cast the float16 weight of `linear` to FRACTAL_NZ: else a 310P rearranges it for every product."""
    if current_chip().family == "310P" and linear.weight.dtype == torch.float16 and has("npu_format_cast"):
        linear.weight = nn.Parameter(_cast(linear.weight.data), requires_grad=False)


def _cast(weight: Tensor) -> Tensor:
    cast: Tensor = call("prepare_linear", "npu_format_cast", weight, FRACTAL_NZ)
    if (found := torch_npu().get_npu_format(cast)) != FRACTAL_NZ:
        raise DeviceError(
            f"a weight was left in format {found}, the int8 product needs {FRACTAL_NZ} (FRACTAL_NZ). Let torch_npu "
            "use internal formats: unset ALLOW_INTERNAL_FORMAT and any code that switches them off."
        )
    return cast


def nearest_19_bits(scale: Tensor) -> Tensor:
    """float32 `scale` rounded to the 10 bits of mantissa that the int8 product keeps, half to even.

    The operator cuts the other 13 bits off, which makes every output up to 1/1024 too small; rounded first, the
    error is half of that and has no direction.
    """
    bits = scale.float().view(torch.int32)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
    return rounded.view(torch.float32)


def quantize(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`clamp(round(x / scale + offset), -128, 127)` as int8; `scale` float32, `offset` an integer, of one element.

    The form of npu_quantize that divides is exact; the one that multiplies takes a float16 reciprocal. It rounds
    after adding, the reference before: they differ where x / scale ends in exactly .5 and the offset is odd.
    """
    if has("npu_quantize") and x.dtype in current_chip().dtypes:
        zero_point = offset.to(torch.int32)
        return call("quantize", "npu_quantize", x, scale, zero_point, torch.qint8, -1, True)
    slower("quantize")
    return plain.quantize(x, scale, offset)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    input_offset: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
    matmul_scale: Tensor | None = None,
    zero_point: Tensor | None = None,
) -> Tensor:
    """W8A8 linear of `x [..., in]` with the tensors of `prepare_linear`: `[..., out]` in the dtype of `x`."""
    x_q = quantize(x, input_scale, input_offset if zero_point is None else zero_point)
    if matmul_scale is None:
        slower("int8_linear")
        return plain.scaled_product(x_q, weight, quant_bias, deq_scale, x.dtype)
    wide = x.dtype == torch.bfloat16
    scale, dtype = (deq_scale, torch.bfloat16) if wide else (matmul_scale, torch.float16)
    y = _product(x_q.reshape(-1, x.shape[-1]), weight, scale, quant_bias, dtype)
    return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])


def sharded_int8_linear(
    x: Tensor,
    add_up: AddUp,
    weight: Tensor,
    input_scale: Tensor,
    input_offset: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
    matmul_scale: Tensor | None = None,
    zero_point: Tensor | None = None,
) -> Tensor:
    """`int8_linear` of the columns of `x` that this chip holds; `quant_bias` is its share.

    Where the operator gives int32, the sum is exact and scaled as one chip scales it. A 310P gives float16 only: each
    part is rounded before the sum, which is taken in float32 and rounded once more.
    """
    tensors = (weight, input_scale, input_offset, quant_bias, deq_scale)
    if matmul_scale is None:
        slower("sharded_int8_linear")
        return plain.sharded_int8_linear(x, add_up, *tensors)
    if not current_chip().integer_output:
        part = int8_linear(x, *tensors, matmul_scale, zero_point)
        return add_up(part.float()).to(x.dtype)
    x_q = quantize(x, input_scale, input_offset if zero_point is None else zero_point)
    rows = add_up(_product(x_q.reshape(-1, x.shape[-1]), weight, deq_scale, quant_bias, torch.int32))
    scale = deq_scale if x.dtype == torch.bfloat16 else nearest_19_bits(deq_scale)
    return rows.float().mul_(scale).to(x.dtype).view(*x.shape[:-1], rows.shape[-1])


def _product(x_q: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """`(x_q [M, K] . weight + bias) * scale` in `dtype`; as int32 without the scale."""
    operand = weight.t() if current_chip().cast_weight_as == "out, in" else weight
    y: Tensor = call("int8_linear", "npu_quant_matmul", x_q, operand, scale, bias=bias, output_dtype=dtype)
    return y


def dynamic_int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """W8A8 linear of `x [..., K]` by `weight [N, K]` int8, every token with a scale of its own, to `[..., N]`."""
    operators = all(map(has, ("npu_dynamic_quant", "npu_quant_matmul")))
    if not (operators and current_chip().per_token and x.dtype in current_chip().prompt_attention.dtypes):
        slower("dynamic_int8_linear")
        return plain.dynamic_product(x, weight, weight_scale, bias, plain.accumulate)
    verb, options = "dynamic_int8_linear", {"bias": bias, "output_dtype": x.dtype}
    x_q, x_scale = call(verb, "npu_dynamic_quant", x.reshape(-1, x.shape[-1]))
    y = call(verb, "npu_quant_matmul", x_q, weight.t(), weight_scale, pertoken_scale=x_scale, **options)
    return y.view(*x.shape[:-1], weight.shape[0])

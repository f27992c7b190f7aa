"""The linears of the NPU backend: int8 products with static and dynamic activations, whole or split over chips."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from telechat_kit.backends import plain
from telechat_kit.backends.npu.chips import FRACTAL_NZ, ND
from telechat_kit.backends.npu.forms import PLAIN, Way, form, note, operations
from telechat_kit.backends.npu.runtime import current_chip, has, operator, torch_npu
from telechat_kit.backends.npu.toolkit import cann_version
from telechat_kit.backends.plain import AddUp
from telechat_kit.errors import DeviceError

#: What `prepare_linear` and `prepare_dynamic_linear` add to the tensors as on disk
_ADDED = ("matmul_scale", "zero_point", "added_bias")
#: What CANN calls npu_quant_matmul: two interfaces of weights in each format, and their kernel
_QUANT_MATMUL = ("QuantMatmul", "QuantMatmulWeightNz", "QuantBatchMatmul")


def prepare_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a W8A8 linear as the int8 product reads them, made once after loading.

    `weight` is cast to FRACTAL_NZ: still `[out, in]` on a 310P, `[in, out]` on a 910B. `matmul_scale` int64 is
    `deq_scale` encoded by npu_trans_quant_param, and `zero_point` int32 is `input_offset`.
    """
    weight = tensors["weight"]
    products = all(map(has, ("npu_quant_matmul", "npu_trans_quant_param", "npu_format_cast")))
    set_aside = "npu_quant_matmul" not in operations.ways("int8_linear")
    if set_aside or not products or min(weight.shape) == 1:  # an axis of 1 cannot be blocked
        return dict(tensors)
    if current_chip().cast_weight_as == "in, out":
        weight = weight.t().contiguous()
    note("prepare_linear", "npu_trans_quant_param")
    return {
        **tensors,
        "weight": _blocked(weight),
        "matmul_scale": operator("npu_trans_quant_param")(nearest_19_bits(tensors["deq_scale"])),
        "zero_point": tensors["input_offset"].to(torch.int32),
    }


def restore_linear(tensors: Mapping[str, Tensor], out: int, size: int) -> dict[str, Tensor]:
    """The tensors that `prepare_linear` or `prepare_dynamic_linear` was given: `weight [out, size]` in plain format."""
    kept = {name: tensor for name, tensor in tensors.items() if name not in _ADDED}
    return {**kept, "weight": _unblocked(tensors["weight"]).reshape(out, size)}


def prepare_dynamic_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a linear with dynamic activations: on a 310P `weight` is FRACTAL_NZ, `added_bias` float16.

    A 910B takes the weight as it is, and adds the bias in its product.
    """
    weight = tensors["weight"]
    blocked = (
        operations.ways("dynamic_int8_linear")[0] != PLAIN
        and current_chip().cast_weight_as == "out, in"
        and min(weight.shape) > 1
    )
    if not (blocked and weight.shape[1] % current_chip().row_multiple == 0):
        return dict(tensors)
    bias = tensors.get("bias")
    added = {} if bias is None else {"added_bias": bias.half()}
    return {**tensors, "weight": _blocked(weight), **added}


def prepare_float_linear(linear: nn.Linear) -> None:
    """Cast the float16 weight of `linear` to FRACTAL_NZ: else a 310P rearranges it for every product."""
    if (blocked := blocked_float_weight(linear.weight.data)) is not None:
        linear.weight = nn.Parameter(blocked, requires_grad=False)


def blocked_float_weight(weight: Tensor) -> Tensor | None:
    """A FRACTAL_NZ copy of a float `weight [out, in]`, if the chip multiplies with one; else None."""
    wanted = current_chip().blocked_float_weights and weight.dtype == torch.float16 and min(weight.shape) > 1
    return _blocked(weight) if wanted and has("npu_format_cast") else None


def restore_float_weight(weight: Tensor) -> Tensor:
    """A float `weight [out, in]` in the plain format: a copy, if it lies in blocks."""
    if torch_npu().get_npu_format(weight) != FRACTAL_NZ:
        return weight
    plain_weight: Tensor = operator("npu_format_cast")(weight, ND)
    return plain_weight


def _blocked(weight: Tensor) -> Tensor:
    note("prepare_linear", "npu_format_cast")
    cast: Tensor = operator("npu_format_cast")(weight, FRACTAL_NZ)
    if (found := torch_npu().get_npu_format(cast)) != FRACTAL_NZ:
        raise DeviceError(
            "a weight was left in format {found}, the int8 product needs {fractal_nz} (FRACTAL_NZ). Let "
            "torch_npu use internal formats: unset ALLOW_INTERNAL_FORMAT and any code that switches them off.",
            found=found,
            fractal_nz=FRACTAL_NZ,
        )
    return cast


def _unblocked(weight: Tensor) -> Tensor:
    """`[out, in]` in the plain format, whatever the form that the product reads."""
    if torch_npu().get_npu_format(weight) != FRACTAL_NZ:
        return weight
    plain_weight: Tensor = operator("npu_format_cast")(weight, ND)
    return plain_weight.t().contiguous() if current_chip().cast_weight_as == "in, out" else plain_weight


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

    npu_quantize rounds after adding, the reference before: they differ where x / scale ends in exactly .5 and the
    offset is odd. Its form that multiplies is given everything in float32: the reciprocal of a scale in float16,
    which takes one launch less, is off by up to 6 % of a step.
    """
    x_q: Tensor = _quantize(x, scale, offset)
    return x_q


def _divided(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    x_q: Tensor = operator("npu_quantize")(x, scale, offset.to(torch.int32), torch.qint8, -1, True)
    return x_q


def _multiplied(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    x_q: Tensor = operator("npu_quantize")(
        x.float(), scale.reciprocal(), offset.float(), torch.qint8, -1, False
    )
    return x_q


def _quantize_fits(x: Tensor, scale: Tensor, offset: Tensor) -> bool:  # noqa: ARG001  (what a form is given)
    return x.dtype in current_chip().dtypes


_quantize = form(
    "quantize",
    Way("npu_quantize, dividing", _divided, lambda: has("npu_quantize"), _quantize_fits, ("Quantize",)),
    Way(
        "npu_quantize, multiplying",
        _multiplied,
        lambda: has("npu_quantize"),
        _quantize_fits,
        ("AscendQuant",),
    ),
    Way(PLAIN, plain.quantize),
)


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
    y: Tensor = _product(x_q, weight, quant_bias, deq_scale, matmul_scale, x.dtype)
    return y


def _matmul(
    x_q: Tensor,
    weight: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
    matmul_scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    wide = dtype == torch.bfloat16
    scale, own = (deq_scale, torch.bfloat16) if wide else (matmul_scale, torch.float16)
    y: Tensor = operator("npu_quant_matmul")(
        x_q.reshape(-1, x_q.shape[-1]), _operand(weight), scale, bias=quant_bias, output_dtype=own
    )
    return y.to(dtype).view(*x_q.shape[:-1], y.shape[-1])


def _plain_product(
    x_q: Tensor,
    weight: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
    matmul_scale: Tensor | None,  # noqa: ARG001
    dtype: torch.dtype,
) -> Tensor:
    return plain.scaled_product(x_q, _unblocked(weight), quant_bias, deq_scale, dtype)


def _operand(weight: Tensor) -> Tensor:
    """The second operand `[in, out]` of a product, as the chip wants to see it."""
    return weight.t() if current_chip().cast_weight_as == "out, in" else weight


_product = form(
    "int8_linear",
    Way(
        "npu_quant_matmul",
        _matmul,
        lambda: has("npu_quant_matmul"),
        lambda x_q, weight, bias, deq_scale, matmul_scale, dtype: matmul_scale is not None,  # noqa: ARG005
        _QUANT_MATMUL,
    ),
    Way(PLAIN, _plain_product),
)


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
    if not current_chip().integer_output and matmul_scale is not None:
        tensors = (weight, input_scale, input_offset, quant_bias, deq_scale, matmul_scale, zero_point)
        return add_up(int8_linear(x, *tensors).float()).to(x.dtype)
    x_q = quantize(x, input_scale, input_offset if zero_point is None else zero_point)
    rows = add_up(_integers(x_q.reshape(-1, x.shape[-1]), weight, quant_bias, deq_scale, matmul_scale))
    scale = deq_scale if x.dtype == torch.bfloat16 or matmul_scale is None else nearest_19_bits(deq_scale)
    return rows.float().mul_(scale).to(x.dtype).view(*x.shape[:-1], rows.shape[-1])


def _integer_matmul(
    x_q: Tensor,
    weight: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
    matmul_scale: Tensor | None,  # noqa: ARG001
) -> Tensor:
    y: Tensor = operator("npu_quant_matmul")(
        x_q, _operand(weight), deq_scale, bias=quant_bias, output_dtype=torch.int32
    )
    return y


def _plain_integers(
    x_q: Tensor,
    weight: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,  # noqa: ARG001
    matmul_scale: Tensor | None,  # noqa: ARG001
) -> Tensor:
    return plain.accumulate(x_q, _unblocked(weight)).add_(quant_bias)


_integers = form(
    "sharded_int8_linear",
    Way(
        "npu_quant_matmul",
        _integer_matmul,
        lambda: has("npu_quant_matmul") and current_chip().integer_output,
        lambda x_q, weight, bias, deq_scale, matmul_scale: matmul_scale is not None,  # noqa: ARG005
        _QUANT_MATMUL,
    ),
    Way(PLAIN, _plain_integers),
)


def dynamic_int8_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, added_bias: Tensor | None = None
) -> Tensor:
    """W8A8 linear of `x [..., K]` by `weight [N, K]` int8, every token with a scale of its own, to `[..., N]`.

    `added_bias` is `bias` in the dtype of a product that takes none.
    """
    y: Tensor = _dynamic(x, weight, weight_scale, bias, added_bias)
    return y


def _dynamic_matmul(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, added_bias: Tensor | None
) -> Tensor:
    x_q, x_scale = operator("npu_dynamic_quant")(x.reshape(-1, x.shape[-1]))
    inside = bias if current_chip().per_token_bias else None
    y: Tensor = operator("npu_quant_matmul")(
        x_q, weight.t(), weight_scale, pertoken_scale=x_scale, bias=inside, output_dtype=x.dtype
    )
    y = y if added_bias is None else y.add_(added_bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def _plain_dynamic(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    added_bias: Tensor | None,  # noqa: ARG001
) -> Tensor:
    ordinary = _unblocked(weight) if current_chip().cast_weight_as == "out, in" else weight
    return plain.dynamic_product(x, ordinary, weight_scale, bias, plain.accumulate)


def _per_token_is_there() -> bool:
    """Before CANN 9.1 the product of a 310P accepts a scale for each token, and then fails or crashes."""
    operators = all(map(has, ("npu_dynamic_quant", "npu_quant_matmul", "npu_format_cast")))
    oldest = current_chip().per_token_from
    return operators and (oldest == (0, 0) or (cann_version() or (0, 0)) >= oldest)


def _dynamic_fits(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, added_bias: Tensor | None
) -> bool:
    chip = current_chip()
    if chip.cast_weight_as == "out, in" and torch_npu().get_npu_format(weight) != FRACTAL_NZ:
        return False
    biased = bias is None or chip.per_token_bias or added_bias is not None
    return x.dtype in chip.per_token_dtypes and weight_scale.dtype == torch.float32 and biased


_dynamic = form(
    "dynamic_int8_linear",
    Way(
        "npu_dynamic_quant, npu_quant_matmul",
        _dynamic_matmul,
        _per_token_is_there,
        _dynamic_fits,
        ("DynamicQuant", *_QUANT_MATMUL),
    ),
    Way(PLAIN, _plain_dynamic),
)

"""Stand-ins for quantization and the int8 product: exact integers, scales of 19 bits, one rounding at the end."""

import torch
from npu_chip import Chip, demand, floats, halves, to_half
from npu_registry import FRACTAL_NZ, ND, format_of, set_format
from torch import Tensor

_INT8_CODES = (1, 12)  # torch.int8, torch.qint8 as operators see them
_DTYPES = {1: torch.int8, 3: torch.int32, 5: torch.float16, 15: torch.bfloat16}

_QUANTIZE = "ops-nn experimental/quant/quantize/op_api/aclnn_quantize.cpp"
_ASCEND_QUANT = "ops-nn quant/ascend_quant_v2/op_host/op_api/aclnn_ascend_quant_v3.cpp"
_DYNAMIC_310P = "ops-nn quant/dynamic_quant/op_host/dynamic_quant_tiling_310P.cpp"
_DYNAMIC = "ops-nn quant/dynamic_quant/op_host/dynamic_quant_tiling.cpp"
_CHECKER = "ops-nn matmul/quant_batch_matmul_v3/op_api/quant_matmul_checker.cpp"
_TILING = "ops-nn matmul/quant_batch_matmul_v3/op_host/op_tiling/quant_batch_matmul_v3_tiling.cpp"
_TILING_BASE = "ops-nn matmul/quant_batch_matmul_v3/op_host/op_tiling/quant_batch_matmul_v3_tiling_base.cpp"
_TILING_310P = (
    "ops-nn matmul/quant_batch_matmul_v3/op_host/op_tiling/arch20/quant_batch_matmul_v3_tiling_arch20.cpp"
)
_KERNELS_310P = (
    "ops-nn matmul/quant_batch_matmul_v3/op_host/config/ascend310p/quant_batch_matmul_v3_binary.json"
)


def npu_quantize(
    x: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int = 1, div_mode: bool = True
) -> Tensor:
    """Round x / scales + zero_points, or x * scales + zero_points, to int8, half to even."""
    op, size = "npu_quantize", x.shape[-1]
    source = _QUANTIZE if div_mode else _ASCEND_QUANT
    demand(x.dtype in floats(), op, f"input is {x.dtype}", source)
    demand(dtype in _INT8_CODES, op, "only qint8 is stood in for")
    demand(axis in (-1, x.ndim - 1), op, "scales must lie along the last axis", source)
    demand(scales.ndim == 1 and len(scales) in (1, size), op, f"scales must have 1 or {size} values", source)
    same = zero_points is None or zero_points.shape == scales.shape
    demand(same, op, f"zero_points must have the shape {tuple(scales.shape)} of scales", source)
    offset = torch.zeros(1) if zero_points is None else zero_points
    if div_mode:
        demand(scales.dtype in floats(), op, f"scales are {scales.dtype}", source)
        integer = (torch.int8, torch.uint8, torch.int32)
        wide = offset.dtype == torch.bfloat16 and x.dtype == scales.dtype == torch.bfloat16
        demand(
            zero_points is None or offset.dtype in integer or wide,
            op,
            f"zero_points are {offset.dtype}",
            source,
        )
        values = x.float() / scales.float() + offset.float()
    else:
        demand(scales.dtype in floats(), op, f"scales are {scales.dtype}", source)
        fits = x.dtype in (torch.float32, scales.dtype)
        demand(fits, op, f"scales {scales.dtype} must have the dtype of the input without div_mode", source)
        demand(
            zero_points is None or offset.dtype == scales.dtype, op, "zero_points must have it too", source
        )
        values = x.float() * scales.float() + offset.float()
    return values.round().clamp(-128, 127).to(torch.int8)


def npu_trans_quant_param(scale: Tensor, offset: Tensor | None = None, round_mode: int | None = 0) -> Tensor:
    """int64 form of float32 scales: the upper 19 bits of the pattern, bit 46 set."""
    op = "npu_trans_quant_param"
    demand(scale.dtype == torch.float32, op, f"scale is {scale.dtype}")
    demand(scale.ndim == 1 or (scale.ndim == 2 and len(scale) == 1), op, "scale must be (n,) or (1, n)")
    demand(offset is None and not round_mode, op, "offset and round_mode are not stood in for")
    bits = scale.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFE000
    return bits | (1 << 46)


def scale_of_19_bits(scale: Tensor) -> Tensor:
    """float32 values that the matrix unit multiplies with, from float32 or from npu_trans_quant_param's int64."""
    bits = scale if scale.dtype == torch.int64 else scale.float().view(torch.int32).to(torch.int64)
    low = bits & 0xFFFFE000
    return torch.where(low >= 2**31, low - 2**32, low).to(torch.int32).view(torch.float32)


def npu_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
) -> Tensor:
    """(x1 [.., K] . x2 [K, N] + bias) * scale, times pertoken_scale for each row if there is one."""
    _check_matmul(x1, x2, scale, bias)
    _check_weight_layout(x1, x2)
    demand(offset is None, "npu_quant_matmul", "offset belongs to int8 output, which is not stood in for")
    wanted = _DTYPES.get(-1 if output_dtype is None else output_dtype)
    _check_combination(x1, scale, pertoken_scale, bias, wanted)
    product = (x1.double() @ x2.double()).to(torch.int64)
    Chip.accumulator = product if bias is None or bias.is_floating_point() else product + bias
    if wanted == torch.int32:
        return Chip.accumulator.to(torch.int32)
    exact = pertoken_scale is not None or wanted == torch.bfloat16
    values = Chip.accumulator.float() * (scale.float() if exact else scale_of_19_bits(scale))
    if pertoken_scale is not None:
        values = values * pertoken_scale[:, None]
    if bias is not None and bias.is_floating_point():
        values = values + bias.float()
    assert wanted is not None
    return to_half(values, wanted)


def _check_matmul(x1: Tensor, x2: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    op = "npu_quant_matmul"
    demand(
        x1.dtype == x2.dtype == torch.int8, op, f"operands are {x1.dtype} and {x2.dtype}, not int8", _CHECKER
    )
    demand(2 <= x1.ndim <= 6 and x2.ndim == 2, op, "x1 must have 2 to 6 axes, x2 two", _CHECKER)
    (inner, out), k = x2.shape, x1.shape[-1]
    demand(k == inner, op, f"x1 has {k} columns, x2 {inner} rows", _CHECKER)
    demand(inner <= 65535 and out <= 65535, op, "K and N must be at most 65535", _TILING)
    demand(scale.ndim == 1 and len(scale) in (1, out), op, f"scale must have 1 or {out} values", _CHECKER)
    demand(bias is None or tuple(bias.shape) == (out,), op, f"bias must have {out} values", _CHECKER)


def _check_weight_layout(x1: Tensor, x2: Tensor) -> None:
    op, blocked = "npu_quant_matmul", format_of(x2) == FRACTAL_NZ
    transposed = not x2.is_contiguous() and x2.t().is_contiguous()
    demand(x1.is_contiguous() and format_of(x1) == ND, op, "x1 must be contiguous in ND", _CHECKER)
    demand(not blocked or min(x2.shape) > 1, op, f"a FRACTAL_NZ x2 of shape {tuple(x2.shape)}", _CHECKER)
    if Chip.is_310p():
        demand(
            blocked, op, "x2 must be FRACTAL_NZ: the transposed view of a FRACTAL_NZ [N, K] weight", _CHECKER
        )
        demand(transposed, op, "only transpose_x1 false and transpose_x2 true", _TILING_BASE)
    elif blocked:
        demand(x2.is_contiguous(), op, "a FRACTAL_NZ x2 must have been cast as [K, N], not transposed")


def _check_combination(
    x1: Tensor,
    scale: Tensor,
    per_token: Tensor | None,
    bias: Tensor | None,
    wanted: torch.dtype | None,
) -> None:
    op, kind = "npu_quant_matmul", None if bias is None else bias.dtype
    whole = (None, torch.int32)
    if per_token is not None:
        _check_per_token(x1, per_token)
    if wanted == torch.bfloat16:
        good = scale.dtype in (torch.float32, torch.bfloat16) and kind != torch.float16
        good = good and not Chip.is_310p()
        demand(good, op, f"bfloat16 with scale {scale.dtype}, bias {kind}", _CHECKER)
    elif wanted == torch.int32:
        good = scale.dtype in (torch.float32, torch.bfloat16) and kind in whole and per_token is None
        demand(good, op, f"int32 with scale {scale.dtype}, bias {kind}", _CHECKER)
        demand(not Chip.is_310p(), op, "int32 output has no kernel", _KERNELS_310P)
    elif wanted == torch.float16 and per_token is not None:
        good = scale.dtype == torch.float32 and (kind in whole if Chip.is_310p() else kind != torch.bfloat16)
        demand(good, op, f"scale {scale.dtype}, bias {kind}, pertoken_scale", _CHECKER)
    else:
        demand(wanted == torch.float16, op, f"output {wanted}", _CHECKER)
        good = scale.dtype in (torch.int64, torch.float32) and kind in whole
        demand(good, op, f"float16 with scale {scale.dtype}, bias {kind}", _CHECKER)
    demand(scale.dtype != torch.int64 or bool(((scale >> 46) & 1).all()), op, "scale is no quant parameter")


def _check_per_token(x1: Tensor, per_token: Tensor) -> None:
    op, rows = "npu_quant_matmul", x1.ndim == 2 and tuple(per_token.shape) == (len(x1),)
    if Chip.is_310p():
        known = Chip.cann_is_at_least(9, 1)
        demand(
            known, op, f"pertoken_scale is not supported by CANN {Chip.cann}: 9.1.0 is needed", _TILING_310P
        )
    demand(per_token.dtype == torch.float32, op, f"pertoken_scale is {per_token.dtype}", _CHECKER)
    demand(rows, op, "pertoken_scale needs one value a row", _CHECKER)


def npu_dynamic_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their float32 scales: the largest absolute value of a row becomes 127."""
    op = "npu_dynamic_quant"
    if Chip.is_310p():
        demand(x.dtype == torch.float16, op, f"input is {x.dtype}, not float16", _DYNAMIC_310P)
        demand(x.shape[-1] % 32 == 0, op, f"last axis of {x.shape[-1]} is no multiple of 32", _DYNAMIC_310P)
    demand(x.dtype in halves() and x.ndim > 1, op, f"input is {x.dtype} with {x.ndim} axes", _DYNAMIC)
    scale = x.float().abs().amax(-1) / 127
    rounded = torch.where(scale[..., None] > 0, x.float() / scale[..., None], 0).round()
    return rounded.clamp(-128, 127).to(torch.int8), scale


def npu_format_cast(x: Tensor, acl_format: int) -> Tensor:
    """A copy of `x` whose memory counts as stored in `acl_format`."""
    op = "npu_format_cast"
    demand(x.ndim == 2 and x.dtype in (torch.int8, *halves()), op, f"{x.dtype}, {x.ndim} axes")
    blocks = acl_format != FRACTAL_NZ or min(x.shape) > 1
    demand(blocks, op, f"shape {tuple(x.shape)}: an axis of 1 cannot be FRACTAL_NZ", _CHECKER)
    return set_format(x.clone(memory_format=torch.contiguous_format), acl_format)

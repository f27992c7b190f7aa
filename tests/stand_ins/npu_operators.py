"""Exact stand-ins for torch_npu's operators on CPU tensors, as strict as the operator documentation.

Integer products are exact; the scale of the int8 product keeps 19 bits; half precision is rounded once, at the end.
What the documentation forbids raises RuntimeError, also where the real shape functions would let it pass.
"""

from collections.abc import Sequence

import torch
from npu_registry import FRACTAL_NZ, format_of, register, set_format
from torch import Tensor

#: Soc numbers of torch_npu for the chips that can be stood in for
SOCS = {"Ascend310P3": 202, "Ascend910B4": 224, "Ascend910_9391": 250}
_INT8_CODES = (1, 12)  # torch.int8, torch.qint8 as operators see them
_DTYPES = {1: torch.int8, 3: torch.int32, 5: torch.float16, 15: torch.bfloat16}
_ALL_TOKENS = 2**31 - 1


class Chip:
    """The chip that this process pretends to have, and what its matrix unit added up last."""

    name = "Ascend310P3"
    accumulator: Tensor | None = None

    @classmethod
    def is_310p(cls) -> bool:
        return cls.name.startswith("Ascend310P")


def demand(condition: bool, operator: str, rule: str) -> None:
    """Refuse a call that breaks a rule of the documentation."""
    if not condition:
        raise RuntimeError(f"{operator}: {rule} (stand-in for {Chip.name})")


def floats() -> tuple[torch.dtype, ...]:
    """Float dtypes of the chip."""
    return (torch.float16, torch.float32) + (() if Chip.is_310p() else (torch.bfloat16,))


def halves() -> tuple[torch.dtype, ...]:
    """16-bit dtypes of the chip."""
    return (torch.float16,) if Chip.is_310p() else (torch.float16, torch.bfloat16)


def to_half(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 `values` rounded to `dtype`; a 310P has no infinity and stops at the largest finite number."""
    if Chip.is_310p() and dtype == torch.float16:
        values = values.clamp(-65504, 65504)
    return values.to(dtype)


def npu_quantize(
    x: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int = 1, div_mode: bool = True
) -> Tensor:
    """Round x / scales + zero_points, or x * scales + zero_points, to int8, half to even."""
    op, size = "npu_quantize", x.shape[-1]
    demand(x.dtype in floats(), op, f"input is {x.dtype}")
    demand(dtype in _INT8_CODES, op, "only qint8 is stood in for")
    demand(axis in (-1, x.ndim - 1), op, "scales must lie along the last axis")
    demand(scales.ndim == 1 and len(scales) in (1, size), op, f"scales must have 1 or {size} values")
    offset = torch.zeros(1) if zero_points is None else zero_points
    demand(offset.ndim == 1 and len(offset) in (1, size), op, f"zero_points must have 1 or {size} values")
    if div_mode:
        demand(scales.dtype == torch.float32, op, "scales must be float32 with div_mode")
        integer = (torch.int8, torch.uint8, torch.int32)
        demand(zero_points is None or offset.dtype in integer, op, f"zero_points are {offset.dtype}")
        values = x.float() / scales + offset
    else:
        demand(scales.dtype == x.dtype, op, "scales must have the dtype of the input without div_mode")
        demand(zero_points is None or offset.dtype == x.dtype, op, "zero_points must have it too")
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
    _check_weight_layout(x2)
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
    demand(x1.dtype == x2.dtype == torch.int8, op, f"operands are {x1.dtype} and {x2.dtype}, not int8")
    demand(2 <= x1.ndim <= 6 and x2.ndim == 2, op, "x1 must have 2 to 6 axes, x2 two")
    (inner, out), k = x2.shape, x1.shape[-1]
    demand(k == inner, op, f"x1 has {k} columns, x2 {inner} rows")
    demand(inner <= 65535 and out <= 65535, op, "K and N must be at most 65535")
    demand(scale.ndim == 1 and len(scale) in (1, out), op, f"scale must have 1 or {out} values")
    demand(bias is None or tuple(bias.shape) == (out,), op, f"bias must have {out} values")


def _check_weight_layout(x2: Tensor) -> None:
    op, blocked = "npu_quant_matmul", format_of(x2) == FRACTAL_NZ
    transposed = not x2.is_contiguous() and x2.t().is_contiguous()
    if Chip.is_310p():
        demand(blocked and transposed, op, "x2 must be the transposed view of a FRACTAL_NZ [N, K] weight")
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
        demand(not Chip.is_310p(), op, "pertoken_scale is not supported")
        demand(per_token.dtype == torch.float32, op, f"pertoken_scale is {per_token.dtype}")
        demand(
            x1.ndim == 2 and tuple(per_token.shape) == (len(x1),), op, "pertoken_scale needs one value a row"
        )
    if wanted == torch.bfloat16:
        good = scale.dtype in (torch.float32, torch.bfloat16) and kind != torch.float16
        demand(good and not Chip.is_310p(), op, f"bfloat16 with scale {scale.dtype}, bias {kind}")
    elif wanted == torch.int32:
        good = scale.dtype in (torch.float32, torch.bfloat16) and kind in whole
        demand(good and not Chip.is_310p(), op, f"int32 with scale {scale.dtype}, bias {kind}")
    elif wanted == torch.float16 and per_token is not None:
        demand(
            scale.dtype == torch.float32 and kind != torch.float16, op, f"scale {scale.dtype}, bias {kind}"
        )
    else:
        demand(wanted == torch.float16, op, f"output {wanted}")
        good = scale.dtype in (torch.int64, torch.float32) and kind in whole
        demand(good, op, f"float16 with scale {scale.dtype}, bias {kind}")
    demand(scale.dtype != torch.int64 or bool(((scale >> 46) & 1).all()), op, "scale is no quant parameter")


def npu_dynamic_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their float32 scales: the largest absolute value of a row becomes 127."""
    op = "npu_dynamic_quant"
    demand(not Chip.is_310p(), op, "not documented for this chip")
    demand(x.dtype in halves() and x.ndim > 1, op, f"input is {x.dtype} with {x.ndim} axes")
    scale = x.float().abs().amax(-1) / 127
    rounded = torch.where(scale[..., None] > 0, x.float() / scale[..., None], 0).round()
    return rounded.clamp(-128, 127).to(torch.int8), scale


def npu_rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """RMS norm of the last axis and the float32 reciprocal of the root."""
    op = "npu_rms_norm"
    demand(x.dtype in floats() and gamma.dtype == x.dtype, op, f"input {x.dtype}, gamma {gamma.dtype}")
    demand(tuple(gamma.shape) == tuple(x.shape[-1:]), op, f"gamma has shape {tuple(gamma.shape)}")
    demand(x.shape[-1] * x.element_size() >= 32, op, "the last axis must hold 32 bytes")
    wide = x.float()
    reciprocal = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return to_half(wide * reciprocal * gamma.float(), x.dtype), reciprocal


def npu_add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """RMS norm of the rounded sum x1 + x2, the float32 reciprocal of the root (NaN on a 310P), and the sum."""
    op = "npu_add_rms_norm"
    demand(x1.dtype == x2.dtype and x1.shape == x2.shape, op, f"{x1.dtype}, {x2.dtype}, or unlike shapes")
    total = to_half(x1.float() + x2.float(), x1.dtype)
    normed, reciprocal = npu_rms_norm(total, gamma, epsilon)
    if Chip.is_310p():  # documented to mean nothing there
        reciprocal = torch.full_like(reciprocal, float("nan"))
    return normed, reciprocal, total


def npu_rotary_mul(x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half") -> Tensor:
    """x * r1 + cat(-second half, first half) * r2."""
    op, size = "npu_rotary_mul", x.shape[-1]
    demand(rotary_mode == "half" and x.ndim == r1.ndim == r2.ndim == 4, op, "half mode on four axes only")
    demand(x.dtype in floats() and r1.dtype == r2.dtype == x.dtype, op, f"{x.dtype} with tables {r1.dtype}")
    demand(r1.shape == r2.shape and r1.shape[-1] == size, op, f"tables of shape {tuple(r1.shape)}")
    demand(all(one in (1, own) for one, own in zip(r1.shape, x.shape, strict=True)), op, "tables do not fit")
    demand(sum(length > 1 for length in r1.shape[:-1]) <= 1, op, "tables must be 11SD, 1S1D or S11D")
    demand(size % 2 == 0 and size < 896, op, f"head size {size}")
    if Chip.is_310p():
        demand(size == 128 and max(x.shape[:3]) <= 1024, op, f"shape {tuple(x.shape)}")
    first, second = x.float().chunk(2, dim=-1)
    return to_half(x.float() * r1.float() + torch.cat((-second, first), -1) * r2.float(), x.dtype)


def npu_prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    pre_tokens: int = _ALL_TOKENS,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
) -> Tensor:
    """Attention of many positions, `[B, N, S, d]`; a mask hides where it is True."""
    op = "npu_prompt_flash_attention"
    _check_attention(op, query, key, value, num_heads, input_layout, most=128)
    demand(pre_tokens == _ALL_TOKENS and next_tokens in (0, _ALL_TOKENS), op, "pre_tokens, next_tokens")
    demand(atten_mask is not None and atten_mask.dtype == torch.bool, op, "a causal prompt needs a bool mask")
    assert atten_mask is not None
    (queries, keys), given = (query.shape[2], key.shape[2]), tuple(atten_mask.shape)
    if sparse_mode == 2:
        demand(not Chip.is_310p() and given == (2048, 2048), op, f"sparse_mode 2, mask {given}")
        demand(bool((atten_mask == torch.ones(2048, 2048).triu(1).bool()).all()), op, "mask is no triangle")
        hidden = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    else:
        demand(
            sparse_mode == 0 and given[-2:] == (queries, keys), op, f"sparse_mode {sparse_mode}, mask {given}"
        )
        hidden = atten_mask
    return _attend(query, key, value, scale_value, hidden)


def npu_incre_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    actual_seq_lengths: Sequence[int] | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
) -> Tensor:
    """Attention of one new position, `[B, N, 1, d]`, over the first `actual_seq_lengths` keys of each sequence."""
    op = "npu_incre_flash_attention"
    _check_attention(op, query, key, value, num_heads, input_layout, most=256)
    demand(query.shape[2] == 1, op, f"{query.shape[2]} queries instead of one")
    lengths = [key.shape[2]] * len(query) if actual_seq_lengths is None else list(actual_seq_lengths)
    good = len(lengths) == len(query) and all(0 < length <= key.shape[2] for length in lengths)
    demand(good, op, f"actual_seq_lengths {lengths} for keys of shape {tuple(key.shape)}")
    positions = torch.arange(key.shape[2])
    hidden = positions[None, None, None] >= torch.tensor(lengths)[:, None, None, None]
    return _attend(query, key, value, scale_value, hidden)


def _check_attention(
    op: str, query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str, most: int
) -> None:
    demand(layout == "BNSD" and query.ndim == key.ndim == value.ndim == 4, op, f"layout {layout}")
    demand(query.dtype == key.dtype == value.dtype and query.dtype in halves(), op, f"query is {query.dtype}")
    demand(query.shape[1] == heads == key.shape[1], op, f"num_heads {heads}, query has {query.shape[1]}")
    demand(key.shape == value.shape, op, "key and value differ in shape")
    batch, count, _, size = query.shape
    sizes = batch <= most and count <= 256 and key.shape[2] <= 65535 and size <= 512
    demand(sizes, op, f"shape {tuple(query.shape)} is out of bounds")


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor) -> Tensor:
    scores = (query.float() @ key.float().transpose(-1, -2)) * scale
    shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return to_half(shares.to(query.dtype).float() @ value.float(), query.dtype)


def npu_format_cast(x: Tensor, acl_format: int) -> Tensor:
    """A copy of `x` whose memory counts as stored in `acl_format`."""
    demand(x.ndim == 2 and x.dtype in (torch.int8, *halves()), "npu_format_cast", f"{x.dtype}, {x.ndim} axes")
    return set_format(x.clone(memory_format=torch.contiguous_format), acl_format)


OPERATORS = {
    "npu_quantize": npu_quantize,
    "npu_trans_quant_param": npu_trans_quant_param,
    "npu_quant_matmul": npu_quant_matmul,
    "npu_dynamic_quant": npu_dynamic_quant,
    "npu_rms_norm": npu_rms_norm,
    "npu_add_rms_norm": npu_add_rms_norm,
    "npu_rotary_mul": npu_rotary_mul,
    "npu_prompt_flash_attention": npu_prompt_flash_attention,
    "npu_incre_flash_attention": npu_incre_flash_attention,
    "npu_format_cast": npu_format_cast,
    "get_npu_format": format_of,
}
register(OPERATORS)

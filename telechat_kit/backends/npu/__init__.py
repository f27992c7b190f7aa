"""The NPU backend: torch_npu operators where chip and release have them, plain torch where they do not.

`chips` says what each chip takes, `runtime` finds torch_npu; `operators` tells a record which way was used.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from telechat_kit.backends import plain
from telechat_kit.backends.npu.chips import FRACTAL_NZ, ND, card_of
from telechat_kit.backends.npu.runtime import current_chip, device_count, has, open_device, torch_npu
from telechat_kit.backends.plain import accumulate, float_linear, quantize_per_token, silu_product
from telechat_kit.errors import DeviceError

__all__ = [
    "accumulate",
    "attention",
    "choose_dtype",
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
    "quantize",
    "quantize_per_token",
    "read_bandwidth",
    "restore_linear",
    "rms_norm",
    "rotate",
    "silu_product",
    "synchronize",
]

name = "npu"

PLAIN = "plain torch"
#: Size of the fixed causal mask that sparse_mode 2 of the attention operators takes
TRIANGLE = 2048
_ALL_TOKENS = 2**31 - 1

_used: defaultdict[str, set[str]] = defaultdict(set)


def dynamic_int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """W8A8 linear of `x [..., K]` by `weight [N, K]` int8, every token with a scale of its own, to `[..., N]`."""
    return plain.dynamic_product(x, weight, weight_scale, bias, accumulate)


def operators() -> dict[str, str]:
    """Which operator did each of the backend's verbs in this process so far; several if shapes decided."""
    return {verb: ", ".join(sorted(ways)) for verb, ways in sorted(_used.items())}


def _call(verb: str, operator: str, *args: Any, **options: Any) -> Any:
    _used[verb].add(operator)
    return getattr(torch_npu(), operator)(*args, **options)


def _slower(verb: str) -> None:
    _used[verb].add(PLAIN)


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
        "matmul_scale": _call("prepare_linear", "npu_trans_quant_param", scale),
        "zero_point": tensors["input_offset"].to(torch.int32),
    }


def restore_linear(tensors: Mapping[str, Tensor], out: int, size: int) -> dict[str, Tensor]:
    """The tensors that `prepare_linear` was given: `weight [out, size]` in the plain format."""
    kept = {name: tensor for name, tensor in tensors.items() if name not in ("matmul_scale", "zero_point")}
    if "matmul_scale" not in tensors:
        return kept
    weight = _call("restore_linear", "npu_format_cast", tensors["weight"], ND)
    if current_chip().cast_weight_as == "in, out":
        weight = weight.t().contiguous()
    return {**kept, "weight": weight.reshape(out, size)}


def prepare_float_linear(linear: nn.Linear) -> None:
    """Cast the float16 weight of `linear` to FRACTAL_NZ: else a 310P rearranges it for every product."""
    if current_chip().family == "310P" and linear.weight.dtype == torch.float16 and has("npu_format_cast"):
        linear.weight = nn.Parameter(_cast(linear.weight.data), requires_grad=False)


def _cast(weight: Tensor) -> Tensor:
    cast: Tensor = _call("prepare_linear", "npu_format_cast", weight, FRACTAL_NZ)
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
        return _call("quantize", "npu_quantize", x, scale, zero_point, torch.qint8, -1, True)
    _slower("quantize")
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
        _slower("int8_linear")
        return plain.scaled_product(x_q, weight, quant_bias, deq_scale, x.dtype)
    x_q, operand = x_q.reshape(-1, x.shape[-1]), weight
    if current_chip().cast_weight_as == "out, in":
        operand = weight.t()
    wide = x.dtype == torch.bfloat16
    y: Tensor = _call(
        "int8_linear",
        "npu_quant_matmul",
        x_q,
        operand,
        deq_scale if wide else matmul_scale,
        bias=quant_bias,
        output_dtype=torch.bfloat16 if wide else torch.float16,
    )
    return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of the last axis of `x [..., H]`; the operator needs 32 bytes there and one dtype for both."""
    if has("npu_rms_norm") and x.dtype == weight.dtype and x.shape[-1] * x.element_size() >= 32:
        return _call("rms_norm", "npu_rms_norm", x, weight, epsilon)[0]
    _slower("rms_norm")
    return plain.rms_norm(x, weight, epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x [B, heads, T, d]` with tables `[T, d]`, halves split as in GPT-NeoX."""
    if has("npu_rotary_mul") and current_chip().allows_rotary(x, cos):
        return _call("rotate", "npu_rotary_mul", x, cos[None, None], sin[None, None])
    _slower("rotate")
    return plain.rotate(x, cos, sin)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `query [B, heads, T, d]` over `key` and `value [B, heads, S, d]`, scaled by 1/sqrt(d).

    `mask` as in `plain.attention`. With one, the slower way is taken: what the operators give for a row that may
    see nothing is not documented, and such rows (padding) must stay finite.
    """
    chip = current_chip()
    decode = query.shape[2] == 1
    operator = "npu_incre_flash_attention" if decode else "npu_prompt_flash_attention"
    limits = chip.decode_attention if decode else chip.prompt_attention
    if mask is not None or not has(operator) or not limits.allow(query, key):
        _slower("attention")
        return plain.attention_in_products(query, key, value, mask)
    length, common = key.shape[2], _attention_options(query)
    if decode:
        lengths = [length] * len(query)
        return _call("attention", operator, query, key, value, actual_seq_lengths=lengths, **common)
    triangle = chip.causal_mask == "triangle"
    size = TRIANGLE if triangle else length
    options = {"atten_mask": _hidden(size, query.device), "pre_tokens": _ALL_TOKENS, "next_tokens": 0}
    options |= {"sparse_mode": 2} if triangle else {}
    return _call("attention", operator, query, key, value, **options, **common)


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
    """Bytes per second and where the figure comes from: the table of cards, or a measured pass over 512 MB."""
    card = card_of(device_name())
    if card is not None:
        return card.bandwidth, card.basis
    return plain.measured_bandwidth(torch.device("npu"), synchronize), "measured"

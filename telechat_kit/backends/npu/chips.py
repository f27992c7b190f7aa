"""What each Ascend chip can do: the one table that decides which operator, dtype and format the backend uses.

Families, operators and their limits are those of the torch_npu operator documentation ("Atlas inference series
(accelerator card)" is 310P, "Atlas A2" is 910B, "Atlas A3" is 910_93) and of CANN's published host sources, which hold
where they differ; soc numbers are those of torch_npu's own enum. The stand-ins of the tests name the source of each rule.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from telechat_kit.errors import DeviceError

#: Storage formats of torch_npu: plain, and the blocked one that the matrix unit reads without a rearrangement
ND, FRACTAL_NZ = 2, 29


@dataclass(frozen=True)
class AttentionLimits:
    """Largest sizes and the dtypes that an attention operator takes: `query [batch, heads, length, head_dim]`."""

    dtypes: tuple[torch.dtype, ...]
    batch: int
    heads: int
    length: int
    head_dim: int
    #: head_dim must be a multiple of this
    head_dim_multiple: int = 1
    #: heads that share a key and value head, and the head size that they may have then
    group: int = 256
    grouped_head_dim: int = 512

    def allow(self, query: torch.Tensor, key: torch.Tensor) -> bool:
        batch, heads, _, head_dim = query.shape
        group = heads // key.shape[1]
        sizes = batch <= self.batch and heads <= self.heads and key.shape[2] <= self.length
        head = head_dim <= self.head_dim and head_dim % self.head_dim_multiple == 0
        shared = group == 1 or (group <= self.group and head_dim <= self.grouped_head_dim)
        return query.dtype in self.dtypes and sizes and head and shared


@dataclass(frozen=True)
class Chip:
    """One family of chips. `socs` are the values of `torch_npu.npu.get_soc_version()`."""

    family: str
    socs: range
    #: dtypes that a model's float tensors may have
    dtypes: tuple[torch.dtype, ...]
    #: operators that the family has, of those that the backend can use
    operators: frozenset[str]
    #: how npu_quant_matmul wants a FRACTAL_NZ weight: cast as `[out, in]` and passed as its transposed view,
    #: or cast as `[in, out]`
    cast_weight_as: Literal["out, in", "in, out"]
    #: the matrix unit rearranges float weights for every product, unless they are FRACTAL_NZ
    blocked_float_weights: bool
    #: mask of npu_prompt_flash_attention: the whole `[T, T]`, or a fixed 2048 x 2048 triangle with sparse_mode 2
    causal_mask: Literal["full", "triangle"]
    #: multiples that prompts are padded to for it, in the order to try; none: any length is taken
    prompt_multiples: tuple[int, ...]
    prompt_attention: AttentionLimits
    decode_attention: AttentionLimits
    #: bytes of a core's buffer, which holds the heads of a token while they are rotated
    buffer_bytes: int
    #: oldest CANN whose npu_quant_matmul takes `pertoken_scale`, and the dtypes of its output
    per_token_from: tuple[int, int]
    per_token_dtypes: tuple[torch.dtype, ...]
    #: npu_quant_matmul adds a float bias to products with a scale for each token
    per_token_bias: bool
    #: the last axis of npu_dynamic_quant and of npu_swiglu must be a multiple of this
    row_multiple: int
    #: npu_quant_matmul can give its int32 products unscaled
    integer_output: bool


_COMMON = frozenset(
    {
        "npu_quantize",
        "npu_quant_matmul",
        "npu_trans_quant_param",
        "npu_dynamic_quant",
        "npu_format_cast",
        "npu_rms_norm",
        "npu_add_rms_norm",
        "npu_swiglu",
        "npu_apply_rotary_pos_emb",
        "npu_prompt_flash_attention",
        "npu_incre_flash_attention",
    }
)
_HALF = (torch.float16,)
_HALVES = (torch.float16, torch.bfloat16)
#: Shortest prompt that npu_prompt_flash_attention takes on a 310P with a mask
LEAST_PROMPT = 32
#: Head sizes of npu_apply_rotary_pos_emb and most heads of query and key together; the largest head size of npu_rotary_mul
PAIR_HEAD_DIMS, PAIR_HEADS, ROTARY_HEAD_DIM = (64, 128), 255, 894

CHIPS = (
    Chip(
        family="310P",
        socs=range(200, 206),
        dtypes=(torch.float16, torch.float32),
        operators=_COMMON,  # npu_rotary_mul has no ready-built kernel for it
        cast_weight_as="out, in",
        blocked_float_weights=True,
        causal_mask="full",
        prompt_multiples=(16, 128),
        prompt_attention=AttentionLimits(_HALF, batch=128, heads=256, length=65535, head_dim=512),
        decode_attention=AttentionLimits(
            _HALF,
            batch=256,
            heads=256,
            length=65536,
            head_dim=512,
            head_dim_multiple=16,
            group=32,
            grouped_head_dim=128,
        ),
        buffer_bytes=256 << 10,
        per_token_from=(9, 1),
        per_token_dtypes=_HALF,
        per_token_bias=False,
        row_multiple=32,
        integer_output=False,
    ),
    *(
        Chip(
            family=family,
            socs=socs,
            dtypes=(torch.float16, torch.bfloat16, torch.float32),
            operators=_COMMON | {"npu_rotary_mul"},
            cast_weight_as="in, out",
            blocked_float_weights=False,
            causal_mask="triangle",
            prompt_multiples=(),
            prompt_attention=AttentionLimits(_HALVES, batch=128, heads=256, length=65535, head_dim=512),
            decode_attention=AttentionLimits(_HALVES, batch=256, heads=256, length=65536, head_dim=512),
            buffer_bytes=192 << 10,
            per_token_from=(0, 0),
            per_token_dtypes=_HALVES,
            per_token_bias=True,
            row_multiple=2,
            integer_output=True,
        )
        for family, socs in (("910B", range(220, 226)), ("910_93", range(250, 257)))
    ),
)


def chip_of(soc: int, name: str) -> Chip:
    """The chip of soc number `soc`, which torch_npu calls `name`.

    Raises:
        DeviceError: the kit does not know this chip.
    """
    for chip in CHIPS:
        if soc in chip.socs:
            return chip
    known = ", ".join(chip.family for chip in CHIPS)
    raise DeviceError(
        "the chip {name} (soc {soc}) is unknown to the kit, which knows {known}. Use one of these or "
        "device: cpu, or add the chip with its operators to telechat_kit/backends/npu/chips.py.",
        name=name,
        soc=soc,
        known=known,
    )

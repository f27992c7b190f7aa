"""What each Ascend chip can do: the one table that decides which operator, dtype and format the backend uses.

Families, operators and their limits are those of the torch_npu operator documentation ("Atlas inference series
(accelerator card)" is 310P, "Atlas A2" is 910B, "Atlas A3" is 910_93), soc numbers those of torch_npu's own enum.
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

    def allow(self, query: torch.Tensor, key: torch.Tensor) -> bool:
        batch, heads, _, head_dim = query.shape
        sizes = batch <= self.batch and heads <= self.heads and head_dim <= self.head_dim
        return query.dtype in self.dtypes and sizes and key.shape[2] <= self.length


@dataclass(frozen=True)
class Chip:
    """One family of chips. `socs` are the values of `torch_npu.npu.get_soc_version()`."""

    family: str
    socs: range
    #: dtypes that a model's float tensors may have
    dtypes: tuple[torch.dtype, ...]
    #: operators documented for the family, of those that the backend can use
    operators: frozenset[str]
    #: how npu_quant_matmul wants a FRACTAL_NZ weight: cast as `[out, in]` and passed as its transposed view,
    #: or cast as `[in, out]`
    cast_weight_as: Literal["out, in", "in, out"]
    #: mask of npu_prompt_flash_attention: the whole `[T, T]`, or a fixed 2048 x 2048 triangle with sparse_mode 2
    causal_mask: Literal["full", "triangle"]
    prompt_attention: AttentionLimits
    decode_attention: AttentionLimits
    #: head sizes and the largest number of positions for npu_rotary_mul
    rotary_head_dims: frozenset[int]
    rotary_positions: int
    #: npu_quant_matmul takes `pertoken_scale` and npu_dynamic_quant exists
    per_token: bool
    #: npu_quant_matmul can give its int32 products unscaled
    integer_output: bool
    #: torch_npu's NPUGraph is documented for the family
    graphs: bool

    def allows_rotary(self, x: torch.Tensor, table: torch.Tensor) -> bool:
        """Whether npu_rotary_mul takes `x [B, heads, T, d]` with tables `[T, d]`: they must share their dtype."""
        batch, heads, length, head_dim = x.shape
        sizes = batch <= 1000 and heads <= 1000 and length <= self.rotary_positions
        return sizes and head_dim in self.rotary_head_dims and x.dtype == table.dtype


_COMMON = frozenset(
    {
        "npu_quantize",
        "npu_quant_matmul",
        "npu_trans_quant_param",
        "npu_format_cast",
        "npu_rms_norm",
        "npu_add_rms_norm",
        "npu_rotary_mul",
        "npu_prompt_flash_attention",
        "npu_incre_flash_attention",
    }
)
_HALF = (torch.float16,)
_HALVES = (torch.float16, torch.bfloat16)
_ANY_EVEN_BELOW_896 = frozenset(range(2, 896, 2))

CHIPS = (
    Chip(
        family="310P",
        socs=range(200, 206),
        dtypes=(torch.float16, torch.float32),
        operators=_COMMON,
        cast_weight_as="out, in",
        causal_mask="full",
        prompt_attention=AttentionLimits(_HALF, batch=128, heads=256, length=65535, head_dim=512),
        decode_attention=AttentionLimits(_HALF, batch=256, heads=256, length=65536, head_dim=512),
        # only the rules of just-in-time compiled operators are documented: d = 128, at most 1024 along an axis
        # that the tables are repeated over
        rotary_head_dims=frozenset({128}),
        rotary_positions=1024,
        per_token=False,
        integer_output=False,
        graphs=False,
    ),
    *(
        Chip(
            family=family,
            socs=socs,
            dtypes=(torch.float16, torch.bfloat16, torch.float32),
            operators=_COMMON | {"npu_dynamic_quant"},
            cast_weight_as="in, out",
            causal_mask="triangle",
            prompt_attention=AttentionLimits(_HALVES, batch=128, heads=256, length=65535, head_dim=512),
            decode_attention=AttentionLimits(_HALVES, batch=256, heads=256, length=65536, head_dim=512),
            rotary_head_dims=_ANY_EVEN_BELOW_896,
            rotary_positions=65536,
            per_token=True,
            integer_output=True,
            graphs=True,
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
        f"the chip {name} (soc {soc}) is unknown to the kit, which knows {known}. Use one of these or device: "
        "cpu, or add the chip with its operators to telechat_kit/backends/npu/chips.py."
    )

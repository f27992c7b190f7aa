"""Which linears of a block have their channels scaled together, and by what: the groups of outlier suppression.

A feeder gives the channels that others read: a norm; `up_proj`, for SwiGLU's product is linear in it; the values, for
attention mixes the positions of a value channel, never channels. Heads of a group read one value channel each, and so
share its scale.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from telechat_kit.quantization.blocks import Block

#: The kit's own method. The loss of W8A8 sits in down_proj's input, which no norm feeds: it smooths the values and
#: `up_proj` too, as m4 does.
BEST = "best"

#: Methods that smooth more than what norms feed
LINEAR_FEEDING = (BEST, "m4")


def smoothing_groups(block: Block, method: str) -> dict[str, list[str]]:
    """What feeds the linears that `method` smooths, norm or linear, by name -> names of those linears."""
    if method == "none":
        return {}
    return all_groups(block) if method in LINEAR_FEEDING else norm_groups(block)


def all_groups(block: Block) -> dict[str, list[str]]:
    """Every feeder that a method may smooth, by name -> names of the linears it feeds."""
    layout = block.layout
    linears = {layout.up: (layout.down,), layout.value: (layout.dense,)}
    return norm_groups(block) | _named(block, linears)


def norm_groups(block: Block) -> dict[str, list[str]]:
    """Name of each norm of the block -> names of the linears it feeds directly."""
    return _named(block, dict(zip(block.layout.norms, block.layout.shared_inputs, strict=True)))


def _named(block: Block, groups: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    return {
        block.prefix + feeder: [block.prefix + linear for linear in linears]
        for feeder, linears in groups.items()
    }


def value_rows(block: Block) -> Tensor:
    """Rows `[kv_heads * head_dim]` that hold the values, of the linear that they come from.

    key_value has, head after head, the rows of its key and then those of its value.
    """
    attention, layout = block.module.self_attention, block.layout
    weight = block.parameter(f"{block.prefix}{layout.value}.weight")
    rows = torch.arange(len(weight), device=weight.device)
    if layout.key != layout.value:
        return rows
    return rows.view(attention.kv_heads, 2, attention.head_dim)[:, 1].flatten()


def value_columns(block: Block) -> Tensor:
    """Which value channel each column of dense reads, `[H]`: all heads of a group those of one."""
    attention = block.module.self_attention
    channels = torch.arange(attention.kv_heads * attention.head_dim, device=attention.dense.weight.device)
    heads = channels.view(attention.kv_heads, 1, attention.head_dim)
    return heads.expand(-1, attention.n_head // attention.kv_heads, -1).flatten()


def by_channel(block: Block, feeder: str, columns: Tensor) -> Tensor:
    """`columns [..., in]` of what `feeder` feeds, by the channels of the feeder: `[..., channels]`.

    Heads that share their values become rows.
    """
    if not feeder.endswith(block.layout.value):
        return columns
    attention = block.module.self_attention
    heads = columns.unflatten(-1, (attention.kv_heads, -1, attention.head_dim))
    return heads.transpose(-3, -2).flatten(-2).flatten(0, -2)


def reader_scales(block: Block, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the `scales` of feeders, what each column of a linear is multiplied with, `[in]`, by linear."""
    groups, found = all_groups(block), dict[str, Tensor]()
    for feeder, scale in scales.items():
        shared = feeder.endswith(block.layout.value)
        columns = scale[value_columns(block).to(scale.device)] if shared else scale
        found |= dict.fromkeys(groups[feeder], columns)
    return found

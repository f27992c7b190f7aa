"""How charts and tables tell the linears of a block apart, under TeleChat's names and under Llama's."""

from collections.abc import Iterable
from dataclasses import dataclass

from telechat_kit.model.layout import LAYOUTS, TELECHAT, Layout

#: Marker and color of the four inputs of a block, in its order: attention, its output, feed-forward, its output
_MARKS = (("o", "#0072B2"), ("s", "#009E73"), ("^", "#CC79A7"), ("D", "#E69F00"))


@dataclass(frozen=True)
class BlockInput:
    """One of the four inputs of a block's linears: the kinds of those that read it, and how it is drawn."""

    kinds: tuple[str, ...]
    marker: str
    color: str

    @property
    def label(self) -> str:
        return ", ".join(self.kinds)


def block_and_kind(name: str) -> tuple[int, str]:
    """Number of the block and last part of the name of a linear.

    Example:
        >>> block_and_kind("transformer.h.3.mlp.up_proj"), block_and_kind("model.layers.0.self_attn.k_proj")
        ((3, 'up_proj'), (0, 'k_proj'))
    """
    parts = name.split(".")
    return next(int(part) for part in parts if part.isdigit()), parts[-1]


def block_inputs(names: Iterable[str]) -> list[BlockInput]:
    """The inputs of the blocks that these linears stand in.

    Example:
        >>> [each.label for each in block_inputs(["model.layers.0.self_attn.k_proj"])]
        ['q_proj, k_proj, v_proj', 'o_proj', 'gate_proj, up_proj', 'down_proj']
    """
    layout = _layout(names)
    attention, feed_forward = layout.shared_inputs
    readers = attention, (layout.dense,), feed_forward, (layout.down,)
    return [
        BlockInput(tuple(name.rpartition(".")[2] for name in group), *mark)
        for group, mark in zip(readers, _MARKS, strict=True)
    ]


def linear_kinds(names: Iterable[str]) -> list[str]:
    """All kinds of linears of these blocks, in their order."""
    return [kind for each in block_inputs(names) for kind in each.kinds]


def _layout(names: Iterable[str]) -> Layout:
    first = next(iter(names), "")
    return next((layout for layout in LAYOUTS if first.startswith(layout.blocks)), TELECHAT)

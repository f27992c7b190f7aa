"""Which heads the engine need not compute and cache, because their keys and values follow from those of others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telechat_kit.backends.cpu_kernels.layout import unpack_weight
from telechat_kit.model.int8 import W8A8Linear
from telechat_kit.model.repeated_heads import multiples, per_head, repeats

#: Relative difference of float values that are taken for multiples: they went through a few float32 operations
SAME = 1e-6


@dataclass(frozen=True)
class SharedHeads:
    """Groups of `size` neighbouring heads that have one key, and values that are multiples of the first one's."""

    size: int
    #: for each block, of each channel of what attention gives `[H]`; None: all are 1
    factors: list[Tensor | None]


def shared_heads(linears: Sequence[nn.Module], heads: int) -> SharedHeads:
    """The largest groups that `key_value` of every block has, given block by block; of size 1 if no heads are equal."""
    sizes = [size for size in range(heads, 0, -1) if heads % size == 0]
    for linear in linears:
        if sizes != [1]:
            sizes = [size for size in repeats(_keys(linear, heads)) if size in sizes]
    for size in sizes[:-1]:
        factors = [_value_factors(linear, heads, size) for linear in linears]
        if all(found is not None for found in factors):
            return SharedHeads(size, [None if f is None or (f == 1).all() else f for f in factors])
    return SharedHeads(1, [None] * len(linears))


def _keys(linear: nn.Module, heads: int) -> Tensor:
    """All numbers that the keys are made with, `[heads, ...]`."""
    return torch.cat([part[:, 0].flatten(1).double() for part in _per_head(linear, heads)], dim=1)


def _value_factors(linear: nn.Module, heads: int, size: int) -> Tensor | None:
    """What the values of each head are of those of their group's first head, `[H]`; None if no multiples."""
    rows, *scales = (part[:, 1].double() for part in _per_head(linear, heads))
    factors = multiples(rows, size, tolerance=0.0 if scales else SAME)
    if factors is not None and scales:
        first = scales[0][::size].repeat_interleave(size, dim=0)
        factors = factors * (scales[0] / first)[..., 0]
    return None if factors is None else factors.float().flatten()


def _per_head(linear: nn.Module, heads: int) -> list[Tensor]:
    """Rows of `key_value` with their bias, and what scales their products, `[heads, 2, head_dim, ...]` each."""
    if isinstance(linear, W8A8Linear):
        weight = unpack_weight(linear.weight, linear.out_features, linear.in_features)
        parts = [torch.cat([weight, linear.quant_bias[:, None]], dim=1), linear.deq_scale[:, None]]
    else:
        assert isinstance(linear, nn.Linear)
        columns = [linear.weight] if linear.bias is None else [linear.weight, linear.bias[:, None]]
        parts = [torch.cat(columns, dim=1)]
    return [per_head(part.detach(), heads) for part in parts]

"""Which heads the engine need not compute and cache, because their keys and values follow from those of others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telechat_kit.backends.cpu_kernels.layout import unpack_weight
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.model.repeated_heads import multiples, per_head, repeats

#: Parts of a head in key_value
KEY, VALUE = 0, 1


@dataclass(frozen=True)
class SharedHeads:
    """Groups of `size` neighbouring heads that have one key, and values that are multiples of the first one's."""

    size: int
    #: for each block, what cached values are multiplied with to be those of each head, `[H]`; None: nothing. Of an int8
    #: linear the products are cached before they are scaled: the scaled ones are then those of the linear bit for bit
    factors: list[Tensor | None]


def shared_heads(linears: Sequence[nn.Module], heads: int) -> SharedHeads:
    """The largest groups that `key_value` of every block has, given block by block; of size 1 if no heads are equal."""
    sizes = [size for size in range(heads, 0, -1) if heads % size == 0]
    for linear in linears:
        if sizes != [1]:
            sizes = [size for size in repeats(_numbers(linear, heads, KEY)) if size in sizes]
    for size in sizes[:-1]:
        found = [_value_factors(linear, heads, size) for linear in linears]
        if all(shared for shared, _ in found):
            return SharedHeads(size, [factors for _, factors in found])
    return SharedHeads(1, [None] * len(linears))


def _value_factors(linear: nn.Module, heads: int, size: int) -> tuple[bool, Tensor | None]:
    """Whether the values of heads follow from those of their group's first one, and how, `[H]`."""
    if size in repeats(_numbers(linear, heads, VALUE)):
        return True, None
    rows, *scales = (part[:, VALUE].double() for part in _per_head(linear, heads))
    factors = multiples(rows, size)
    if factors is not None and not scales and (factors.frexp().mantissa.abs() != 0.5).any():
        factors = None  # products of float rows follow exactly for powers of two alone
    if factors is not None and scales:
        factors = factors * scales[0][..., 0]
    return factors is not None, None if factors is None else factors.float().flatten()


def _numbers(linear: nn.Module, heads: int, part: int) -> Tensor:
    """All numbers that the keys, or the values, are made with, `[heads, ...]`."""
    return torch.cat([found[:, part].flatten(1).double() for found in _per_head(linear, heads)], dim=1)


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

"""Heads of `key_value` that repeat others: what a recast makes of grouped heads (GQA), which TeleChat has none of.

Their values may have been scaled since, channel by channel, for the columns of `dense` that read them.
"""

from torch import Tensor


def repeats(part: Tensor) -> list[int]:
    """Sizes of the groups that the heads of `part [heads, ...]` fall into, neighbours of one value; the largest first.

    1, which is always one of them, means that no heads are equal.
    """
    heads = part.shape[0]
    sizes = [size for size in range(heads, 0, -1) if heads % size == 0]
    return [size for size in sizes if (_grouped(part, size) == _grouped(part, size)[:, :1]).all()]


def multiples(rows: Tensor, size: int, tolerance: float = 0.0) -> Tensor | None:
    """Factor `[heads, rows]` of each row of the float64 `rows [heads, rows, in]` to that of its group's first head.

    None if some row is no multiple, to the `tolerance` relative to its largest entry. The factor to a row of zeros is 1.
    """
    groups = _grouped(rows, size)
    first = groups[:, :1]
    largest = first.abs().argmax(dim=-1, keepdim=True)
    reference = first.gather(-1, largest)
    factors = groups.gather(-1, largest.expand(-1, size, -1, -1)) / reference
    factors = factors.masked_fill(reference == 0, 1.0)
    error = (first * factors - groups).abs()
    held = (error <= tolerance * groups.abs().amax(dim=-1, keepdim=True)).all()
    return factors.reshape(rows.shape[:2]) if held else None


def per_head(key_value: Tensor, heads: int) -> Tensor:
    """`[2 * H, ...]`, head after head the rows of its key and then those of its value -> `[heads, 2, head_dim, ...]`."""
    return key_value.view(heads, 2, -1, *key_value.shape[1:])


def _grouped(part: Tensor, size: int) -> Tensor:
    return part.view(-1, size, *part.shape[1:])

"""The additive mask of attention from what callers of transformers give: padding, 4-d masks, packed sequences, caches."""

from typing import Any

import torch
from torch import Tensor


def additive_mask(
    attention_mask: Tensor | None,
    x: Tensor,
    start: int | Tensor,
    slots: int | None = None,
    packed: Tensor | None = None,
) -> Tensor | None:
    """Additive mask `[B, 1, T, S]`, or None where causality alone decides and the backend sees to it.

    Masked entries hold the lowest finite value, not -inf: rows of padding then attend uniformly instead of
    giving NaN.

    Args:
        attention_mask: `[B, start + T]`, 0 for padding; or `[B, 1, T, S]`, boolean or additive, taken as it is.
        x: the new positions, `[B, T, H]`.
        start: how many positions are in the cache.
        slots: S of a static cache, which gives all of its room as keys; None for those that give what they hold.
        packed: `[B, T]`, the number of the sequence that each position belongs to, where a row holds several.
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return _as_additive(attention_mask, x)
    length = x.shape[1]
    # while torch.compile looks nothing may depend on what a tensor holds
    padded = attention_mask is not None and (torch.compiler.is_compiling() or not bool(attention_mask.all()))
    if not padded and packed is None and slots is None and (start == 0 or length == 1):
        return None
    total: Any = start + length if slots is None else slots
    keys = torch.arange(total, device=x.device)
    queries = torch.arange(length, device=x.device) + start
    allowed = (keys[None] <= queries[:, None])[None, None]
    if padded and attention_mask is not None:
        known = attention_mask.to(x.device, torch.bool)[:, : len(keys)]
        missing = len(keys) - known.shape[1]
        allowed = allowed & torch.nn.functional.pad(known, (0, missing))[:, None, None]
    if packed is not None:
        allowed = allowed & (packed[:, None, :, None] == packed[:, None, None, :])
    return _as_additive(allowed, x)


def _as_additive(mask: Tensor, x: Tensor) -> Tensor:
    """A boolean mask, True where attention is allowed, in the dtype of `x`; an additive one in that dtype."""
    if mask.dtype != torch.bool:
        return mask.to(x.dtype)
    return torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(
        ~mask, torch.finfo(x.dtype).min
    )


def packed_sequences(position_ids: Tensor | None, attention_mask: Tensor | None, past: Any) -> Tensor | None:
    """`[B, T]`: which of several sequences in its row a position belongs to; None where rows hold one each.

    As in transformers: positions tell of it where they do not go on by one, and neither mask nor cache is given.
    """
    if position_ids is None or attention_mask is not None or past is not None:
        return None
    begins = torch.nn.functional.pad(position_ids.diff(dim=-1) != 1, (1, 0))
    if not torch.compiler.is_compiling() and not bool(begins.any()):
        return None
    return begins.cumsum(-1)

"""Smoothing scales of method best: SmoothQuant's, with signs that turn every channel's larger side the same way.

The static range of an input reaches from its lowest to its highest value. A channel of a feed-forward (or of the
values, or of a norm) may be negated for nothing, in the weights before and after it; when all the large values are
positive, the negative part of the range is small and the steps are finer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from telechat_kit.quantization.methods.smoothing import FLOOR, weight_maximum

#: Parts of the range that its smaller side may be given, against the larger one
SMALLER_SIDES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)


def balanced_scale(low: Tensor, high: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """Signed scale `[in]` of a group: `side^alpha / weight^(1 - alpha)`, the larger side of each channel positive.

    `side` is a channel's larger bound, or its smaller one over the part of the range that smaller sides get. Of
    `SMALLER_SIDES` it is the part with the least error of rounded activations: squared range times
    `sum over channels of scale^2 weight^2`.

    Args:
        low, high: bounds of each channel of the input, `[in]`; the range is taken to hold 0.
        weights: of the group's linears, each `[out_i, in]`.
        alpha: exponent of migration.
    """
    high, low = high.clamp(min=0), (-low).clamp(min=0)
    sign = torch.where(high >= low, 1.0, -1.0)
    larger, smaller = torch.maximum(high, low), torch.minimum(high, low)
    energy = torch.stack([weight.square().sum(dim=0) for weight in weights]).sum(dim=0)
    resistance = weight_maximum(weights).pow(1 - alpha)
    best, found = torch.inf, torch.ones_like(larger)
    for part in SMALLER_SIDES:
        scale = (torch.maximum(larger, smaller / part).pow(alpha) / resistance).clamp(min=FLOOR)
        span = (larger / scale).max() + (smaller / scale).max()
        error = float(span.square() * (scale.square() * energy).sum())
        if error < best:
            best, found = error, scale
    return found * sign

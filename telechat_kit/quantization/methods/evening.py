"""Scales of channels that a rotation mixes next: what is left then to choose is how large the whole rows are.

Turned by a Hadamard matrix, an input row `x / s` has its values about evenly in all channels, and so has every row of
the weight `W diag(s)`. The error of int8 is the product of both sizes, `|x / s|^2 |W diag(s)|^2`: of scales `s` with
`s^2 = sqrt(mean of x^2) / |column of W|` it is the least, by Cauchy and Schwarz. A token's own scale makes that a mean
over the tokens, each as it counts. A static range is as wide as the largest token wants, so the mean is over those
tokens that are the largest with the scales that it gives: found by a few rounds that let the larger ones count more
(the multiplicative weights of minimax and of optimal design, Titterington 1976).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

#: Rounds in which the largest tokens come to count the most, and how many of the largest are looked at
ROUNDS, LARGEST = 8, 2048

#: A channel that calibration hardly meets is taken for one of this part of the middle one's energy: other text may meet it.
#: Of one that no weight reads the same, but weights stay as they are
RARE, UNREAD = 1e-4, 1e-8


def scale_for_tokens(inputs: Sequence[Tensor], counts: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Scale `[in]` for tokens that have int8 scales of their own.

    Args:
        inputs: `[1, T, in]` by sample, which are to be divided by the scale and turned.
        counts: how much each token's error counts, `[T]` by sample.
        weight: `[out, in]` of the linear that reads them.
    """
    energies = [count @ x[0].square() for x, count in zip(inputs, counts, strict=True)]
    return _evened(torch.stack(energies).sum(0), weight)


def scale_for_range(inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Scale `[in]` for one static range over all `inputs [1, T, in]` of a linear with `weight [out, in]`."""
    scale = _evened(torch.stack([x[0].square().sum(0) for x in inputs]).sum(0), weight)
    sizes = torch.cat([(x[0] / scale).square().sum(1) for x in inputs])
    count, taken = sizes.topk(min(LARGEST, len(sizes)))
    squares = _tokens(inputs, taken).square()
    best, found = torch.inf, scale
    for _ in range(ROUNDS):
        scale = _evened(count @ squares, weight)
        sizes = squares @ scale.square().reciprocal()
        error = float(sizes.max() * (weight * scale).square().sum())
        if error < best:
            best, found = error, scale
        count = count * sizes / (count @ sizes)
    return found


def _tokens(inputs: Sequence[Tensor], taken: Tensor) -> Tensor:
    """`[len(taken), in]`: these tokens of all samples, counted through; no more than they are copied."""
    rows, start = inputs[0].new_empty(len(taken), inputs[0].shape[-1]), 0
    for x in inputs:
        own = (taken >= start) & (taken < start + x.shape[1])
        rows[own] = x[0][taken[own] - start]
        start += x.shape[1]
    return rows


def _evened(energy: Tensor, weight: Tensor) -> Tensor:
    """The scale for channels of this `energy [in]`; only its ratios matter, and the middle one is 1."""
    scale = (_no_less(energy, RARE) / _no_less(weight.square().sum(0), UNREAD)).pow(0.25)
    return scale / scale.median()


def _no_less(energy: Tensor, part: float) -> Tensor:
    """`energy [in]`, none of it below this `part` of the middle one of the channels that have any."""
    some = energy[energy > 0]
    return energy.clamp(min=part * float(some.median())) if len(some) else torch.ones_like(energy)

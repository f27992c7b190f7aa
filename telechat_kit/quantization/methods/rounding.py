"""Weights rounded with calibration: the error of each column is made up for by the columns not yet rounded.

GPTQ (Frantar et al., 2022) on the int8 grid of `packing.weight_scale`, whose scales stay as they are.
"""

import torch
from torch import Tensor

#: Added to the diagonal of the Hessian, relative to its mean
DAMPING = 0.01

#: Columns rounded one after the other; what more of them leave is taken to later ones by one product
COLUMNS = 16

#: Width of the strips in which a second moment is added up: of each strip only what lies right of the diagonal
STRIP = 384

#: Triangles of this size are inverted by substitution, larger ones by halves
TRIANGLE = 64


def add_moment(total: Tensor, x: Tensor) -> None:
    """Add `x^T x` of rows `x [T, in]` to the upper triangle of `total [in, in]`; below it stays what is there."""
    for start in range(0, x.shape[1], STRIP):
        stop = start + STRIP
        total[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])


def gptq_round(weight: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """Int8 values `[out, in]` of `weight [out, in]` on the grid of `scale [out, 1]`, in -127..127.

    Rows do not see each other: those of several linears that read the same input are rounded together.

    Args:
        hessian: `[in, in]`, mean of x x^T over the linear's (quantized) inputs x, weighted or not. Its upper triangle
            is read.

    The columns of the largest inputs are rounded first, so that the most columns are left to make up for them.
    """
    order = hessian.diagonal().argsort(descending=True)
    whole = hessian.triu() + hessian.triu(1).T
    factor = _inverse_factor(whole[order][:, order])
    remaining = weight.float().T[order]  # a copy, whose rows are columns of the weight
    rounded = torch.empty_like(remaining, dtype=torch.int8)
    _round_columns(remaining, rounded, scale.float()[:, 0], factor)
    result = torch.empty_like(rounded)
    result[order] = rounded
    return result.T.contiguous()


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor `[in, in]`, float32, of the inverse of the damped `hessian`, found in float64.

    With both axes reversed the lower factor of `hessian` is the inverse of what is looked for.
    """
    damped = hessian.double().flip(0, 1)
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal += DAMPING * mean if mean > 0 else 1.0
    lower = torch.linalg.cholesky(damped)
    _invert_lower(lower)
    return lower.flip(0, 1).float()


def _invert_lower(lower: Tensor) -> None:
    """Put the inverse of a lower triangle `[n, n]` in its place."""
    size = len(lower)
    if size <= TRIANGLE:
        unit = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, unit, upper=False))
        return
    half = size // 2
    first, second, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert_lower(first)
    _invert_lower(second)
    below.copy_(-(second @ below) @ first)


def _round_columns(remaining: Tensor, rounded: Tensor, scale: Tensor, factor: Tensor) -> None:
    """Round columns of a weight, given as rows `[n, out]`, one after the other into `rounded`.

    In `remaining` the error of each column over its diagonal entry takes its place.
    """
    if (count := len(remaining)) > COLUMNS:
        half = count // 2
        _round_columns(remaining[:half], rounded[:half], scale, factor[:half, :half])
        remaining[half:].addmm_(factor[:half, half:].T, remaining[:half], alpha=-1)
        _round_columns(remaining[half:], rounded[half:], scale, factor[half:, half:])
        return
    for column, diagonal in enumerate(factor.diagonal().tolist()):
        left = remaining[column]
        steps = (left / scale).round_().clamp_(-127, 127)
        rounded[column] = steps
        left.sub_(steps.mul_(scale)).div_(diagonal)
        remaining[column + 1 :].addr_(factor[column, column + 1 :], left, alpha=-1)

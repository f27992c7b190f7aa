"""Weights rounded with calibration: the error of each column is made up for by the columns not yet rounded.

GPTQ (Frantar et al., 2022) on the int8 grid of `packing.weight_scale`, whose scales stay as they are.
"""

import torch
from torch import Tensor

#: Added to the diagonal of the Hessian, relative to its mean
DAMPING = 0.01

#: Columns rounded before what they leave is taken to all later ones
COLUMNS = 128


def gptq_round(weight: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """Int8 values `[out, in]` of `weight [out, in]` on the grid of `scale [out, 1]`, in -127..127.

    Args:
        hessian: `[in, in]`, mean of x x^T over the linear's (quantized) inputs x, weighted or not.

    The columns of the largest inputs are rounded first, so that the most columns are left to make up for them.
    """
    order = hessian.diagonal().argsort(descending=True)
    remaining = weight.float()[:, order]
    factor = _inverse_factor(hessian[order][:, order])
    rounded = torch.empty_like(remaining)
    for start in range(0, weight.shape[1], COLUMNS):
        span = slice(start, start + COLUMNS)
        rounded[:, span], errors = _round_columns(remaining[:, span], scale.float(), factor[span, span])
        remaining[:, start + COLUMNS :] -= errors @ factor[span, start + COLUMNS :]
    result = torch.empty_like(rounded)
    result[:, order] = rounded
    return result.to(torch.int8)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor `[in, in]`, float32, of the inverse of the damped `hessian`, found in float64."""
    damped = hessian.double()
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal += DAMPING * mean if mean > 0 else 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _round_columns(weight: Tensor, scale: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 values of some columns, one after the other, and the error of each over its diagonal entry."""
    weight, values, errors = weight.clone(), torch.empty_like(weight), torch.empty_like(weight)
    for column in range(weight.shape[1]):
        steps = torch.round(weight[:, column] / scale[:, 0]).clamp(-127, 127)
        error = (weight[:, column] - steps * scale[:, 0]) / factor[column, column]
        weight[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
        values[:, column], errors[:, column] = steps, error
    return values, errors

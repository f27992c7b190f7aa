"""Outlier suppression m3: AWQ's search for the scale under which a group's int8 weights lose least.

Channels with large activations get their weights enlarged before these are rounded. How much, is tried out on
one sample (Lin et al., "AWQ: Activation-aware Weight Quantization", 2023, in msModelSlim's form).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from telechat_kit.quantization.int8.packing import fake_quantize_weight

#: Exponents that are tried: 0, 1/20 ... 19/20
RATIOS = 20

#: Smallest scale before both ends are balanced
FLOOR = 1e-4


def activation_aware_scale(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Scale `[in]` of least loss for the group of `weights`, each `[out_i, in]`; the smallest ratio wins a tie.

    Args:
        x: the first sample at the group's input, `[..., in]`.
    """
    best, scale = torch.inf, x.new_ones(x.shape[-1])
    for loss, candidate in _trials(x, weights):
        if loss < best:
            best, scale = loss, candidate
    return scale


def activation_aware_losses(x: Tensor, weights: Sequence[Tensor]) -> list[float]:
    """The group's error on `x` for each of the ratios, in their order."""
    return [loss for loss, _ in _trials(x, weights)]


def _trials(x: Tensor, weights: Sequence[Tensor]) -> Iterator[tuple[float, Tensor]]:
    """Loss and scale `[in]` of every ratio."""
    tokens = x.reshape(-1, x.shape[-1])
    weights = [weight.to(x.dtype) for weight in weights]
    targets = [functional.linear(tokens, weight) for weight in weights]
    mean = tokens.abs().mean(dim=0)
    for step in range(RATIOS):
        scale = mean.pow(step / RATIOS).clamp(min=FLOOR)
        scale = scale / (scale.max() * scale.min()).sqrt()
        yield sum(_error(tokens, w, scale, y) for w, y in zip(weights, targets, strict=True)), scale


def _error(x: Tensor, weight: Tensor, scale: Tensor, target: Tensor) -> float:
    """Mean squared error of `x weight^T` when `weight * scale` is rounded; biases do not matter to it."""
    quantized = fake_quantize_weight(weight * scale)
    return functional.mse_loss(functional.linear(x / scale, quantized), target).item()

"""Scales before a rotation: the least size of rows and weights together, whoever shared the sizes out before."""

import pytest
import torch
from torch import Tensor

from telechat_kit.quantization.methods.evening import scale_for_range, scale_for_tokens


def sample(seed: int, sink: float = 1.0) -> Tensor:
    """Tokens `[1, 60, 24]` of channels of very different sizes; one token has one channel `sink` times as large."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 60, 24, generator=generator) * torch.logspace(-2, 1, 24)
    x[0, 0, 5] *= sink
    return x


WEIGHT = torch.randn(16, 24, generator=torch.Generator().manual_seed(9)) * torch.logspace(1, -1, 24)
COUNTS = [torch.rand(60, generator=torch.Generator().manual_seed(seed)) + 0.1 for seed in (3, 4)]


def mean_error(inputs: list[Tensor], scale: Tensor) -> float:
    sizes = [count @ (x[0] / scale).square().sum(1) for x, count in zip(inputs, COUNTS, strict=True)]
    return float(sum(sizes) * (WEIGHT * scale).square().sum())


def range_error(inputs: list[Tensor], scale: Tensor) -> float:
    sizes = torch.cat([(x[0] / scale).square().sum(1) for x in inputs])
    return float(sizes.max() * (WEIGHT * scale).square().sum())


def test_no_other_scale_has_a_smaller_error_in_the_mean_of_the_tokens() -> None:
    inputs = [sample(0), sample(1)]
    scale = scale_for_tokens(inputs, COUNTS, WEIGHT)
    least = mean_error(inputs, scale)
    assert least < 0.2 * mean_error(inputs, torch.ones(24))
    for seed in range(20):
        other = scale * torch.randn(24, generator=torch.Generator().manual_seed(seed)).mul(0.1).exp()
        assert mean_error(inputs, other) > least


@pytest.mark.parametrize("sink", [1.0, 1000.0])
def test_the_largest_token_decides_where_there_is_one_range(sink: float) -> None:
    inputs = [sample(0, sink), sample(1)]
    scale = scale_for_range(inputs, WEIGHT)
    assert range_error(inputs, scale) < range_error(inputs, scale_for_tokens(inputs, COUNTS, WEIGHT))
    assert range_error(inputs, scale) < 0.5 * range_error(inputs, torch.ones(24))


def test_sizes_that_two_linears_share_otherwise_are_taken_out_again() -> None:
    inputs, factors = [sample(0), sample(1)], torch.ones(24)
    factors[[3, 17]] = 32
    harder, weight = [x * factors for x in inputs], WEIGHT / factors
    for plain, scale in (
        (scale_for_range(inputs, WEIGHT), scale_for_range(harder, weight)),
        (scale_for_tokens(inputs, COUNTS, WEIGHT), scale_for_tokens(harder, COUNTS, weight)),
    ):
        found = scale / factors / plain
        torch.testing.assert_close(found, found[:1].expand(24), rtol=1e-3, atol=0)


def test_channels_that_nothing_reaches_or_reads_keep_a_finite_scale() -> None:
    inputs, weight = [sample(0), sample(1)], WEIGHT.clone()
    for x in inputs:
        x[..., 4:18] = 0
    weight[:, 6] = 0
    for scale in (scale_for_range(inputs, weight), scale_for_tokens(inputs, COUNTS, weight)):
        assert torch.isfinite(scale).all()
        assert 1e-3 < float(scale.min()) <= float(scale.max()) < 1e3

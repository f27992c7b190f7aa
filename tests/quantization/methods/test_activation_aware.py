"""AWQ's search (m3): what it tries, what its loss measures, and which scale wins."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from telechat_kit.errors import DataError
from telechat_kit.quantization import smoothing_scale
from telechat_kit.quantization.int8.packing import fake_quantize_weight
from telechat_kit.quantization.methods.activation_aware import activation_aware_losses, activation_aware_scale
from telechat_kit.quantization.methods.smoothing import GroupStatistics, scale_from_statistics


def group(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Input `[2, 24, 16]` with two outlier channels, weights `[12, 16]` and `[20, 16]`."""
    generator = torch.Generator().manual_seed(seed)
    x, first, second = (
        torch.randn(shape, generator=generator) for shape in ((2, 24, 16), (12, 16), (20, 16))
    )
    x[..., 3] *= 40
    x[..., 8] *= 15
    return x, first, second


def test_ratio_0_leaves_the_weights_as_they_are() -> None:
    x, weight, _ = group()
    plain = functional.mse_loss(
        functional.linear(x, fake_quantize_weight(weight)), functional.linear(x, weight)
    )
    losses = activation_aware_losses(x, [weight])
    assert len(losses) == 20
    assert losses[0] == pytest.approx(plain.item(), rel=1e-4)


def test_ratio_a_half_scales_by_the_balanced_root_of_the_mean() -> None:
    x = torch.tensor([[1.0, 16.0], [-1.0, -16.0], [1.0, 16.0]])  # roots 1 and 4, balanced 1/2 and 2
    weight = torch.tensor([[0.3, 0.7], [-0.9, 0.11], [0.5, 0.013]])
    scale = torch.tensor([0.5, 2.0])
    expected = functional.mse_loss(
        functional.linear(x / scale, fake_quantize_weight(weight * scale)), functional.linear(x, weight)
    )
    assert activation_aware_losses(x, [weight])[10] == pytest.approx(expected.item(), rel=1e-4)


def test_the_loss_of_a_group_is_the_sum_over_its_linears() -> None:
    x, first, second = group()
    both, one, other = (activation_aware_losses(x, w) for w in ([first, second], [first], [second]))
    assert both == pytest.approx([a + b for a, b in zip(one, other, strict=True)])


@pytest.mark.parametrize("seed", range(4))
def test_the_ratio_of_least_loss_wins(seed: int) -> None:
    x, first, second = group(seed)
    losses = activation_aware_losses(x, [first, second])
    scale = activation_aware_scale(x, [first, second])
    ratio = min(range(20), key=losses.__getitem__) / 20
    assert ratio > 0  # outlier channels gain by it
    mean = x.abs().mean(dim=(0, 1)).pow(ratio)
    torch.testing.assert_close(scale, mean / (mean.max() * mean.min()).sqrt())


def test_only_the_first_sample_counts() -> None:
    x, first, second = group()
    others = [torch.full_like(x, 3), x.flip(-1)]
    scale = smoothing_scale([x, *others], [first, second], "m3")
    assert torch.equal(scale, activation_aware_scale(x, [first, second]))
    assert not torch.equal(scale, smoothing_scale([*others, x], [first, second], "m3"))


def test_a_dead_channel_gets_the_smallest_scale_and_an_all_zero_input_none() -> None:
    x, weight, _ = group()
    x[..., 5] = 0
    scale = activation_aware_scale(x, [weight])
    assert scale.argmin() == 5
    assert (scale > 0).all()
    assert torch.equal(activation_aware_scale(torch.zeros(3, 16), [weight]), torch.ones(16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_another_dtype_are_taken(dtype: torch.dtype) -> None:
    x, weight, _ = group()
    scale = activation_aware_scale(x, [weight.to(dtype)])
    assert scale.dtype == torch.float32
    assert torch.isfinite(scale).all()


def test_statistics_without_the_first_sample_are_refused() -> None:
    x, weight, _ = group()
    statistics = GroupStatistics()
    statistics.update(x)
    with pytest.raises(DataError, match="m3 needs the first sample"):
        scale_from_statistics(statistics, [weight], "m3")

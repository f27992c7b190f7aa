"""Outlier suppression: golden statistics, losses and folded weights of msModelSlim, invariance, what is refused."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.quantization.methods.smoothing import (
    GroupStatistics,
    fold_smoothing,
    scale_from_statistics,
    search_losses,
    smoothing_scale,
    weight_maximum,
)

GOLDEN = Path(__file__).parents[2] / "data" / "quantization"
CASES = sorted(path.stem for path in GOLDEN.glob("smooth_*.json"))
PIPELINES = sorted(path.stem for path in GOLDEN.glob("pipe_*_m[12]_*.json"))
METHODS = ["m1", "m2", "m3", "m4"]
GOLDEN_METHODS = ["m1", "m2", "m4"]
STATISTICS = {
    "maximum": "max",
    "minimum": "min",
    "shift": "shift",
    "thres_t": "thres_t",
    "thres_c": "thres_c",
    "std": "std",
    "absolute_maximum": "smooth_scale",
}


@dataclass(frozen=True)
class Case:
    """A norm-fed group of the golden data."""

    tensors: dict[str, Tensor]
    known: dict[str, Any]
    samples: list[Tensor]
    weights: list[Tensor]
    bias: list[Tensor | None]

    def statistics(self) -> GroupStatistics:
        statistics = GroupStatistics(keep_first=True)
        for sample in self.samples:
            statistics.update(sample)
        return statistics


def golden(case: str) -> Case:
    tensors, known = (
        load_file(GOLDEN / f"{case}.safetensors"),
        json.loads((GOLDEN / f"{case}.json").read_text()),
    )
    linears = range(len(known["outs"]))
    return Case(
        tensors,
        known,
        [tensors[f"in.sample{i}"] for i in range(known["samples"])],
        [tensors[f"in.W{i}"] for i in linears],
        [tensors.get(f"in.bias{i}") for i in linears],
    )


def assert_within_an_ulp(actual: Tensor, expected: Tensor) -> None:
    """Equal but for what the square roots of two vector libraries differ by."""
    torch.testing.assert_close(actual, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_statistics_are_the_reference_s(case: str) -> None:
    group = golden(case)
    statistics = group.statistics()
    for ours, theirs in STATISTICS.items():
        assert torch.equal(getattr(statistics, ours), group.tensors[f"stat.{theirs}"]), ours


@pytest.mark.parametrize("method", GOLDEN_METHODS)
@pytest.mark.parametrize("case", CASES)
def test_folded_norm_and_weights_are_the_reference_s(case: str, method: str) -> None:
    group = golden(case)
    scale = smoothing_scale(group.samples, group.weights, method, group.bias)
    norm, weights = fold_smoothing(group.tensors["in.norm_weight"], group.weights, scale)
    assert_within_an_ulp(norm, group.tensors[f"{method}.norm_weight"])
    for i, weight in enumerate(weights):
        assert_within_an_ulp(weight, group.tensors[f"{method}.W{i}"])


@pytest.mark.parametrize("case", [case for case in CASES if golden(case).known["m2_branch"] == "search"])
def test_losses_of_the_search_and_its_winner_are_the_reference_s(case: str) -> None:
    group = golden(case)
    losses = torch.tensor(search_losses(group.statistics(), group.weights, group.bias), dtype=torch.float64)
    tolerance = 2e-4 if len(group.weights) == 3 else 4e-6
    torch.testing.assert_close(losses, group.tensors["m2.search_losses"], rtol=tolerance, atol=0)
    # thresholds that clip nothing differ by the rounding of sums, whose order is the processor's
    assert losses[group.known["m2_best_index"]] <= losses.min() * (1 + tolerance)


@pytest.mark.parametrize("case", CASES)
def test_search_happens_where_the_reference_searches(case: str) -> None:
    group = golden(case)
    statistics = group.statistics()
    searched = bool(3 * statistics.std < statistics.thres_t)
    assert searched == (group.known["m2_branch"] == "search")
    equal = torch.equal(
        scale_from_statistics(statistics, group.weights, "m2", group.bias),
        scale_from_statistics(statistics, group.weights, "m1", group.bias),
    )
    assert equal != searched


@pytest.mark.parametrize("case", PIPELINES)
def test_norms_of_a_model_are_the_reference_s(case: str) -> None:
    """The models' own groups, one of them in bfloat16, from the reference's statistics and first sample."""
    tensors, known = (
        load_file(GOLDEN / f"{case}.safetensors"),
        json.loads((GOLDEN / f"{case}.json").read_text()),
    )
    model = load_file(GOLDEN / f"model_{case.split('_')[1]}.safetensors")
    for norm, linears in known["groups"].items():
        statistics = GroupStatistics(keep_first=True)
        statistics.update(tensors[f"anti.{norm}.group_input0"])
        for ours, theirs in STATISTICS.items():
            setattr(statistics, ours, tensors[f"anti.{norm}.stat.{theirs}"])
        dtype = statistics.shift.dtype
        weights = [model[f"{linear}.weight"].to(dtype) for linear in linears]
        scale = scale_from_statistics(statistics, weights, known["anti_method"])
        norm_weight, _ = fold_smoothing(model[f"{norm}.weight"].to(dtype), weights, scale)
        assert_within_an_ulp(norm_weight, tensors[f"anti.{norm}.norm_weight"])


@pytest.mark.parametrize("method", METHODS)
def test_folding_does_not_change_what_norm_and_linears_compute(method: str) -> None:
    group = golden("smooth_02")
    scale = smoothing_scale(group.samples, group.weights, method, group.bias)
    ones = torch.ones_like(scale)
    norm, weights = fold_smoothing(ones, group.weights, scale)
    for before, after in zip(group.weights, weights, strict=True):
        expected = functional.linear(group.samples[0], before)
        torch.testing.assert_close(
            functional.linear(group.samples[0] * norm, after), expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_folding_keeps_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    norm, weights = fold_smoothing(
        torch.ones(4, dtype=dtype), [torch.ones(3, 4, dtype=dtype)], torch.full((4,), 0.3)
    )
    assert norm.dtype == weights[0].dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_another_dtype_than_the_samples_are_taken(method: str) -> None:
    group = golden("smooth_02")
    weights = [weight.bfloat16() for weight in group.weights]
    bias = [None if b is None else b.bfloat16() for b in group.bias]
    scale = smoothing_scale(group.samples, weights, method, bias)
    assert scale.dtype == torch.float32
    assert torch.isfinite(scale).all()


def test_smoothing_evens_out_an_outlier_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 16, generator=generator), torch.randn(8, 16, generator=generator)
    x[:, 3] *= 100
    scale = smoothing_scale([x], [weight], "m1")
    maxima = (x / scale).abs().amax(dim=0)
    assert maxima.max() / maxima.min() < 0.2 * x.abs().amax() / x.abs().amax(dim=0).min()
    # SmoothQuant with alpha 0.5 gives activation and weight of a channel the same maximum
    torch.testing.assert_close(maxima, (weight * scale).abs().amax(dim=0))


@pytest.mark.parametrize("method", METHODS)
def test_zero_channels_give_a_finite_positive_scale(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(32, 8, generator=generator), torch.randn(6, 8, generator=generator)
    x[:, 0], weight[:, 1] = 0, 0
    scale = smoothing_scale([x * torch.linspace(1, 40, 8)], [weight], method)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_a_constant_input_gives_a_finite_positive_scale(method: str, value: float) -> None:
    scale = smoothing_scale([torch.full((4, 8), value)], [torch.ones(3, 8)], method)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()


def test_weight_maximum_spans_the_group_and_has_a_floor() -> None:
    first, second = torch.tensor([[1.0, -4.0, 0.0]]), torch.tensor([[-2.0, 3.0, 0.0]])
    assert weight_maximum([first, second]).tolist() == pytest.approx([2.0, 4.0, 1e-5])


def test_the_first_sample_is_kept_only_on_request() -> None:
    x = torch.randn(2, 3, 4)
    for keep in (True, False):
        statistics = GroupStatistics(keep_first=keep)
        statistics.update(x)
        assert (statistics.first is not None) == keep


def test_the_search_without_the_first_sample_is_refused() -> None:
    group = golden("smooth_02")
    statistics = group.statistics()
    statistics.first = None
    with pytest.raises(DataError, match="keep_first"):
        scale_from_statistics(statistics, group.weights, "m2")


def test_unknown_methods_and_unusable_samples_are_refused() -> None:
    weights = [torch.ones(2, 2)]
    with pytest.raises(ParameterError, match="m1, m2, m3, m4"):
        smoothing_scale([torch.ones(1, 2)], weights, "m9")
    with pytest.raises(DataError, match="no activations"):
        smoothing_scale([], weights, "m1")
    with pytest.raises(DataError, match="not finite"):
        smoothing_scale([torch.tensor([[1.0, float("nan")]])], weights, "m1")

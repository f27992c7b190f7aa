"""Activation ranges: golden vectors of msModelSlim sample by sample, edge inputs, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.quantization.int8.observers import (
    EPS,
    HistogramObserver,
    MinMaxObserver,
    activation_range,
    affine_parameters,
    fake_quantize,
    make_observer,
)

GOLDEN = Path(__file__).parents[2] / "data" / "quantization"
CASES = sorted(path.stem for path in GOLDEN.glob("observer_0*.json"))
EDGE_INPUTS = ["zeros", "const_neg", "const_pos", "small_range", "all_pos"]
METHODS = [1, 2, 3]


def golden(case: str) -> tuple[dict[str, Tensor], float]:
    """Tensors of a case and the score that the automatic choice looks at."""
    return load_file(GOLDEN / f"{case}.safetensors"), json.loads((GOLDEN / f"{case}.json").read_text())[
        "range_param"
    ]


def samples(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[f"in.sample{i}"] for i in range(sum(name.startswith("in.sample") for name in tensors))]


@pytest.mark.parametrize("act_method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_scale_and_offset_after_each_sample_are_the_reference_s(case: str, act_method: int) -> None:
    tensors, score = golden(case)
    observer = make_observer(act_method, score)
    for i, sample in enumerate(samples(tensors)):
        observer.update(sample)
        scale, offset = observer.parameters()
        assert torch.equal(scale, tensors[f"act{act_method}.running_scale{i}"])
        assert torch.equal(offset, tensors[f"act{act_method}.running_offset{i}"])


@pytest.mark.parametrize("act_method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_range_and_fake_quantized_sample_are_the_reference_s(case: str, act_method: int) -> None:
    tensors, score = golden(case)
    observer = make_observer(act_method, score)
    for sample in samples(tensors):
        observer.update(sample)
    low, high = observer.range()
    scale, offset = observer.parameters()
    assert low.item() == tensors[f"act{act_method}.min"].item()
    assert high.item() == tensors[f"act{act_method}.max"].item()
    quantized = fake_quantize(samples(tensors)[-1], scale, offset)
    assert torch.equal(quantized, tensors[f"act{act_method}.fakequant_last"])
    integers = torch.round(quantized / scale + offset).to(torch.int8)
    assert torch.equal(integers, tensors[f"act{act_method}.int_last"])


@pytest.mark.parametrize("case", CASES)
def test_automatic_choice_is_the_reference_s(case: str) -> None:
    choice = json.loads((GOLDEN / f"{case}.json").read_text())["auto_choice"]
    expected = {"histogram": HistogramObserver, "minmax": MinMaxObserver}[choice]
    assert isinstance(make_observer(3, golden(case)[1]), expected)


def test_automatic_choice_takes_an_unknown_score_for_0_and_50_for_low() -> None:
    assert isinstance(make_observer(3, None), HistogramObserver)
    assert isinstance(make_observer(3, 50.0), HistogramObserver)
    assert isinstance(make_observer(3, 50.1), MinMaxObserver)


@pytest.mark.parametrize("act_method", [1, 2])
@pytest.mark.parametrize("name", EDGE_INPUTS)
def test_edge_inputs_give_the_reference_s_range(name: str, act_method: int) -> None:
    tensors = load_file(GOLDEN / "observer_edge.safetensors")
    observer = make_observer(act_method, None)
    observer.update(tensors[f"in.{name}"])
    observer.update(tensors[f"in.{name}"])
    scale, offset = observer.parameters()
    assert torch.equal(torch.stack(observer.range()), tensors[f"{name}.act{act_method}.minmax"])
    assert torch.equal(scale, tensors[f"{name}.act{act_method}.scale"])
    assert torch.equal(offset, tensors[f"{name}.act{act_method}.offset"])


@pytest.mark.parametrize("act_method", METHODS)
def test_activation_range_is_that_of_the_observer(act_method: int) -> None:
    tensors, score = golden("observer_08")
    scale, offset = activation_range(samples(tensors), act_method, score)
    assert torch.equal(scale, tensors[f"act{act_method}.scale"])
    assert torch.equal(offset, tensors[f"act{act_method}.offset"])


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (2.0, 5.0), (-5.0, -2.0), (0.0, 0.0), (-1e-9, 1e-9)])
def test_zero_is_on_the_grid_of_every_range(low: float, high: float) -> None:
    scale, offset = affine_parameters(torch.tensor(low), torch.tensor(high))
    assert scale >= EPS
    assert -128 <= offset <= 127
    assert fake_quantize(torch.zeros(1), scale, offset).item() == 0


def test_fake_quantization_errs_by_half_a_step_inside_the_range() -> None:
    x = torch.linspace(-3, 5, 1001)
    scale, offset = activation_range([x], 1)
    assert (fake_quantize(x, scale, offset) - x).abs().max() <= scale * 0.5001


def test_histogram_cuts_off_a_rare_outlier_that_min_max_keeps() -> None:
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 10
    x[0] = 300
    histogram, min_max = HistogramObserver(), MinMaxObserver()
    for observer in (histogram, min_max):
        observer.update(x)
    assert min_max.range()[1] == 300
    assert 30 < histogram.range()[1] < 150
    assert histogram.range()[0] < -30


@pytest.mark.parametrize("act_method", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fake_quantization_keeps_the_dtype_of_the_sample(dtype: torch.dtype, act_method: int) -> None:
    x = (torch.randn(64, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    assert fake_quantize(x, *activation_range([x], act_method)).dtype == dtype


def test_histogram_takes_a_range_that_grows_beyond_all_bounds() -> None:
    observer = HistogramObserver()
    for peak in (1e-30, 1.0, 1e30):
        observer.update(torch.tensor([0.0, peak]))
    low, high = observer.range()
    assert low == 0
    assert 0.9e30 < high < 1.1e30


@pytest.mark.parametrize("observer", [MinMaxObserver(), HistogramObserver()])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_activations_that_are_not_finite_are_refused(
    observer: MinMaxObserver | HistogramObserver, value: float
) -> None:
    with pytest.raises(DataError, match="not finite"):
        observer.update(torch.tensor([1.0, value]))


@pytest.mark.parametrize("act_method", [1, 2])
def test_a_range_without_samples_is_refused(act_method: int) -> None:
    with pytest.raises(DataError, match="no activations"):
        activation_range([], act_method)
    with pytest.raises(DataError, match="empty"):
        activation_range([torch.zeros(0, 4)], act_method)


@pytest.mark.parametrize("act_method", [0, 4, "1"])
def test_an_unknown_method_is_refused_with_the_known_ones(act_method: int) -> None:
    with pytest.raises(ParameterError, match=r"1 \(min-max\), 2 \(histogram\) or 3 \(automatic\)"):
        make_observer(act_method, None)

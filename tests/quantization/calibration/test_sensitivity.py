"""Sensitivity of linears: golden scores and orders of msModelSlim, limits of the score."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from telechat_kit.errors import DataError
from telechat_kit.quantization.calibration.sensitivity import SensitivityScore, rank, sensitivity_score

GOLDEN = Path(__file__).parents[2] / "data" / "quantization"
CASES = ["disable_00", "disable_01"]
OBSERVED = sorted(path.stem for path in GOLDEN.glob("observer_0*.json"))
RANKED = CASES + sorted(path.stem for path in GOLDEN.glob("pipe_*.json"))


def facts(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{case}.json").read_text())


def layer_inputs(case: str) -> dict[str, list[Tensor]]:
    """Inputs of every layer of a case that the data holds; layers that share an input point to the same list."""
    tensors, known = load_file(GOLDEN / f"{case}.safetensors"), facts(case)
    stored = {
        name: [tensors[f"in.sample{t}.layer{name[2:]}"] for t in range(known["scored_samples"])]
        for name in known["layers"]
        if f"in.sample0.layer{name[2:]}" in tensors
    }
    return {**stored, **{name: stored[other] for name, other in known["shared_input"].items()}}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_the_reference_s(case: str) -> None:
    inputs = layer_inputs(case)
    assert len(inputs) == len(facts(case)["layers"]) - 1  # all but the head
    for name, samples in inputs.items():
        assert sensitivity_score(samples) == facts(case)["layers"][name]["score"]


@pytest.mark.parametrize("case", OBSERVED)
def test_score_of_an_observed_input_is_the_reference_s(case: str) -> None:
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    count = sum(name.startswith("in.sample") for name in tensors)
    samples = [tensors[f"in.sample{i}"] for i in range(min(count, 5))]
    assert sensitivity_score(samples) == facts(case)["range_param"]


@pytest.mark.parametrize("case", CASES)
def test_the_first_linears_of_the_order_fall_back(case: str) -> None:
    scores = {name: layer["score"] for name, layer in facts(case)["layers"].items() if name != "head"}
    for level, fallback in facts(case)["fallback"].items():
        assert sorted({"head", *rank(scores)[: int(level[1:])]}) == fallback


@pytest.mark.parametrize("case", [case for case in RANKED if case.startswith("pipe")])
def test_order_of_a_model_s_linears_is_the_reference_s(case: str) -> None:
    assert rank(facts(case)["scores"]) == facts(case)["score_order"]


def test_ties_keep_the_order_of_the_forward_pass() -> None:
    assert rank({"b": 1.0, "a": 2.0, "d": 1.0, "c": 2.0}) == ["a", "c", "b", "d"]


def test_score_of_one_outlier_channel_tends_to_the_root_of_the_channels() -> None:
    x = torch.randn(32, 256, generator=torch.Generator().manual_seed(0)) * 1e-3
    x[:, 7] = 100.0
    assert sensitivity_score([x]) == pytest.approx(math.sqrt(256), rel=0.01)


def test_shape_in_front_of_the_channels_does_not_matter() -> None:
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    assert sensitivity_score([x]) == sensitivity_score([x.reshape(6, 8)])


def test_constant_inputs_have_a_score() -> None:
    assert sensitivity_score([torch.zeros(4, 8)]) == 0.0
    assert sensitivity_score([torch.full((4, 8), 2.0)]) == math.inf


def test_a_score_without_finite_samples_is_refused() -> None:
    with pytest.raises(DataError, match="no activations"):
        SensitivityScore().value()
    with pytest.raises(DataError, match="not finite"):
        sensitivity_score([torch.tensor([[1.0, float("nan")]]), torch.ones(1, 2)])

"""Level auto: what it measures is the divergence of the models themselves, and what it chooses is within the budget."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from telechat_kit import load_model
from telechat_kit.errors import ParameterError
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization import Calibration, QuantizeRecord, Recipe, quantize
from telechat_kit.quantization.blocks import embed, load_block
from telechat_kit.quantization.levels import head_divergence as divergence
from telechat_kit.quantization.levels import measured_levels
from telechat_kit.quantization.levels.fallback import partners
from telechat_kit.quantization.levels.head_divergence import kl_divergences
from telechat_kit.quantization.levels.measured_levels import Budget, MeasuredLevel, parse_budget
from telechat_kit.texts import load_text
from telechat_kit.token_samples import token_blocks

SAMPLES, TOKENS = 3, 48


def auto(source: Path, target: Path, budget: str, **changes: Any) -> QuantizeRecord:
    """Quantize at level auto; measure on two of three samples."""
    recipe = Recipe("auto", budget, budget_samples=2, anti_outlier="none")
    calibration = Calibration("pydoc_data.topics", calibration_samples=SAMPLES, calibration_tokens=TOKENS)
    return quantize(source, target, replace(recipe, **changes), calibration)


def figures(record: QuantizeRecord) -> MeasuredLevel:
    assert record.measured is not None
    return record.measured


def calibration_ids(source: Path, count: int) -> list[Tensor]:
    """The first calibration samples of `auto`."""
    text = load_text("pydoc_data.topics")
    blocks = token_blocks(load_tokenizer(source), text, TOKENS, SAMPLES, 0)
    return [torch.tensor([block.ids]) for block in blocks[:count]]


@torch.inference_mode()
def kl(reference: torch.nn.Module, other: torch.nn.Module, ids: list[Tensor]) -> float:
    """Mean KL of the whole models, in float64."""
    total = []
    for sample in ids:
        p, q = (model(sample).logits[0].double().log_softmax(-1) for model in (reference, other))
        total.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(total).mean())


@pytest.fixture(scope="module")
def five(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizeRecord, Path]:
    """A budget of five linears: the record and the folder."""
    folder = tmp_path_factory.mktemp("auto") / "w8a8"
    return auto(tiny_folder, folder, "5 linears"), folder


def test_divergence_by_parts_of_the_head_is_that_of_the_whole_model(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "HEAD_ROWS", 50)
    shards, ids, device = Shards(tiny_folder), calibration_ids(tiny_folder, 2), torch.device("cpu")
    rotary = Rotary(shards.config)
    states, disturbed = embed(shards, ids, device), embed(shards, ids, device)
    other = load_model(tiny_folder)
    with torch.no_grad():
        other.transformer.h[1].mlp.down_proj.weight *= 1.3
    for index in range(shards.config.n_layer):
        block = load_block(shards, index, rotary, device)
        states = block.run(states)
        if index == 1:
            block.parameter("transformer.h.1.mlp.down_proj.weight").data *= 1.3
        disturbed = block.run(disturbed)
    same, changed = kl_divergences(shards, states, [states, disturbed], device)
    assert same == pytest.approx([0, 0], abs=1e-7)
    assert changed == pytest.approx(
        [kl(load_model(tiny_folder), other, [sample]) for sample in ids], rel=1e-4
    )


def test_products_that_are_turned_are_measured_turned(tiny_folder: Path, tmp_path: Path) -> None:
    record = auto(tiny_folder, tmp_path / "w8a8", "2 linears", anti_outlier="best", ingredients="online")
    found, ids = figures(record), calibration_ids(tiny_folder, 2)
    own = kl(load_model(tiny_folder), load_model(tmp_path / "w8a8"), ids)
    assert found.kl_written == pytest.approx(own, rel=1e-2)
    assert found.kl_written < found.kl_int8


def test_measured_kl_is_that_of_the_models(
    five: tuple[QuantizeRecord, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    record, folder = five
    found, ids = figures(record), calibration_ids(tiny_folder, 2)
    assert (found.samples, found.tokens) == (2, 2 * TOKENS)
    reference = load_model(tiny_folder)
    assert found.kl_written == pytest.approx(kl(reference, load_model(folder), ids), rel=1e-3)
    quantize(
        tiny_folder,
        tmp_path / "l0",
        Recipe(level="L0", anti_outlier="none"),
        Calibration("pydoc_data.topics", calibration_samples=SAMPLES, calibration_tokens=TOKENS),
    )
    assert found.kl_int8 == pytest.approx(kl(reference, load_model(tmp_path / "l0"), ids), rel=1e-3)
    for candidate in (found.candidates[0], found.candidates[-1]):
        mixed = load_model(tmp_path / "l0")
        for name in candidate.names:
            mixed.set_submodule(name, reference.get_submodule(name))
        assert candidate.kl == pytest.approx(kl(reference, mixed, ids), rel=1e-3)


def test_five_linears_are_the_best_measured_ones(five: tuple[QuantizeRecord, Path]) -> None:
    record, folder = five
    found = figures(record)
    assert 0 < len(record.float_linears) <= 5
    names = [linear.name for linear in record.float_linears]
    assert names == [name for candidate in found.candidates for name in candidate.names if name in names]
    assert names[0] in found.candidates[0].names
    gains = [(found.kl_int8 - candidate.kl) / len(candidate.names) for candidate in found.candidates]
    assert gains == sorted(gains, reverse=True)
    assert (
        found.kl_chosen
        == min(prefix.kl for prefix in found.prefixes)
        < found.candidates[0].kl
        < found.kl_int8
    )
    first = found.candidates[0]
    assert record.float_linears[0].reason.startswith(
        f"measured: KL {found.kl_int8:.3g} -> {first.kl:.3g} when float"
    )
    assert {linear.name for linear in record.linears if linear.kind == "FLOAT"} == set(names)
    kept = json.loads((folder / "quantize.json").read_text())
    assert kept["measured"] == json.loads(json.dumps(asdict(found)))
    assert (kept["recipe"]["budget"], kept["recipe"]["budget_samples"]) == ("5 linears", 2)


def test_measuring_chooses_better_than_the_ranking(
    five: tuple[QuantizeRecord, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    quantize(
        tiny_folder,
        tmp_path / "l5",
        Recipe(level="L5", anti_outlier="none", group_fallback=False),
        Calibration("pydoc_data.topics", calibration_samples=SAMPLES, calibration_tokens=TOKENS),
    )
    ids, reference = calibration_ids(tiny_folder, 2), load_model(tiny_folder)
    assert kl(reference, load_model(five[1]), ids) < kl(reference, load_model(tmp_path / "l5"), ids)


def test_pairs_are_one_candidate_unless_group_fallback_is_off(
    five: tuple[QuantizeRecord, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    names = {linear.name for linear in five[0].float_linears}
    assert {len(candidate.names) for candidate in figures(five[0]).candidates} == {1, 2}
    assert all(set(partners(name)) <= names for name in names)
    alone = figures(auto(tiny_folder, tmp_path / "w8a8", "2 linears", group_fallback=False))
    assert {len(candidate.names) for candidate in alone.candidates} == {1}
    assert alone.groups == len(alone.candidates) == 24


def test_a_kl_is_reached_with_as_few_linears_as_possible(
    five: tuple[QuantizeRecord, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    whole = figures(five[0])
    limit = whole.kl_int8 / 2
    found = figures(auto(tiny_folder, tmp_path / "w8a8", f"KL {limit:.6f}"))
    reached = next(prefix for prefix in found.prefixes if prefix.kl <= float(f"{limit:.6f}"))
    assert (found.chosen, found.kl_chosen) == (reached.candidates, reached.kl)
    assert found.chosen > 1
    assert found.prefixes[found.chosen - 2].kl > limit


def test_a_kl_that_int8_reaches_costs_no_float_linear(tiny_folder: Path, tmp_path: Path) -> None:
    record = auto(tiny_folder, tmp_path / "w8a8", "KL 5")
    assert (record.float_linears, figures(record).prefixes) == ([], [])
    assert figures(record).kl_written == figures(record).kl_int8
    assert {linear.kind for linear in record.linears} == {"W8A8"}


def test_a_kl_out_of_reach_is_told_with_the_one_reached_and_leaves_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=r'"KL 1e-12" is not met: .* reaches \d'):
        auto(tiny_folder, tmp_path / "w8a8", "KL 1e-12")
    assert list(tmp_path.iterdir()) == []


def test_of_many_groups_the_noisiest_are_measured(
    five: tuple[QuantizeRecord, Path], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured_levels, "CANDIDATES", 3)
    found, whole = figures(auto(tiny_folder, tmp_path / "few", "1 linear")), figures(five[0])
    noisiest = sorted(whole.candidates, key=lambda candidate: -candidate.residual_noise)[:3]
    assert found.groups == len(whole.candidates) == 16
    assert {tuple(one.names): one.kl for one in found.candidates} == {
        tuple(one.names): one.kl for one in noisiest
    }


def test_budgets_are_read() -> None:
    assert parse_budget("5 linears", 24) == Budget(linears=5)
    assert parse_budget("1 linear", 24) == Budget(linears=1)
    assert parse_budget("KL 0.02", 24) == parse_budget("kl 2e-2", 24) == Budget(kl=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "25 linears"}, "the model has 24 linears"),
        ({"budget": "cheap"}, 'budget "cheap" is unknown'),
        ({"budget": "5"}, "unknown"),
        ({"budget": "KL 0"}, "unknown"),
        ({"budget": "KL -1"}, "unknown"),
        ({"budget": "KL nan"}, "unknown"),
        ({"budget": "5 linears", "budget_samples": 0}, "at least 1 sample"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_before_the_work(
    options: dict[str, object], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=message):
        auto(tiny_folder, tmp_path / "w8a8", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_other_levels_do_not_look_at_the_budget(tiny_folder: Path, tmp_path: Path) -> None:
    one, other = (
        quantize(
            tiny_folder,
            tmp_path / name,
            Recipe(level="L1", anti_outlier="m1", budget=budget),
            Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
        )
        for name, budget in (("a", "5 linears"), ("b", "anything"))
    )
    assert one.recipe == other.recipe
    assert one.measured is None

"""Device against device: bundles of two runs, and whether they are aligned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from telechat_kit.comparison.alignment import (
    BUNDLE,
    Tolerances,
    check_alignment,
    compare_bundles,
    save_bundle,
)
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import evaluation_blocks, measure_divergence
from telechat_kit.precision.bundle import KEPT, read_bundle
from telechat_kit.token_samples import Block

TOPICS = "pydoc_data.topics"
#: The tiny model's vocabulary is small and its predictions flat: what is not listed is a quarter of the mass
ALL = 262


@pytest.fixture(scope="module")
def pair(tiny_folder: Path, tiny_w8a8_folder: Path) -> Pair:
    return Pair(tiny_folder, tiny_w8a8_folder, "cpu")


@pytest.fixture(scope="module")
def blocks(pair: Pair) -> list[Block]:
    return evaluation_blocks(pair, TOPICS, 40, 6, 0)


def written(path: Path, pair: Pair, blocks: list[Block], **options: object) -> Path:
    return save_bundle(path, pair, blocks, text=TOPICS, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def w8a8(pair: Pair, blocks: list[Block], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(
        tmp_path_factory.mktemp("run") / BUNDLE,
        pair,
        blocks,
        questions=["one", "two"],
        answers=[[5, 6, 7], [8]],
        answer_texts=["abc", "d"],
    )


def changed(
    source: Path, target: Path, tensors: dict[str, torch.Tensor] | None = None, **meta: object
) -> Path:
    values = {**load_file(source), **(tensors or {})}
    details = {**read_bundle(source).meta, **meta}
    save_file(values, target, metadata={"telechat-kit": json.dumps(details)})
    return target


def test_a_run_is_compared_with_another_only_if_there_is_one(w8a8: Path) -> None:
    assert check_alignment(w8a8.parent, "") is None
    assert check_alignment(w8a8.parent, w8a8) == compare_bundles(w8a8, w8a8)
    found = check_alignment(w8a8.parent, w8a8, 0.5, 0.25)
    assert found is not None
    assert found.tolerances == Tolerances(0.5, 0.25)


def test_a_run_is_aligned_with_itself_given_as_file_or_folder(w8a8: Path) -> None:
    found = compare_bundles(w8a8, w8a8.parent)
    assert found.verdict == "aligned"
    assert (found.kl_mean.value, found.kl_max, found.top1_agreement.value) == (0.0, 0.0, 1.0)
    assert (found.sequences, found.positions) == (6, 6 * 39)
    assert (found.answers, found.equal_answers, found.first_differing_answer) == (2, 2, None)
    assert found.differences == []


def test_the_bundle_holds_the_distributions_of_its_model(w8a8: Path, pair: Pair, blocks: list[Block]) -> None:
    tensors = load_file(w8a8)
    with torch.inference_mode():
        logits = pair.models["w8a8"](torch.tensor([blocks[2].ids])).logits[0, :-1]
    expected = logits.log_softmax(-1)
    ids = tensors["ids"][2].long()
    assert torch.equal(ids, expected.topk(KEPT).indices)
    assert torch.allclose(tensors["log_probabilities"][2], expected.gather(1, ids), atol=1e-5)
    mass = tensors["log_probabilities"][2].exp().sum(-1) + tensors["rest"][2].exp()
    assert torch.allclose(mass, torch.ones_like(mass), atol=1e-5)


def test_other_weights_are_not_aligned_and_named(
    w8a8: Path, pair: Pair, blocks: list[Block], tmp_path: Path
) -> None:
    reference = written(tmp_path / BUNDLE, pair, blocks, precision="float")
    found = compare_bundles(reference, w8a8, Tolerances(kl_mean=1e-5))
    assert found.verdict == "not aligned"
    assert {"precision", "weights", "questions"} <= {one.condition for one in found.differences}
    assert any("1e-05 allowed" in reason for reason in found.reasons)
    assert found.answers == 0  # other questions: no answers to compare


def test_the_divergence_of_listed_tokens_is_below_the_true_one_and_near_it(
    pair: Pair, blocks: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = measure_divergence(pair, blocks)
    monkeypatch.setattr("telechat_kit.precision.bundle.KEPT", ALL)
    paths = [written(tmp_path / name, pair, blocks, precision=name) for name in ("float", "w8a8")]
    assert compare_bundles(*paths).kl_mean.value == pytest.approx(true.kl_mean.value, rel=1e-3)
    assert compare_bundles(*paths).top1_agreement.value == pytest.approx(true.top1_agreement.value)
    monkeypatch.setattr("telechat_kit.precision.bundle.KEPT", 100)
    paths = [written(tmp_path / name, pair, blocks, precision=name) for name in ("float", "w8a8")]
    part = compare_bundles(*paths).kl_mean.value
    assert 0.2 * true.kl_mean.value < part < true.kl_mean.value


def test_a_changed_text_is_refused(w8a8: Path, pair: Pair, blocks: list[Block], tmp_path: Path) -> None:
    ids = (*blocks[0].ids[:-1], blocks[0].ids[-1] ^ 1)
    other = [Block(blocks[0].start, blocks[0].stop, ids), *blocks[1:]]
    with pytest.raises(DataError, match="do not hold the same text"):
        compare_bundles(w8a8, written(tmp_path / BUNDLE, pair, other))
    with pytest.raises(DataError, match="do not hold the same text"):
        compare_bundles(w8a8, written(tmp_path / BUNDLE, pair, blocks[:5]))


def test_other_tokenizers_are_refused(w8a8: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="made with different tokenizers"):
        compare_bundles(w8a8, changed(w8a8, tmp_path / BUNDLE, tokenizer="another"))


def test_the_first_answer_that_differs_is_told(w8a8: Path, tmp_path: Path) -> None:
    ids = {"answer_ids": torch.tensor([5, 6, 9, 8], dtype=torch.int32)}
    found = compare_bundles(w8a8, changed(w8a8, tmp_path / BUNDLE, ids, answer_texts=["abX", "d"]))
    assert found.verdict == "aligned"  # the text decides; answers are shown
    assert (found.answers, found.equal_answers) == (2, 1)
    first = found.first_differing_answer
    assert first is not None
    assert (first.number, first.question, first.common_tokens) == (1, "one", 2)
    assert (first.first, first.second) == ("abc", "abX")


def test_conditions_that_differ_are_named(w8a8: Path, tmp_path: Path) -> None:
    conditions = read_bundle(w8a8).meta["conditions"]
    other = {
        **conditions,
        "threads": 96,
        "device": "npu",
        "versions": {**conditions["versions"], "torch": "9"},
    }
    found = compare_bundles(w8a8, changed(w8a8, tmp_path / BUNDLE, conditions=other))
    assert {one.condition: one.second for one in found.differences} == {
        "device": "npu",
        "threads": "96",
        "version of torch": "9",
    }


def test_too_little_text_leaves_it_undecided(pair: Pair, blocks: list[Block], tmp_path: Path) -> None:
    one = written(tmp_path / "one.safetensors", pair, blocks[:1])
    assert compare_bundles(one, one).verdict == "undecided"


def test_an_interval_across_a_tolerance_leaves_it_undecided(w8a8: Path, tmp_path: Path) -> None:
    values = load_file(w8a8)["log_probabilities"].clone()
    values[0] += torch.linspace(-0.2, 0.2, KEPT)  # one sequence of six is off
    other = changed(w8a8, tmp_path / BUNDLE, {"log_probabilities": values})
    kl = compare_bundles(w8a8, other).kl_mean
    assert kl.low < kl.value < kl.high
    between = Tolerances(kl_mean=(kl.value + kl.high) / 2)
    assert compare_bundles(w8a8, other, between).verdict == "undecided"
    assert compare_bundles(w8a8, other, Tolerances(kl_mean=2 * kl.high)).verdict == "aligned"
    assert compare_bundles(w8a8, other, Tolerances(kl_mean=kl.value / 2)).verdict == "not aligned"


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_missing_or_damaged_bundle_is_named(w8a8: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"other\.safetensors (does not exist|is no bundle of this kit)"):
        compare_bundles(w8a8, path)


def test_another_schema_is_refused(w8a8: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='schema "telechat-kit/bundle/9"'):
        compare_bundles(w8a8, changed(w8a8, tmp_path / BUNDLE, schema="telechat-kit/bundle/9"))


@pytest.mark.parametrize("tolerances", [Tolerances(kl_mean=-1), Tolerances(top1_agreement=98.0)])
def test_tolerances_out_of_range_are_refused(w8a8: Path, tolerances: Tolerances) -> None:
    with pytest.raises(ParameterError, match="agreement lies between 0 and 1"):
        compare_bundles(w8a8, w8a8, tolerances)


def test_a_bundle_stays_small(w8a8: Path) -> None:
    per_position = KEPT * 8 + 4 + 4
    assert w8a8.stat().st_size < 6 * 40 * per_position + 8000
    assert np.all(read_bundle(w8a8).tensors["log_probabilities"] <= 0)

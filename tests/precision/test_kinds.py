"""The loss by kind of text: every kind by itself, on tokens that no calibration saw."""

import json
from pathlib import Path

import pytest

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import measure_divergence, measure_kinds
from telechat_kit.precision.kinds import kind_blocks, like_calibration
from telechat_kit.texts import KIT_TEXTS, SEALED_TEXTS, evaluation_texts, kit_texts


def test_each_kind_is_judged_by_itself(pair: Pair) -> None:
    found = measure_kinds(pair, KIT_TEXTS, 48, 3, seed=0)
    assert [loss.kind for loss in found] == ["chat", "code", "docs", "en", "zh"]
    texts = evaluation_texts(KIT_TEXTS)
    for loss in found:
        (alone,) = kind_blocks(pair, {loss.kind: texts[loss.kind]}, 48, 3, 0).values()
        assert loss.blocks == [(block.start, block.stop) for block in alone]
        assert loss.figures.kl_mean == measure_divergence(pair, alone).kl_mean
        assert len(loss.figures.by_sequence) == loss.figures.sequences == 3
        assert loss.figures.tokens == 3 * 47
        assert loss.sha256 == texts[loss.kind].sha256


def test_the_kit_names_the_half_that_is_looked_at_and_the_sealed_one_apart() -> None:
    assert evaluation_texts(KIT_TEXTS) == kit_texts("evaluation/development")
    assert evaluation_texts(SEALED_TEXTS) == kit_texts("evaluation/sealed")
    with pytest.raises(ParameterError, match="names chat twice"):
        evaluation_texts(f"{KIT_TEXTS}, {SEALED_TEXTS}")


def test_a_short_kind_gives_what_it_has_and_one_without_two_sequences_is_named(
    pair: Pair, tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    own.write_text("a few words, " * 20)
    (loss,) = measure_kinds(pair, str(own), 64, 8, seed=0)
    assert loss.figures.sequences == len(own.read_text()) // 64
    own.write_text("too short")
    with pytest.raises(DataError, match=r"own\.txt gives 0 free blocks .* 2 are asked for"):
        measure_kinds(pair, str(own), 64, 8, seed=0)


def test_what_calibration_saw_is_left_out(pair: Pair, tiny_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("0123456789" * 30)
    text = evaluation_texts(str(own))[str(own)]
    weights = tmp_path / "w8a8"
    weights.mkdir()
    for path in pair.w8a8_folder.iterdir():
        (weights / path.name).symlink_to(path)
    (weights / "quantize.json").unlink()
    seen = {"calibration_sha256": text.sha256, "calibration_blocks": [[0, 200]]}
    (weights / "quantize.json").write_text(json.dumps({"recipe": seen}))
    blocks = kind_blocks(Pair(tiny_folder, weights, "cpu"), {"own": text}, 50, 8, 0)["own"]
    assert sorted(block.start for block in blocks) == [200, 250]


def test_a_text_is_like_the_calibrations_by_itself_or_by_its_kind() -> None:
    recipe = {"calibration_sha256": "aa", "calibration_kinds": [{"kind": "zh", "sha256": "bb"}]}
    assert like_calibration({"topics": "aa", "zh": "cc", "docs": "dd"}, recipe) == ["topics", "zh"]
    assert (
        like_calibration({"topics": "aa"}, {"calibration_sha256": "another"}) == []
    )  # a recipe of before kinds

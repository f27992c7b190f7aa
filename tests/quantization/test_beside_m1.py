"""Method best beside m1 on text held back from both: the models' own divergence, on blocks that no calibration saw."""

from pathlib import Path

import pytest
import torch

from telechat_kit import load_model
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.quantization import Calibration, Recipe, quantize
from telechat_kit.quantization.calibration.samples import CalibrationSet, calibration_set, held_back_samples

TOKENS = 48


def drawn(folder: Path, source: str, samples: int, format: str = "blocks") -> CalibrationSet:
    return calibration_set(
        load_tokenizer(folder),
        source,
        format=format,
        lines="seed",
        samples=samples,
        tokens=TOKENS,
        seed=0,
        context=256,
    )


@pytest.mark.parametrize("source", ["pydoc_data.topics", "kit, pydoc_data.topics"])
def test_what_is_held_back_was_in_no_sample(tiny_folder: Path, source: str) -> None:
    tokenizer, chosen = load_tokenizer(tiny_folder), drawn(tiny_folder, source, 7)
    held = [tuple(ids[0].tolist()) for ids in held_back_samples(tokenizer, chosen, 10, TOKENS, 0)]
    assert len(held) == len(set(held)) == 10
    assert not set(held) & set(chosen.ids)
    again = held_back_samples(tokenizer, chosen, 10, TOKENS, 0)
    assert [tuple(ids[0].tolist()) for ids in again] == held


def test_nothing_is_held_back_where_calibration_took_all_or_lines(tiny_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a short text, of about two hundred bytes. " * 5, encoding="utf-8")
    tokenizer = load_tokenizer(tiny_folder)
    assert not held_back_samples(tokenizer, drawn(tiny_folder, str(text), 4), 10, TOKENS, 0)
    assert held_back_samples(tokenizer, drawn(tiny_folder, str(text), 2), 10, TOKENS, 0)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"input": "one"}\n{"input": "two"}\n{"input": "three"}\n', encoding="utf-8")
    assert not held_back_samples(tokenizer, drawn(tiny_folder, str(lines), 2, "lines"), 10, TOKENS, 0)


@pytest.mark.parametrize(("activations", "ingredients"), [("static", "all"), ("dynamic", "online")])
def test_the_divergence_is_that_of_the_models(
    tiny_folder: Path, tmp_path: Path, activations: str, ingredients: str
) -> None:
    recipe = Recipe("L2", activations=activations, ingredients=ingredients)
    calibration = Calibration("pydoc_data.topics", calibration_samples=5, calibration_tokens=TOKENS)
    found = quantize(tiny_folder, tmp_path / "w8a8", recipe, calibration).beside_m1
    assert found is not None
    chosen = drawn(tiny_folder, "pydoc_data.topics", 5)
    held = held_back_samples(load_tokenizer(tiny_folder), chosen, 10, TOKENS, 0)
    assert (found.samples, found.tokens) == (10, 10 * TOKENS)
    plain, int8 = load_model(tiny_folder, "cpu"), load_model(tmp_path / "w8a8", "cpu")
    own = []
    with torch.inference_mode():
        for ids in held:
            p, q = (model(ids).logits[0].double().log_softmax(-1) for model in (plain, int8))
            own.append(float((p.exp() * (p - q)).sum(-1).mean()))
    assert found.kl.value == pytest.approx(sum(own) / len(own), rel=0.02)
    assert found.kl.low < found.kl.value < found.kl.high
    assert found.change.value == pytest.approx(found.kl_m1.value - found.kl.value, abs=1e-9)


def test_m1_is_not_held_beside_itself(tiny_folder: Path, tmp_path: Path) -> None:
    calibration = Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=TOKENS)
    record = quantize(tiny_folder, tmp_path / "w8a8", Recipe("L2", anti_outlier="m1"), calibration)
    assert record.beside_m1 is None

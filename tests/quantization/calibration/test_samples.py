"""Calibration on lines of a file: what is recorded, what the evaluation leaves out, what is refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from telechat_kit import load_model, load_tokenizer
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import evaluation_blocks
from telechat_kit.quantization import Calibration, QuantizeRecord, Recipe, quantize
from telechat_kit.reports import quantization_tables
from telechat_kit.token_samples import chat_ids

TEXTS = ["What is the capital of France?", "首都在哪里?", "a", "A longer line of text. " * 20, "last one"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    rows = [json.dumps({"input": text}, ensure_ascii=False) for text in TEXTS]
    path.write_text("\n".join([rows[0], "", *rows[1:]]) + "\n", encoding="utf-8")
    return path


def quantized(tiny_folder: Path, target: Path, lines: Path, **changes: Any) -> QuantizeRecord:
    every_line = Calibration(lines, calibration_format="chat", calibration_lines="all", calibration_tokens=64)
    recipe = Recipe("L2", anti_outlier="m2")
    return quantize(tiny_folder, target, recipe, replace(every_line, **changes), device="cpu")


@pytest.fixture(scope="module")
def by_lines(
    tiny_folder: Path, lines: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, QuantizeRecord]:
    """A W8A8 folder calibrated on every line, and its record."""
    folder = tmp_path_factory.mktemp("quantized") / "w8a8"
    return folder, quantized(tiny_folder, folder, lines)


def test_the_recipe_names_lines_tokens_cuts_and_hashes(
    by_lines: tuple[Path, QuantizeRecord], tiny_folder: Path
) -> None:
    folder, record = by_lines
    used, tokenizer = record.recipe, load_tokenizer(tiny_folder)
    assert used is not None
    ids = [chat_ids(tokenizer, text) for text in TEXTS]
    assert used.calibration_format == "chat"
    assert used.calibration_lines == [1, 3, 4, 5, 6]
    assert used.calibration_sample_tokens == [min(len(sample), 64) for sample in ids]
    assert used.calibration_cut == [(5, len(ids[3]))]
    assert record.calibration_tokens == sum(used.calibration_sample_tokens)
    joined = "\n".join(" ".join(map(str, sample[:64])) for sample in ids)
    assert used.calibration_samples_sha256 == hashlib.sha256(joined.encode()).hexdigest()
    told = json.loads((folder / "quantize.json").read_text())
    assert told["recipe"]["calibration_lines"] == used.calibration_lines
    assert told["recipe_sha256"] == record.recipe_sha256
    shown = quantization_tables.calibration(record).to_html()
    assert "1, 3, 4, 5, 6" in shown
    assert f"{len(ids[3])} tokens to 64" in shown


def test_samples_of_different_lengths_give_a_working_model(
    by_lines: tuple[Path, QuantizeRecord], tiny_folder: Path
) -> None:
    ids = torch.tensor([chat_ids(load_tokenizer(tiny_folder), TEXTS[0])])
    with torch.inference_mode():
        ours, expected = (load_model(folder)(ids).logits for folder in (by_lines[0], tiny_folder))
    assert (ours - expected).std() / expected.std() < 0.3  # unrelated logits give 1.4


@pytest.mark.parametrize("change", [{"calibration_format": "lines"}, {"calibration_lines": "1,3-5"}])
def test_other_lines_are_other_recipes(
    change: dict[str, str],
    by_lines: tuple[Path, QuantizeRecord],
    lines: Path,
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    record = quantized(tiny_folder, tmp_path / "w8a8", lines, **change)
    assert record.recipe_sha256 != by_lines[1].recipe_sha256
    assert record.linears != by_lines[1].linears


def test_the_evaluation_leaves_calibrated_lines_out(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    texts = [letter * 20 for letter in "abcdef"]
    path.write_text("\n".join(json.dumps({"input": text}) for text in texts), encoding="utf-8")
    quantized(tiny_folder, tmp_path / "w8a8", path, calibration_lines="2,5-6")
    pair = Pair(tiny_folder, tmp_path / "w8a8", "cpu")
    blocks = evaluation_blocks(pair, str(path), 4, 12, 0)
    assert set("".join(pair.tokenizer.decode(block.ids) for block in blocks)) == set("acd\n")
    with pytest.raises(DataError, match="free blocks"):
        evaluation_blocks(pair, str(path), 4, 20, 0)


@pytest.mark.parametrize(
    ("options", "content", "error", "message"),
    [
        ({"calibration_format": "words"}, "", ParameterError, 'calibration_format "words" is unknown'),
        ({"calibration_format": "blocks"}, "", ParameterError, 'calibration_lines "all" has no meaning'),
        ({"calibration_tokens": 513}, "", ParameterError, "calibration_tokens is 513: .* at most 512"),
        ({}, '{"input": "a"}\n{"input": " "}', DataError, "lines.jsonl, line 2: expected"),
        ({}, '{"input": "a"}\n\n{"input": ', DataError, "lines.jsonl, line 3 is not valid JSON"),
        ({"calibration_lines": "2"}, '{"input": "a"}\n\n{"input": "b"}', DataError, "line 2 is empty"),
    ],
)
def test_bad_calibration_is_named_before_any_work(
    options: dict[str, Any],
    content: str,
    error: type[Exception],
    message: str,
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(content or '{"input": "a"}', encoding="utf-8")
    with pytest.raises(error, match=message):
        quantized(tiny_folder, tmp_path / "w8a8", path, **options)
    assert list(tmp_path.iterdir()) == [path]

"""What the tests of the precision package share: a tiny pair, and question lines."""

from pathlib import Path

import pytest

from telechat_kit.inference.model_pair import Pair


@pytest.fixture(scope="module")
def pair(tiny_folder: Path, tiny_w8a8_folder: Path) -> Pair:
    return Pair(tiny_folder, tiny_w8a8_folder, "cpu")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = ['{"input": "天翼云是什么?"}', '{"input": "b", "other": 1}', '{"input": "third"}']
    path.write_text("\n".join(lines), encoding="utf-8")
    return path

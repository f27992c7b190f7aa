"""What the tests of the precision package share: a tiny pair, and question lines."""

from pathlib import Path

import pytest


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = ['{"input": "天翼云是什么?"}', '{"input": "b", "other": 1}', '{"input": "third"}']
    path.write_text("\n".join(lines), encoding="utf-8")
    return path

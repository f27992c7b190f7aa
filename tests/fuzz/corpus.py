"""Whole documents of the readers of texts, small ones with all that each form has."""

import json
import shutil
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PROFILE = """# a profile
run_folder: results/mine
checkpoint_path: models/tiny  # weights
embedded_model: tiny-random
quant_path: "models/tiny-w8a8"
level: L5
group_fallback: true
input_lengths: [4, 16]
output_lengths:
  - 2
seed: 0
repetition_penalty: 1.03
"""
_SWEEP = """profiles: [params/tiny.yaml]
parameters:
  level: [L0, L2]
  anti_outlier: [m1]
results: results/sweep
"""


def write_texts(folder: Path) -> Path:
    """Write them into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"input": "天翼云是什么?"}, {"input": "b 😀"}, {"input": "c", "answer": "d"}]
    (folder / "lines.jsonl").write_text(_jsonl(lines), encoding="utf-8")
    (folder / "rows.csv").write_text('input,n\n"a, b",1\nc,2\n', encoding="utf-8")
    (folder / "list.json").write_text(
        json.dumps([{"messages": [{"role": "user", "content": "a"}]}, {"prompt": "b"}])
    )
    task = {"subject": "sums", "question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": "B"}
    (folder / "tasks.jsonl").write_text(_jsonl([task, task]))
    answers = [{"key": "key", "input": f"问题 {n}?", "token_ids": [n, 200, 3]} for n in range(5)]
    (folder / "answers.part").write_text(_jsonl(answers), encoding="utf-8")
    (folder / "mine.yaml").write_text(_PROFILE, encoding="utf-8")
    (folder / "sweep.yaml").write_text(_SWEEP, encoding="utf-8")
    owner = {"pid": 4_000_000, "host": "elsewhere", "children": [[4_000_001, 1.5]]}
    (folder / ".run.lock").write_text(json.dumps(owner))
    shutil.copy(_ROOT / "notebooks" / "01_setup.ipynb", folder)
    shutil.copy(_ROOT / "tests" / "data" / "environment" / "healthy-910b" / "npu-smi-info.txt", folder)
    return folder


def _jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

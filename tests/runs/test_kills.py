"""Kill -9 at random moments of a real run on random weights: a rerun completes, with the records of an unbroken one.

Ten moments take minutes, so these tests run only when asked for: `make kills`.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
MOMENTS = 10
VICTIMS = ("kernel", "command", "both")
RECORDS = ("setup.json", "quantize.json", "precision.json", "performance.json")
#: What differs from run to run: times, speeds, and how full memory and disk were
MEASURED = {"started", "seconds", "peak_memory_bytes", "read_bandwidth", "tokens_per_second", "free"}
MEASURED |= {"time_to_first_token", "time_per_output_token", "limit_tokens_per_second", "unstable"}
MEASURED |= {"token_p95", "drift", "estimated_seconds", "peaks", "busy", "resumed", "joules_per_token"}


def command(root: Path, *arguments: str) -> list[str]:
    places = {"run_folder": root / "run", "quant_path": root / "w8a8", "checkpoint_path": root / "model"}
    places["model_path"] = root / "model"
    words = [word for key, path in places.items() for word in ("-p", key, str(path))]
    return [sys.executable, "-m", "telechat_kit", "run", "params/tiny.yaml", *words, *arguments]


def start(root: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        command(root, *arguments), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **quiet
    )


def settled(value: Any) -> Any:
    """A record without what is measured anew each time."""
    if isinstance(value, dict):
        free = str(value.get("component", "")).startswith("free ")
        return {
            key: settled(item)
            for key, item in value.items()
            if key not in MEASURED and not (free and key == "found")
        }
    return [settled(item) for item in value] if isinstance(value, list) else value


def records(root: Path) -> dict[str, Any]:
    found = {name: settled(json.loads((root / "run" / name).read_text())) for name in RECORDS}
    found["answers.jsonl"] = (root / "run" / "answers.jsonl").read_text()
    found["samples"] = len((root / "run" / "samples.jsonl").read_text().splitlines())
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, dict[str, Any]]:
    """A run that nothing disturbed, the seconds that it took, and its records."""
    root = tmp_path_factory.mktemp("kills") / "work"
    begin = time.monotonic()
    assert start(root).wait(600) == 0
    return root, time.monotonic() - begin, records(root)


@pytest.mark.kills
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_real_run_killed_at_a_random_moment_is_completed_by_the_next(
    unbroken: tuple[Path, float, dict[str, Any]], moment: int
) -> None:
    root, seconds, expected = unbroken
    shutil.rmtree(root)
    choice = random.Random(moment)
    process = start(root)
    time.sleep(choice.uniform(0.05, 0.95) * seconds)
    victims = _victims(process.pid, VICTIMS[moment % len(VICTIMS)])
    for victim in victims:
        victim.kill()
    process.wait(600)
    assert start(root).wait(600) == 0
    assert records(root) == expected
    states = json.loads((root / "run" / "run.json").read_text())["steps"]
    assert {step["status"] for step in states} == {"completed"}
    half_written = [
        path.name for path in root.rglob("*") if path.name.startswith(".") or ".failed." in path.name
    ]
    assert half_written == []


def _victims(pid: int, kind: str) -> list[psutil.Process]:
    try:
        run = psutil.Process(pid)
        kernels = run.children()
    except psutil.Error:
        return []  # it was already done
    return {"kernel": kernels, "command": [run], "both": [run, *kernels]}[kind]

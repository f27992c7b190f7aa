"""Scenario two: a float folder after outlier suppression and `.npy` dictionaries go through all five notebooks."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from telechat_kit.quantization import export
from telechat_kit.reports import read_run

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "params" / "tiny.yaml"
COMMAND = Path(sys.executable).with_name("telechat-kit")


@pytest.fixture(scope="module")
def given(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Float folder and folder of dictionaries, with nothing that tells how they were made."""
    folder = tmp_path_factory.mktemp("given") / "npy"
    export(tiny_w8a8_folder, folder, "numpy", model_path=tiny_folder)
    smoothed = (folder / "float").rename(folder.with_name("smoothed"))
    (folder / "quantize.json").unlink()
    return smoothed, folder


def run_tiny(changes: Mapping[str, object]) -> None:
    """Run the tiny profile to its end, with `changes` of its parameters."""
    overrides = [word for key, value in changes.items() for word in ("-p", key, str(value))]
    done = subprocess.run(
        [COMMAND, "run", TINY, *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
def test_given_weights_run_through_all_notebooks(given: tuple[Path, Path], tmp_path: Path) -> None:
    smoothed, folder = given
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changes = {
        "checkpoint_path": smoothed,
        "model_path": smoothed,
        "quant_path": folder,
        "given_weights": "true",
        "run_folder": tmp_path / "run",
    }
    run_tiny(changes)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    run = read_run(tmp_path / "run")
    assert run.quantize.recipe is None
    assert run.quantize.given is not None
    assert run.quantize.given.rounded == len(run.quantize.linears) == 24
    assert run.quantize.conditions.hashes == run.precision.conditions.hashes
    assert 0 < run.precision.divergence.kl_mean.value < 0.5
    page = BeautifulSoup((tmp_path / "run" / "02_quantize.html").read_text(encoding="utf-8"), "html.parser")
    assert "given in numpy form" in page.get_text()
    assert "as given" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"][1]["status"] == "completed"


@pytest.mark.soak
def test_grouped_heads_run_through_all_notebooks(grouped_folder: Path, tmp_path: Path) -> None:
    changes = {
        "checkpoint_path": grouped_folder,
        "model_path": grouped_folder,
        "quant_path": tmp_path / "w8a8",
        "run_folder": tmp_path / "run",
    }
    run_tiny(changes)
    run = read_run(tmp_path / "run")
    assert len(run.quantize.linears) == 3 * (7 if grouped_folder.name == "telechat3" else 6)
    assert 0 < run.precision.divergence.kl_mean.value < 0.5

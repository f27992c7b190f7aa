"""The notebooks as a batch job runs them: the call of the README, once for each."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from telechat_kit.runs.state import STEPS

NOTEBOOKS = [Path(__file__).resolve().parents[2] / "notebooks" / f"{step.name}.ipynb" for step in STEPS]


def execute_by_papermill(folder: Path, profile: Path, environment: Mapping[str, str]) -> None:
    """Execute every notebook into `folder`, which is also where the kernels stand, with the values of `profile`."""
    for path in NOTEBOOKS:
        command = [sys.executable, "-m", "papermill", path, folder / path.name, "-f", profile]
        done = subprocess.run(
            [*map(str, command), "--cwd", str(folder), "--log-level", "ERROR", "--no-progress-bar"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

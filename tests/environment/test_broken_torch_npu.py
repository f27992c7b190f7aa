"""A torch_npu that cannot be imported: torch and transformers would stop with its error, the kit does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REASON = "libhccl.so: cannot open shared object file: No such file or directory"


#: Processes that import torch take seconds each, so one asks the kit everything: three facts on a line each, then
#: the command, which starts a process of its own to import torch_npu
QUESTIONS = """
import telechat_kit, torch  # the kit first: it keeps torch from failing
import transformers  # looks for torch_npu too
from telechat_kit.backends.npu import torch_npu_guard
from telechat_kit.backends import resolve_device
from telechat_kit.cli import main
from telechat_kit.errors import DeviceError

print(torch.ones(2).sum().item())
print(torch_npu_guard.failure)
try:
    resolve_device("npu:0")
except DeviceError as error:
    print(error)
main()
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process that has such a torch_npu installed, with the entry point that torch loads."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "torch_npu").mkdir()
    (folder / "torch_npu" / "__init__.py").write_text(f"raise ImportError({REASON!r})\n")
    metadata = folder / "torch_npu-2.13.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (metadata / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    kept = {key: value for key, value in os.environ.items() if key != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    return {**kept, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def answers(broken: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """What the kit says there: the lines of QUESTIONS, and behind them the JSON of `telechat-kit check`."""
    return python(QUESTIONS, "check", "--device", "npu:0", "--json", env=broken)


def python(code: str, *arguments: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=ROOT, check=False, timeout=300
    )


def test_torch_alone_stops_with_it(broken: dict[str, str]) -> None:
    """Else the other tests of this file would show nothing."""
    assert "Failed to load the backend extension: torch_npu" in python("import torch", env=broken).stderr


def test_the_kit_runs_on_the_cpu_and_remembers_the_reason(
    answers: "subprocess.CompletedProcess[str]",
) -> None:
    assert answers.stdout.splitlines()[:2] == ["2.0", f"ImportError: {REASON}"], answers.stderr


def test_the_device_is_refused_with_the_remedy(answers: "subprocess.CompletedProcess[str]") -> None:
    told = answers.stdout.splitlines()[2]
    assert 'device "npu:0" asked for, but torch_npu cannot be imported (libhccl.so: cannot open' in told
    assert "source /usr/local/Ascend/ascend-toolkit/set_env.sh" in told


def test_check_says_why_it_cannot_be_imported(answers: "subprocess.CompletedProcess[str]") -> None:
    assert (answers.returncode, answers.stderr) == (1, "")
    report = json.loads(answers.stdout.split("\n", 3)[3])
    rows = {row["component"]: row for row in report["checks"]}
    assert rows["torch_npu"]["found"] == f"2.13.0, cannot be imported: ImportError: {REASON}"
    assert rows["torch_npu"]["verdict"] == "wrong"

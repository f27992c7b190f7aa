"""A torch_npu that cannot be imported: torch and transformers would stop with its error, the kit does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REASON = "libhccl.so: cannot open shared object file: No such file or directory"


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """Environment of a process that has such a torch_npu installed, with the entry point that torch loads."""
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text(f"raise ImportError({REASON!r})\n")
    metadata = tmp_path / "torch_npu-2.13.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (metadata / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    kept = {key: value for key, value in os.environ.items() if key != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    return {**kept, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}


def python(code: str, *arguments: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)


def test_torch_alone_stops_with_it(broken: dict[str, str]) -> None:
    """Else the other tests of this file would show nothing."""
    assert "Failed to load the backend extension: torch_npu" in python("import torch", env=broken).stderr


def test_check_says_why_it_cannot_be_imported(broken: dict[str, str]) -> None:
    code = "from telechat_kit.cli import main; main()"
    done = python(code, "check", "--device", "npu:0", "--json", env=broken)
    assert (done.returncode, done.stderr) == (1, "")
    rows = {row["component"]: row for row in json.loads(done.stdout)["checks"]}
    assert rows["torch_npu"]["found"] == f"2.13.0, cannot be imported: ImportError: {REASON}"
    assert rows["torch_npu"]["verdict"] == "wrong"


def test_the_kit_runs_on_the_cpu_and_remembers_the_reason(broken: dict[str, str]) -> None:
    code = "import telechat_kit, torch; from telechat_kit import npu_import; print(torch.ones(2).sum().item(), npu_import.failure)"
    done = python(code, env=broken)
    assert done.stdout == f"2.0 ImportError: {REASON}\n", done.stderr


def test_the_device_is_refused_with_the_remedy(broken: dict[str, str]) -> None:
    code = "from telechat_kit.backends import resolve_device; resolve_device('npu:0')"
    told = python(code, env=broken).stderr.splitlines()[-1]
    assert 'device "npu:0" asked for, but torch_npu cannot be imported (libhccl.so: cannot open' in told
    assert "source /usr/local/Ascend/ascend-toolkit/set_env.sh" in told

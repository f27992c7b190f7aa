"""Where a run starts its kernel: this interpreter, whatever the machine has installed and however its folders are called."""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from small_project import run, started

from telechat_kit.runs.kernel import MOST_SOCKET_BYTES, kernel_options

ODD_NAME = "out {seed} {} #1 100%25 'q\" 测试😀"


def foreign_kernel(folder: Path) -> Path:
    """A folder for JUPYTER_PATH in which `python3` is a Python that ends at once."""
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    return folder


def test_a_run_in_odd_folders_beside_a_foreign_kernel_ends_well(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(foreign_kernel(project / "jupyter")))
    long_folder = project / ("d" * 100)
    long_folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long_folder))
    assert run(("run_folder", ODD_NAME), only=("1",)).exit_code == 0
    left = {path.name for path in (project / ODD_NAME).iterdir()}
    assert {"setup.json", "01_setup.ipynb", "01_setup.html"} <= left
    assert not started(project)
    assert not list(long_folder.iterdir())


def test_the_kernel_is_this_interpreter_and_its_sockets_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kernel_options() as options:
        manager = options["kernel_manager_class"](kernel_name="anything", config=options["config"])
        assert manager.kernel_spec.argv[0] == sys.executable
        assert manager.transport == "ipc"
        assert len(os.fsencode(Path(manager.ip).parent)) <= MOST_SOCKET_BYTES


def test_without_room_for_sockets_the_kernel_is_reached_by_tcp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_folder = tmp_path / ("d" * 100)
    long_folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long_folder))
    monkeypatch.setattr("telechat_kit.runs.kernel._SHORT_FOLDER", tmp_path / "none")
    with kernel_options() as options:
        assert "transport" not in options["config"].KernelManager

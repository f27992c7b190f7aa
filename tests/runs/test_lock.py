"""One run at a time in a folder; what a killed one left does not stand in the way."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from telechat_kit.errors import KitError
from telechat_kit.manifest import RUN_FOLDER
from telechat_kit.runs.lock import NAME, LockedError, locked


def sleeping(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    started = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert started.stdout is not None
    started.stdout.readline()  # its own program runs, with its own environment
    return started


def name(folder: Path, children: object) -> None:
    """A lock that a run of this machine left, with these children."""
    owner = {"pid": 1, "host": socket.gethostname(), "children": children}
    (folder / NAME).write_text(json.dumps(owner))


def test_a_second_run_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(LockedError, match=rf"process {os.getpid()} on {socket.gethostname()}"),
        locked(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        assert (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"pid": 1}', "[" * 60_000, '{"pid": "x", "host": 1}', "9" * 5000]
)
def test_the_file_of_a_dead_run_is_taken_over_whatever_it_holds(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    (tmp_path / ".04_performance.running.ipynb").write_text("half")
    (tmp_path / ".setup.json.123.tmp").write_text("half")
    (tmp_path / "samples.jsonl.part").write_text("kept: its step goes on with it")
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {NAME, "samples.jsonl.part"}


def test_a_kernel_that_outlived_its_run_is_ended(tmp_path: Path) -> None:
    left = sleeping(os.environ | {RUN_FOLDER: str(tmp_path.resolve())})
    name(tmp_path, [[left.pid, psutil.Process(left.pid).create_time()]])
    with locked(tmp_path):
        assert not psutil.pid_exists(left.pid)


@pytest.mark.parametrize("folder", [None, "/elsewhere"])
def test_a_forged_lock_ends_no_process_that_works_for_others(tmp_path: Path, folder: str | None) -> None:
    other = sleeping(os.environ | ({} if folder is None else {RUN_FOLDER: folder}))
    name(tmp_path, [[other.pid, psutil.Process(other.pid).create_time()]])
    with locked(tmp_path):
        assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.parametrize(
    "children", [[1], [[1]], [["1", 2]], [[-1, 0]], [[10**30, 0]], {"a": 1}, [[True, 0]]]
)
def test_children_of_other_forms_are_passed_over(tmp_path: Path, children: object) -> None:
    name(tmp_path, children)
    with locked(tmp_path):
        assert (tmp_path / NAME).exists()


def test_a_lock_that_is_a_link_leaves_its_target_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(KitError, match="cannot write"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_a_run_starts_carries_the_name_of_its_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert os.environ[RUN_FOLDER] == str(tmp_path.resolve())
    assert RUN_FOLDER not in os.environ


def test_another_process_under_the_same_number_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    owner = {"pid": 1, "host": socket.gethostname(), "children": [[other.pid, 1.0]]}
    (tmp_path / NAME).write_text(json.dumps(owner))
    with locked(tmp_path):
        assert other.poll() is None
    other.kill()
    other.wait()

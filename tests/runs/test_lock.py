"""One run at a time in a folder; what a killed one left does not stand in the way."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from telechat_kit.runs.lock import NAME, LockedError, locked


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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_the_file_of_a_dead_run_is_taken_over_whatever_it_holds(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    (tmp_path / ".04_performance.running.ipynb").write_text("half")
    (tmp_path / ".setup.json.123.tmp").write_text("half")
    (tmp_path / "samples.jsonl.part").write_text("kept: its step goes on with it")
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {NAME, "samples.jsonl.part"}


def test_a_kernel_that_outlived_its_run_is_ended(tmp_path: Path) -> None:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    created = psutil.Process(left.pid).create_time()
    owner = {"pid": 1, "host": socket.gethostname(), "children": [[left.pid, created]]}
    (tmp_path / NAME).write_text(json.dumps(owner))
    with locked(tmp_path):
        assert not psutil.pid_exists(left.pid)


def test_another_process_under_the_same_number_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    owner = {"pid": 1, "host": socket.gethostname(), "children": [[other.pid, 1.0]]}
    (tmp_path / NAME).write_text(json.dumps(owner))
    with locked(tmp_path):
        assert other.poll() is None
    other.kill()
    other.wait()

"""Temporary folders: gone at the end, and those of killed processes with the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from telechat_kit.temporary import HELD, temporary_folder

MAKE = """
import sys, time
from pathlib import Path
from telechat_kit.temporary import temporary_folder

with temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "weights").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


def at_work(within: Path) -> "subprocess.Popen[str]":
    """A process that holds a temporary folder with something in it."""
    process = subprocess.Popen([sys.executable, "-c", MAKE, str(within)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert Path(process.stdout.readline().strip()).is_dir()
    return process


def test_it_is_gone_at_the_end_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), temporary_folder(tmp_path) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_that_of_a_killed_process_goes_with_the_next_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    living, killed = at_work(tmp_path), at_work(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(tmp_path.iterdir())) == 2
    with temporary_folder(tmp_path):
        assert len(list(tmp_path.iterdir())) == 2  # the living one's, and this
    living.terminate()
    living.wait()


def test_folders_that_only_have_such_a_name_stay(tmp_path: Path) -> None:
    (tmp_path / "telechat-7b").mkdir()
    (tmp_path / "telechat-7b" / "weights").write_text("whole")
    (tmp_path / "telechat-begun").mkdir()  # another process is about to lock it
    os.utime(tmp_path / "telechat-7b", (0, 0))
    with temporary_folder(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["telechat-7b", "telechat-begun"]


def test_a_removal_that_was_broken_off_is_taken_up_again(tmp_path: Path) -> None:
    (tmp_path / "telechat-left" / "sub").mkdir(parents=True)
    (tmp_path / "telechat-left" / HELD).touch()
    (tmp_path / "telechat-empty").mkdir()
    os.utime(tmp_path / "telechat-empty", (0, 0))
    with temporary_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []

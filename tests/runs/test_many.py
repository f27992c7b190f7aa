"""Several runs in one call: at a time or one after the other, told apart, ended together."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from telechat_kit.errors import ParameterError
from telechat_kit.runs.many import check_jobs, profile_jobs
from telechat_kit.runs.state import load_state
from telechat_kit.runs.status_line import Board


@pytest.fixture
def three(project: Path) -> list[Path]:
    """Three profiles with folders of their own; the second one fails."""
    endings = {"first": "good", "second": "raise", "third": "good"}
    for name, ending in endings.items():
        (project / "params" / f"{name}.yaml").write_text(
            f"run_folder: runs/{name}\nquant_path: quantized-{name}\nending: {ending}\n"
        )
    return [Path("params") / f"{name}.yaml" for name in endings]


def start(root: Path, *arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "telechat_kit", "run", *map(str, arguments)]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_every_profile_runs_to_its_end_and_the_exit_code_is_the_highest(
    project: Path, three: list[Path]
) -> None:
    process = start(project, *three, "-j", "2", "--only", "4")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 1
    lines = err.splitlines()
    assert "first | completed: runs/first" in lines
    assert "second | failed: runs/second" in lines
    assert "second | ValueError: no speed <b>today</b>" in lines
    assert "third | completed: runs/third" in lines
    assert all(line.split(" | ")[0] in ("first", "second", "third") for line in lines)
    state = load_state(project / "runs" / "first")
    assert state is not None
    assert state.runs_at_once == 2
    assert state.step("04_performance").status == "completed"


@pytest.mark.soak
def test_ctrl_c_ends_all_of_them(project: Path, three: list[Path]) -> None:
    process = start(project, three[0], three[2], "-j", "2", "-p", "ending", "wait", "--only", "4")
    waiting = [project / "runs" / name / "waiting" for name in ("first", "third")]
    end = time.monotonic() + 240
    while not all(path.exists() for path in waiting):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    assert process.returncode == 130
    for path in waiting:
        state = load_state(path.parent)
        assert state is not None
        assert state.step("04_performance").status == "interrupted"
        assert not list(path.parent.glob(".*"))


@pytest.mark.soak
def test_runs_do_not_outlive_a_killed_command(project: Path, three: list[Path]) -> None:
    process = start(project, three[0], three[2], "-j", "2", "-p", "ending", "wait", "--only", "4")
    waiting = project / "runs" / "first" / "waiting"
    end = time.monotonic() + 240
    while not waiting.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while (state := load_state(waiting.parent)) is None or state.step("04_performance").status == "running":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert state.step("04_performance").status == "interrupted"


def test_profiles_that_would_overwrite_each_other_are_refused(project: Path, three: list[Path]) -> None:
    with pytest.raises(ParameterError, match='first and second both have run_folder "same"'):
        check_jobs(profile_jobs(three, (("run_folder", "same"),)), 1)
    same_weights = profile_jobs(three, (("quant_path", "same"),))
    check_jobs(same_weights, 1)
    with pytest.raises(ParameterError, match=r"both have quant_path.*leave out -j"):
        check_jobs(same_weights, 2)


def test_a_log_has_every_line_and_a_terminal_the_last_of_each() -> None:
    log, terminal = io.StringIO(), io.StringIO()
    for stream, is_terminal in ((log, False), (terminal, True)):
        console = Console(file=stream, force_terminal=is_terminal, width=80)
        with Board(console) as board:
            for text in ("[1/5] 01_setup", "[2/5] [bold] is no style here", "Error: no disk"):
                board.line("demo", text)
    assert log.getvalue().splitlines() == [
        "demo | [1/5] 01_setup",
        "demo | [2/5] [bold] is no style here",
        "demo | Error: no disk",
    ]
    assert "demo | Error: no disk" in terminal.getvalue()

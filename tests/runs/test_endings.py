"""How runs end before their time: time-outs, signals, kill -9, a full disk. Run again, and all is there."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from small_project import PARAMETERS, run

from telechat_kit.files import sha256
from telechat_kit.runs.state import STEPS

SLOW = "04_performance"
RECORDS = [name for step in STEPS for name in step.writes]


def usual_signals() -> None:
    """What a terminal gives a command, also where the tests were started with signals ignored."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start(root: Path, *arguments: str, **options: object) -> "subprocess.Popen[str]":
    """`telechat-kit run` in a process of its own."""
    command = [sys.executable, "-m", "telechat_kit", "run", "params/small.yaml", *arguments]
    options.setdefault("preexec_fn", usual_signals)
    return subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # type: ignore[call-overload, no-any-return]


def state(root: Path) -> dict[str, str]:
    steps = json.loads((root / "out" / "run.json").read_text())["steps"]
    return {step["name"]: step["status"] for step in steps}


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_a_step_that_takes_too_long_is_ended_and_says_so(project: Path) -> None:
    begin = time.monotonic()
    outcome = run(("ending", "wait"), timeouts={SLOW: 3})
    assert time.monotonic() - begin < 400  # the cell would sleep for 600 seconds
    assert outcome.exit_code == 1
    assert outcome.stopped is not None
    assert outcome.stopped.failure is not None
    assert outcome.stopped.failure.error == "TimeoutError"
    assert "longer than the 3 s that --timeout allows" in outcome.stopped.failure.message
    assert outcome.stopped.failure.cell is not None
    assert "TimeoutError" in (project / "out" / f"{SLOW}.failed.html").read_text()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak),
        pytest.param(signal.SIGHUP, 143, marks=pytest.mark.soak),
    ],
)
def test_a_signal_leaves_an_orderly_state_and_no_kernel(project: Path, number: int, code: int) -> None:
    process = start(project, "-p", "ending", "wait")
    wait_for((project / "out" / "waiting").exists)
    children = psutil.Process(process.pid).children()
    process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert process.returncode == code
    assert f"interrupted: {SLOW}.ipynb, cell 7" in err
    assert state(project)[SLOW] == "interrupted"
    assert state(project)["05_report"] == "skipped"
    assert children
    assert not any(child.is_running() for child in children)
    assert not list((project / "out").glob(".*"))


def test_a_second_run_in_the_folder_is_refused_while_the_first_works(project: Path) -> None:
    first = start(project, "-p", "ending", "wait")
    wait_for((project / "out" / "waiting").exists)
    second = start(project)
    _, err = second.communicate(timeout=240)
    assert second.returncode == 4
    assert err == (
        f"Error: a run is at work in out (process {first.pid} on {os.uname().nodename}). "
        "Wait for it, or choose another run_folder.\n"
    )
    first.terminate()
    first.communicate(timeout=240)


@pytest.mark.soak
@pytest.mark.parametrize("victim", ["command", "kernel"])
def test_killed_at_any_moment_a_rerun_completes_with_the_same_records(project: Path, victim: str) -> None:
    expected = {name: sha256(project / "out" / name) for name in RECORDS}
    moments = random.Random(victim)
    for _ in range(2):
        process = start(project, "--fresh")
        assert process.stderr is not None
        for _ in range(moments.randint(1, 20)):  # of the lines that a whole run says
            process.stderr.readline()
        time.sleep(moments.uniform(0, 0.5))
        running = psutil.Process(process.pid) if process.poll() is None else None
        kernels = running.children() if running else []
        for target in kernels if victim == "kernel" else filter(None, [running]):
            target.kill()
        process.communicate(timeout=400)
        assert run().exit_code == 0
        assert set(state(project).values()) == {"completed"}
        assert {name: sha256(project / "out" / name) for name in RECORDS} == expected
        assert not list((project / "out").glob(".*"))
        assert not list((project / "out").glob("*.failed.*"))


def test_files_that_cannot_grow_are_one_message_and_a_rerun_completes(project: Path) -> None:
    """What a full disk does: writes end with an error of the system."""

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    process = start(project, "--fresh", preexec_fn=small_files)
    _, err = process.communicate(timeout=400)
    assert process.returncode in (1, 2)
    assert "File too large" in err
    assert "Traceback" not in err
    assert run().exit_code == 0
    assert state(project) == dict.fromkeys(PARAMETERS, "completed")

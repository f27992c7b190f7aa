"""Kill -9 at 30 random moments of real commands: the next one completes the work and leaves nothing of the killed one.

Runs and sweeps are killed after a time; short commands by themselves, at one of the moments at which they touch files.
It takes minutes, so these tests run only when asked for: `make kills`.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from telechat_kit.cli import cli
from telechat_kit.comparison.findings import SAME
from telechat_kit.comparison.run_data import read_run_data
from telechat_kit.files import sha256
from telechat_kit.runs.repetition import same_results
from telechat_kit.runs.state import load_state
from telechat_kit.runs.verification import verify

ROOT = Path(__file__).resolve().parents[2]
#: Who is killed: one of the processes below the command, the command, or all
VICTIMS = ("below", "command", "all")
RUN_CHAINS, RUN_KILLS, SWEEP_KILLS = 2, 4, 4
#: Kills of each short command
SHORT = {"export": 6, "pack": 4, "compare": 4, "index": 4}
#: Events of the interpreter that change files, and the place of the path in their arguments
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "tempfile.mkdtemp"}
LONGEST = 1200

pytestmark = [pytest.mark.kills, pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")]


class Place:
    """A folder for the results of commands, and one for what they leave elsewhere. The names are short: sockets lie there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary, self.work = folder, folder / "t", folder / "w"
        self.profile, self.sweep = folder / "tiny.yaml", folder / "sweep.yaml"
        places = {
            "run_folder": "run",
            "quant_path": "w8a8",
            "checkpoint_path": "model",
            "model_path": "model",
        }
        values = yaml.safe_load((ROOT / "params" / "tiny.yaml").read_text(encoding="utf-8"))
        values |= {key: str(self.work / name) for key, name in places.items()}
        self.profile.write_text(yaml.safe_dump(values))
        sweep = {"profiles": [str(self.profile)], "parameters": {"level": ["L0", "L2"]}}
        self.sweep.write_text(yaml.safe_dump({**sweep, "results": str(self.work / "sweep")}))
        self.clear()

    def clear(self) -> None:
        for folder in (self.work, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        own = {"TMPDIR": str(self.temporary), "JUPYTER_RUNTIME_DIR": str(self.temporary / "jupyter")}
        return os.environ | own | {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "c"), "PYTHONPATH": str(ROOT)}

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [sys.executable, "-m", "telechat_kit", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, **quiet)

    def left_behind(self) -> list[str]:
        """What no command that came to its end leaves: hidden and temporary files, pages of failures, processes."""
        hidden = [p for p in self.work.rglob("*") if p.name.startswith(".") or ".failed." in p.name]
        temporary = [p for p in self.temporary.rglob("*") if p.name != "jupyter"]
        return [str(p.relative_to(self.folder)) for p in hidden + temporary] + self._processes()

    def _processes(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TMPDIR") == str(self.temporary):
                    found.append(" ".join(process.cmdline())[:200])
            except psutil.Error:
                continue  # gone meanwhile, or somebody else's
        return found


def hashes(path: Path) -> dict[str, str]:
    """Names and contents of a file or folder; nothing if it is not there."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path.parent)): sha256(file) for file in files if file.is_file()}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="kills-", dir="/tmp"))
    yield Place(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def unbroken(place: Place) -> tuple[Path, float]:
    """What a run that nothing disturbed leaves, in another folder, and the seconds that it took."""
    begin = time.monotonic()
    assert place.start("run", str(place.profile)).wait(LONGEST) == 0
    seconds = time.monotonic() - begin
    assert place.left_behind() == []
    kept = Path(shutil.copytree(place.work, place.folder / "unbroken"))
    return kept, seconds


def kill(process: "subprocess.Popen[bytes]", who: str, choice: random.Random) -> bool:
    """Kill the command, or what it started if there is anything; whether it was still at work."""
    at_work = process.poll() is None
    try:
        command = psutil.Process(process.pid)
        below = command.children(recursive=True)
        one = choice.choice(below or [command])
        for victim in {"below": [one], "command": [command], "all": [command, *below]}[who]:
            victim.kill()
    except psutil.Error:
        pass  # gone meanwhile
    process.wait(LONGEST)
    return at_work


def kill_again_and_again(place: Place, arguments: list[str], kills: int, most: float, seed: int) -> None:
    """Start a command `kills` times and kill it within `most` seconds, then let it come to its end."""
    choice, hit = random.Random(seed), 0
    for number in range(kills):
        process = place.start(*arguments)
        time.sleep(choice.uniform(0.02, 1) * most)
        hit += kill(process, VICTIMS[(seed + number) % len(VICTIMS)], choice)
    print(f"{arguments[0]}: {hit} of {kills} kills came before the end")
    assert hit > kills // 2
    assert place.start(*arguments).wait(LONGEST) == 0
    assert place.left_behind() == []


@pytest.mark.parametrize("chain", range(RUN_CHAINS))
def test_a_run_killed_again_and_again_is_completed_by_the_next(
    place: Place, unbroken: tuple[Path, float], chain: int
) -> None:
    kept, seconds = unbroken
    place.clear()
    kill_again_and_again(place, ["run", str(place.profile)], RUN_KILLS, 0.4 * seconds, chain)
    assert hashes(place.work / "w8a8") == hashes(kept / "w8a8")
    before, now = read_run_data(kept / "run"), read_run_data(place.work / "run")
    assert [f for f in same_results(before, now) if f.verdict != SAME] == []
    assert len(before.samples or ()) == len(now.samples or ())
    assert complete(place.work / "run")


def complete(run: Path) -> bool:
    """Whether all steps are done, and all that the run left belongs together."""
    state = load_state(run)
    assert state is not None
    assert {step.status for step in state.steps} == {"completed"}
    found = verify(run, repeat=False)
    assert found.wrong == []
    return found.good


def test_a_sweep_killed_again_and_again_is_completed_by_the_next(
    place: Place, unbroken: tuple[Path, float]
) -> None:
    place.clear()
    arguments = ["sweep", str(place.sweep), "-j", "2"]
    kill_again_and_again(place, arguments, SWEEP_KILLS, 0.6 * unbroken[1], seed=SWEEP_KILLS)
    runs = [path.parent for path in (place.work / "sweep").glob("*/run.json")]
    assert len(runs) == 2
    assert all(complete(run) for run in runs)
    assert (place.work / "sweep" / "sweep.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


@pytest.fixture
def finished(place: Place, unbroken: tuple[Path, float]) -> Place:
    """The place as the unbroken run left it."""
    place.clear()
    shutil.copytree(unbroken[0], place.work, dirs_exist_ok=True)
    return place


def short_command(name: str, place: Place) -> tuple[list[str], Path]:
    """A command on the finished run, and what it writes."""
    work, run = place.work, str(place.work / "run")
    target = (
        work
        / {"export": "exported", "pack": "run.zip", "compare": "compared.html", "index": "index.html"}[name]
    )
    words = {
        "export": [str(work / "w8a8"), str(target), "--format", "compressed-tensors", "--names", "llama"],
        "pack": [run, "-o", str(target), "--outside"],
        "compare": [run, run, "--page", str(target)],
        "index": [str(work)],
    }
    return [name, *words[name]], target


@pytest.mark.parametrize("name", SHORT)
def test_a_short_command_killed_while_it_writes_is_done_by_the_next(finished: Place, name: str) -> None:
    arguments, target = short_command(name, finished)
    code, events = ended(finished, arguments)
    assert code == 0
    whole, choice, hit = kept_of(name, target), random.Random(name), 0
    for moment in range(SHORT[name]):
        if moment % 2:
            remove(target)  # every other time there is nothing yet that would be replaced
        before = kept_of(name, target)
        delay = choice.uniform(0, 0.002) if moment >= SHORT[name] // 2 else 0.0  # in the middle of a write
        code, _ = ended(finished, arguments, choice.randint(1, events), delay)
        assert code in (0, -signal.SIGALRM)
        hit += code != 0
        moved_aside = [{}] if name == "export" else []  # replacing a folder takes two steps
        assert kept_of(name, target) in (before, whole, *moved_aside)
        assert ended(finished, arguments)[0] == 0
        assert kept_of(name, target) == whole
        assert finished.left_behind() == []
    print(f"{name}: {hit} of {SHORT[name]} kills came before the end")
    assert hit >= SHORT[name] // 2


def kept_of(name: str, target: Path) -> Any:
    """What must be equal each time: all bytes, or of a page, whose tables have ids of their own, that it is whole."""
    if name in ("export", "pack") or not target.exists():
        return hashes(target)
    return target.read_text(encoding="utf-8").rstrip().endswith("</html>")


def remove(target: Path) -> None:
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def ended(place: Place, arguments: list[str], event: int = 0, delay: float = 0.0) -> tuple[int, int]:
    """Run a command in a fork of this process, which has imported all; how it ended, and how often it touched files.

    At the file event of that number, and `delay` seconds later, the system ends it, without a word to the interpreter.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_command(place, arguments, writing, _mortal(str(place.folder), event, delay))
    os.close(writing)
    with os.fdopen(reading) as pipe:
        events = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(events or 0)


def _mortal(root: str, event: int, delay: float) -> list[int]:
    """Have every event counted that touches a file below `root`; the count is in the list."""
    count = [0]

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if (
            name in CHANGES
            and str(arguments[0]).startswith(root)
            and (name != "open" or _writes(arguments[2]))
        ):
            count[0] += 1
            if count[0] == event:
                signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.addaudithook(hook)
    return count


def _writes(flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


def _be_the_command(place: Place, arguments: list[str], pipe: int, count: list[int]) -> None:
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.environ.update(place.environment)
        tempfile.tempdir = None
        os.chdir(ROOT)
        code = _code(lambda: cli(arguments, standalone_mode=False))
        os.write(pipe, str(count[0]).encode())
    finally:
        os._exit(code)


def _code(command: Callable[[], Any]) -> int:
    try:
        command()
    except SystemExit as end:
        return int(end.code or 0)
    return 0

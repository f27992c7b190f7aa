"""Several runs, some at a time: a process for each, their lines told apart, all of them ended together."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from telechat_kit.environment import prepare_checkpoint
from telechat_kit.errors import ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.messages import Message, marked
from telechat_kit.messages import gettext as _
from telechat_kit.runs.execution import AT_ONCE
from telechat_kit.runs.profile import Profile, load_profile
from telechat_kit.runs.signals import PARENT, Terminated, orderly_end
from telechat_kit.runs.status_line import Board

_CODES = {
    0: marked("completed"),
    1: marked("failed"),
    2: marked("not started or broken off: see its lines"),
    3: marked("completed, a limit is open"),
    4: marked("folder in use"),
    5: marked("completed, a limit is not kept"),
}


@dataclass(frozen=True)
class Job:
    """One of several runs: a profile and what it overrides."""

    label: str
    profile: Path
    overrides: tuple[tuple[str, str], ...] = ()

    def load(self) -> Profile:
        return load_profile(self.profile, self.overrides)

    def command(self, options: Sequence[str]) -> list[str]:
        """The call that runs it by itself."""
        words = [word for key, value in self.overrides for word in ("-p", key, value)]
        return [sys.executable, "-m", "telechat_kit", "run", str(self.profile), *words, *options]


def profile_jobs(profiles: Iterable[Path], overrides: tuple[tuple[str, str], ...]) -> list[Job]:
    """A job for each profile, named after its file."""
    return [Job(path.stem, path, overrides) for path in profiles]


def run_jobs(jobs: Sequence[Job], options: Sequence[str] = (), at_once: int = 1) -> dict[str, int]:
    """Run all jobs, `at_once` at a time; the exit code of each by its label.

    Runs at the same time share the machine: each gets its share of the threads, `run.json` says how many there
    were, and their speeds are not those of a run alone.

    Raises:
        ParameterError: a profile is wrong, or two of them write to the same place.
    """
    check_jobs(jobs, at_once)
    if at_once > 1:
        prepare_checkpoints(jobs)
    runner = _Runner(min(at_once, len(jobs)), options)
    with orderly_end(), runner.board, ThreadPoolExecutor(runner.at_once) as pool:
        try:
            return dict(pool.map(runner.run, jobs))
        except KeyboardInterrupt as signal:
            runner.stop()
            return ended_by(signal, jobs)


def ended_by(signal: KeyboardInterrupt, jobs: Sequence[Job]) -> dict[str, int]:
    """The exit codes of jobs that a signal ended."""
    return dict.fromkeys([job.label for job in jobs], 143 if isinstance(signal, Terminated) else 130)


def check_jobs(jobs: Sequence[Job], at_once: int) -> None:
    """Refuse jobs that would overwrite each other's results."""
    profiles = {job.label: job.load() for job in jobs}
    if len(profiles) < len(jobs):
        raise ParameterError("two profiles have the same name. Rename one of the files.")
    _refuse_shared("run_folder", {label: profile.run_folder for label, profile in profiles.items()})
    if at_once > 1:
        made = {label: profile.values.get("quant_path", "the default") for label, profile in profiles.items()}
        _refuse_shared("quant_path", made)


def prepare_checkpoints(jobs: Sequence[Job]) -> None:
    """Make the embedded models beforehand: runs at a time that share one would all make it."""
    for values in (job.load().values for job in jobs):
        if values.get("embedded_model") and values.get("checkpoint_path"):
            prepare_checkpoint(values["checkpoint_path"], values["embedded_model"])


def _refuse_shared(key: str, places: dict[str, str]) -> None:
    taken: dict[str, str] = {}
    for label, place in places.items():
        other = taken.setdefault(place, label)
        if other != label:
            raise ParameterError(
                '{other} and {label} both have {key} "{place}": one would overwrite the other. {remedy}',
                other=other,
                label=label,
                key=key,
                place=place,
                remedy=Message("Give each its own {key}, or leave out -j.", key=key)
                if key == "quant_path"
                else Message("Give each its own {key}.", key=key),
            )


class _Runner:
    """The processes at work."""

    def __init__(self, at_once: int, options: Sequence[str]) -> None:
        self.at_once, self.options = at_once, options
        self.board = Board()
        self._processes: list[subprocess.Popen[str]] = []
        self._stopping = threading.Event()
        self._starting = threading.Lock()

    def run(self, job: Job) -> tuple[str, int]:
        process = self._start(job)
        if process is None:
            return job.label, 130
        with process, process.stdout or nullcontext() as lines:
            for line in lines or ():
                self.board.line(job.label, line.rstrip("\n"))
        folder = relative(resolve(job.load().run_folder))
        told = _(_CODES.get(process.returncode, marked("interrupted")))
        self.board.line(job.label, f"{told}: {folder}")
        return job.label, process.returncode

    def _start(self, job: Job) -> "subprocess.Popen[str] | None":
        with self._starting:
            if self._stopping.is_set():
                return None
            process = subprocess.Popen(
                job.command(self.options),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                env=self._environment(),
                start_new_session=True,  # Ctrl-C comes to this process, which then ends the others in order
            )
            self._processes.append(process)
            return process

    def _environment(self) -> dict[str, str]:
        threads = str(max(1, (os.cpu_count() or 1) // self.at_once))
        shared = {} if self.at_once == 1 else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        own = {PARENT: str(os.getpid()), AT_ONCE: str(self.at_once), "PYTHONIOENCODING": "utf-8"}
        return {**os.environ, **shared, **own}

    def stop(self) -> None:
        """Start no more, and end those at work as by SIGTERM."""
        self._stopping.set()
        with self._starting:
            for process in self._processes:
                if process.poll() is None:
                    process.terminate()

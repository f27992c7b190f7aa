"""Execute the notebooks of a profile one after another; unchanged steps are reused, failures leave a page."""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import nbformat
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from telechat_kit.files import project_root, relative, resolve, write_text, writing
from telechat_kit.provenance import code_hash, combined_hash, file_hash, versions
from telechat_kit.reports.notebook_page import export_notebook
from telechat_kit.reports.page import PAGES
from telechat_kit.runs.profile import Profile, default_values, notebook_path
from telechat_kit.runs.progress import StepProgress
from telechat_kit.runs.state import SCHEMA, STEPS, Failure, RunState, Step, StepState, load_state

#: Kernel and client talk through files of this user, not through open TCP ports. A kernel that has done its work
#: is ended at once: asked to end by itself, it can take seconds and log an interrupt that was none.
_KERNEL = Config({"NotebookClient": {"shutdown_kernel": "immediate"}})
if sys.platform != "win32":
    _KERNEL.KernelManager.transport = "ipc"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the step that failed or was interrupted, if any."""

    folder: Path
    stopped: StepState | None

    @property
    def exit_code(self) -> int:
        """0 completed, 1 a step failed, 130 interrupted."""
        if self.stopped is None:
            return 0
        return 130 if self.stopped.status == "interrupted" else 1


def run_profile(profile: Profile, fresh: bool = False) -> Outcome:
    """Run every step of `profile` that is not done already; `fresh` runs all.

    The run folder gets the parameters, `run.json`, and for each step the executed notebook, its page and its
    records. A failed step leaves `STEP.failed.ipynb` and `.html`; what an earlier run left stays.
    """
    folder = resolve(profile.run_folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    earlier = None if fresh else load_state(folder)
    state = RunState(SCHEMA, relative(profile.path), profile.values, versions())
    write_text(folder / "params.yaml", yaml.safe_dump(profile.values, allow_unicode=True, sort_keys=False))
    state.save(folder)
    stopped = None
    for number, step in enumerate(STEPS, start=1):
        current = state.step(step.name)
        if stopped is not None:
            _skip(step, current, earlier)
        elif not _reuse(step, profile, folder, current, earlier):
            _run_step(f"[{number}/{len(STEPS)}] {step.name:<14}", step, profile, folder, state)
            stopped = current if current.status != "completed" else None
        state.save(folder)
    return Outcome(folder, stopped)


def _skip(step: Step, current: StepState, earlier: RunState | None) -> None:
    """Leave a step out after a failure; what an earlier run made stays valid under its key."""
    current.status = "skipped"
    if earlier is not None:
        done = earlier.step(step.name)
        current.key, current.started, current.seconds = done.key, done.started, done.seconds


def _reuse(step: Step, profile: Profile, folder: Path, current: StepState, earlier: RunState | None) -> bool:
    """Take over an earlier result if the step's content key is unchanged and all that it left is there."""
    done = earlier.step(step.name) if earlier else None
    if (
        done is None
        or done.status not in ("completed", "skipped")
        or done.key != content_key(step, profile, folder)
    ):
        return False
    left = [folder / name for name in (*step.writes, f"{step.name}.ipynb", f"{step.name}.html")]
    if not all(path.exists() for path in left):
        return False
    current.status, current.started, current.seconds, current.key = (
        "completed",
        done.started,
        done.seconds,
        done.key,
    )
    StepProgress(f"      {step.name:<14}", _cells(step)).finish("unchanged, kept; looked up")
    return True


def content_key(step: Step, profile: Profile, folder: Path) -> str:
    """Hash of all that decides a step's result: notebook, code, parameters, content of the files it reads.

    What the step made itself belongs to it: another run may have put something else in its place.
    """
    values = default_values(step.name) | profile.for_notebook(step.name)
    parts = [file_hash(notebook_path(step.name)), code_hash()]
    parts += [f"{key}={values[key]!r}" for key in sorted(values)]
    paths = [resolve(values[key]) for key in (*step.reads, *step.makes) if values.get(key)]
    paths += [folder / name for name in step.needs]
    parts += [f"{path.name} {_content(path)}" for path in paths]
    return combined_hash(parts)


def _content(path: Path) -> str:
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return combined_hash(f"{file.name} {file_hash(file)}" for file in files if file.is_file())


def _run_step(label: str, step: Step, profile: Profile, folder: Path, state: RunState) -> None:
    current, progress = state.step(step.name), StepProgress(label, _cells(step))
    current.status, current.started = "running", datetime.now(timezone.utc).isoformat(timespec="seconds")
    state.save(folder)
    running = folder / f".{step.name}.running.ipynb"
    start = time.perf_counter()
    try:
        _execute(step, profile, running, progress)
        current.status, current.key = "completed", content_key(step, profile, folder)
    except KeyboardInterrupt:
        current.status, current.failure = (
            "interrupted",
            Failure(f"{step.name}.ipynb", None, "Interrupted", "by the user"),
        )
    except Exception as error:  # the run must record whatever a notebook or its kernel does
        current.status, current.failure = "failed", describe_failure(step, error)
    current.seconds = round(time.perf_counter() - start, 3)
    _publish(step, running, folder, current)
    progress.finish(current.status)


def _execute(step: Step, profile: Profile, output: Path, progress: StepProgress) -> None:
    with _quiet():
        papermill.execute_notebook(
            str(notebook_path(step.name)),
            str(output),
            parameters=profile.for_notebook(step.name),
            kernel_name="python3",
            cwd=str(project_root()),
            progress_bar=False,
            stderr_file=progress,
            on_cell_start=progress.cell_started,
            config=_KERNEL,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Papermill and its kernel client say on their loggers what the run says itself."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def describe_failure(step: Step, error: Exception) -> Failure:
    """What happened, in the user's terms, and what to do about it."""
    notebook = f"{step.name}.ipynb"
    if isinstance(error, PapermillExecutionError):
        return Failure(notebook, error.cell_index + 1, error.ename, error.evalue)
    if isinstance(error, DeadKernelError):
        message = (
            "the kernel died: it was killed, or the machine ran out of memory. "
            "Free memory or use a smaller case, and run again: finished steps are kept."
        )
        return Failure(notebook, None, "DeadKernelError", message)
    if isinstance(error, CellTimeoutError):
        return Failure(notebook, None, "CellTimeoutError", "a cell took longer than allowed.")
    return Failure(notebook, None, type(error).__name__, str(error))


def _publish(step: Step, running: Path, folder: Path, current: StepState) -> None:
    """Give the executed notebook its name and its page; a failed one does not replace an earlier good one."""
    failed = [folder / f"{step.name}.failed{suffix}" for suffix in (".ipynb", ".html")]
    if current.status == "completed":
        target = folder / f"{step.name}.ipynb"
        for path in failed:
            path.unlink(missing_ok=True)
    else:
        target = failed[0]
        if not running.exists():
            nbformat.write(nbformat.read(notebook_path(step.name), as_version=4), running)
    running.replace(target)
    if current.failure and current.failure.cell is None:
        current.failure.cell = _running_cell(target)
    reason = f"{current.failure.error}: {current.failure.message}" if current.failure else None
    export_notebook(
        target,
        target.with_suffix(".html"),
        links=_links(target.with_suffix(".html").name, step),
        failure=reason,
    )


def _running_cell(notebook: Path) -> int | None:
    """Number of the last cell that was started; papermill's own status calls all completed after a dead kernel."""
    cells = nbformat.read(notebook, as_version=4).cells
    started = [i for i, cell in enumerate(cells, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return max(started, default=None)


def _links(name: str, step: Step) -> Sequence[tuple[str, str]]:
    return [(label, name if href == f"{step.name}.html" else href) for label, href in PAGES]


def _cells(step: Step) -> int:
    return len(nbformat.read(notebook_path(step.name), as_version=4).cells) + 1  # papermill injects one

"""Execute the notebooks of a profile one after another; unchanged steps are reused, failures leave a page."""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml

from telechat_kit.files import project_root, relative, resolve, write_text, writing
from telechat_kit.manifest import BY_RUN, withdraw_manifest, write_manifest
from telechat_kit.messages import marked
from telechat_kit.provenance import edited_notebooks, versions
from telechat_kit.runs.failed_steps import describe_failure, oom_kills
from telechat_kit.runs.kernel import kernel_options
from telechat_kit.runs.lock import FolderLock, locked
from telechat_kit.runs.notebook_language import in_language
from telechat_kit.runs.plan import KEEP, Selection, combined_key, content_parts, decide
from telechat_kit.runs.profile import Profile, notebook_path
from telechat_kit.runs.publishing import publish
from telechat_kit.runs.signals import orderly_end
from telechat_kit.runs.state import SCHEMA, STEPS, RunState, Step, StepState, load_state
from telechat_kit.runs.status_line import StepProgress
from telechat_kit.translation import known, speaking, telling

#: Set for each of several runs at a time: their number
AT_ONCE = "TELECHAT_KIT_RUNS_AT_ONCE"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the step that failed or was interrupted, if any."""

    folder: Path
    stopped: StepState | None

    @property
    def exit_code(self) -> int:
        """0 completed, 1 a step failed, 130 interrupted, 143 ended by SIGTERM."""
        if self.stopped is None:
            return 0
        if self.stopped.status != "interrupted":
            return 1
        return 143 if self.stopped.failure and self.stopped.failure.error == "Terminated" else 130


@dataclass
class _Run:
    """What the steps of a run share."""

    profile: Profile
    folder: Path
    state: RunState
    earlier: RunState | None
    selection: Selection
    timeouts: Mapping[str, float]
    lock: FolderLock


def run_profile(
    profile: Profile, selection: Selection | None = None, timeouts: Mapping[str, float] | None = None
) -> Outcome:
    """Run every step of `profile` that is asked for and not done already.

    The run folder gets the parameters, `run.json`, and for each step the executed notebook, its page and its
    records. A failed step leaves `STEP.failed.ipynb` and `.html`; what an earlier run left stays. Last of all the
    manifest is written; a run that was killed has none.

    Args:
        selection: which steps, and whether unchanged ones run too; all steps, unchanged ones kept, by default.
        timeouts: most seconds that a step may take, by its name.

    Raises:
        KitError: the language is unknown, the folder cannot be written, `run.json` is damaged, or another run is at
            work in the folder.
    """
    known(profile.language)
    selection = selection or Selection()
    chosen, folder = selection.steps(), resolve(profile.run_folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with orderly_end(), locked(folder) as lock:
        whole_anew = selection.fresh and len(chosen) == len(STEPS)
        earlier = None if whole_anew else load_state(folder)
        manifest = withdraw_manifest(folder)
        state = _begin(profile, folder)
        run = _Run(profile, folder, state, earlier, selection, timeouts or {}, lock)
        stopped = None
        for step in STEPS:
            current = state.step(step.name)
            if stopped is not None or step not in chosen:
                _leave(current, earlier)
            else:
                _guarded_step(run, step, current)
                stopped = current if current.status != "completed" else None
            state.save(folder)
        state.manifest = True
        state.save(folder)
        with writing(folder):
            write_manifest(folder, BY_RUN, earlier=manifest)
        return Outcome(folder, stopped)


def _begin(profile: Profile, folder: Path) -> RunState:
    at_once = int(os.environ.get(AT_ONCE, "1"))
    state = RunState(SCHEMA, relative(profile.path), profile.values, versions(), at_once, edited_notebooks())
    write_text(folder / "params.yaml", yaml.safe_dump(profile.values, allow_unicode=True, sort_keys=False))
    state.save(folder)
    return state


def _leave(current: StepState, earlier: RunState | None) -> None:
    """Leave a step out; what an earlier run made stays valid under its key."""
    current.status = "skipped"
    if earlier is not None:
        current.take_over(earlier.step(current.name))


def _guarded_step(run: _Run, step: Step, current: StepState) -> None:
    """Keep or run a step; a signal at any moment of it leaves the step `interrupted`."""
    try:
        decision = decide(step, run.profile, run.folder, run.earlier, run.selection.fresh)
        if decision.action == KEEP and run.earlier is not None:
            current.status = "completed"
            current.take_over(run.earlier.step(step.name))
            StepProgress(f"      {step.name:<14}", _cells(step)).finish(marked("unchanged, kept; looked up"))
        else:
            _run_step(run, step, current)
    except KeyboardInterrupt as signal:
        current.status, current.failure = "interrupted", describe_failure(step, signal)


def _run_step(run: _Run, step: Step, current: StepState) -> None:
    number = STEPS.index(step) + 1
    progress = StepProgress(f"[{number}/{len(STEPS)}] {step.name:<14}", _cells(step))
    current.status, current.started = "running", datetime.now(timezone.utc).isoformat(timespec="seconds")
    run.state.save(run.folder)
    running, limit = run.folder / f".{step.name}.running.ipynb", run.timeouts.get(step.name)
    start, ooms = time.perf_counter(), oom_kills()
    try:
        _execute(run, step, running, progress, limit)
        current.parts = content_parts(step, run.profile, run.folder)
        current.status, current.key = "completed", combined_key(current.parts)
    except KeyboardInterrupt as signal:
        current.status, current.failure = "interrupted", describe_failure(step, signal)
    except Exception as error:  # the run must record whatever a notebook or its kernel does
        current.status, current.failure = "failed", describe_failure(step, error, limit, ooms)
    current.seconds = round(time.perf_counter() - start, 3)
    try:
        with speaking(run.profile.language):
            publish(step, running, run.folder, current)
    except Exception as error:  # a full disk, mostly
        current.status, current.failure = "failed", current.failure or describe_failure(step, error)
    progress.finish(current.status)


def _execute(run: _Run, step: Step, output: Path, progress: StepProgress, limit: float | None) -> None:
    def cell_started(cell: Any, cell_index: int) -> None:
        if cell_index == 0:
            run.lock.note_children()
        progress.cell_started(cell, cell_index)

    options = {"timeout_func": _time_left(limit)} if limit else {}
    language = run.profile.language
    with _quiet(), telling(language), kernel_options() as kernel:
        papermill.execute_notebook(
            in_language(nbformat.read(notebook_path(step.name), as_version=4), language),
            _literal(output),
            parameters=run.profile.for_notebook(step.name),
            cwd=str(project_root()),
            progress_bar=False,
            stderr_file=progress,
            on_cell_start=cell_started,
            **kernel,
            **options,
        )


def _literal(path: Path) -> str:
    """A path in which papermill finds no `{parameter}` to fill in."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _time_left(limit: float) -> Any:
    """What nbclient asks before each cell: seconds that it may take, of the `limit` for the whole notebook."""
    end = time.monotonic() + limit
    return lambda _cell: max(end - time.monotonic(), 0.01)  # 0 would mean: no limit


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


def _cells(step: Step) -> int:
    return len(nbformat.read(notebook_path(step.name), as_version=4).cells) + 1  # papermill injects one

"""How far the run of a folder came, told from what lies in it: complete, incomplete, failed, interrupted, by hand."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import KitError
from telechat_kit.files import read_json
from telechat_kit.messages import Message, marked
from telechat_kit.records import RECORDS, WRITTEN_BY

COMPLETE, INCOMPLETE, FAILED, INTERRUPTED = (
    marked("complete"),
    marked("incomplete"),
    marked("failed"),
    marked("interrupted"),
)
#: A step that is marked as at work: it is, or its process was killed
AT_WORK, BY_HAND, DAMAGED, EMPTY = (
    marked("at work or killed"),
    marked("by hand"),
    marked("damaged"),
    marked("not begun"),
)

_REPORT = "report.html"
#: Steps and the record that each leaves
_LEAVES = {step: f"{name}.json" for name, step in WRITTEN_BY.items()}
_LEAVES |= {"05_report": _REPORT}


@dataclass(frozen=True)
class FolderState:
    """A run folder: its state and what explains it, the records that can be read, and the page to look at first."""

    folder: Path
    kind: str
    detail: str
    run: RunData | None
    page: str = ""  # name of the file; empty: there is none

    @property
    def started(self) -> str:
        """When its first step began, or its first record, UTC to the minute; empty: not told."""
        steps = _steps(self.run.state if self.run else {})
        records = (
            (self.run.setup, self.run.quantize, self.run.precision, self.run.performance) if self.run else ()
        )
        told = [str(step["started"]) for step in steps if step.get("started")]
        told += [record.conditions.started for record in records if record is not None]
        return min(told, default="")[:16].replace("T", " ")


def run_folders(results: Path) -> list[Path]:
    """The folders below `results` that a run, whole or in part, left something in, by name."""
    names = {"run.json", *(f"{name}.json" for name in RECORDS)}
    found = {
        Path(folder)
        for folder, _, files in os.walk(results)  # which goes on where a folder is gone or closed to it
        if names & set(files) or any(name.endswith(".failed.html") for name in files)
    }
    hidden = {
        folder for folder in found if any(part.startswith(".") for part in folder.relative_to(results).parts)
    }
    return sorted(
        folder for folder in found - hidden if not (folder / "config.json").exists()
    )  # W8A8 weights


def folder_state(folder: Path) -> FolderState:
    """The state of one run folder; nothing in it makes this fail."""
    page = _page(folder)
    state = _read_state(folder)
    if isinstance(state, str):
        return FolderState(folder, DAMAGED, state, None, page)
    missing = [name for name in _LEAVES.values() if not (folder / name).is_file()]
    run: RunData | None = RunData(folder.name, folder, state=state)
    if any((folder / f"{name}.json").is_file() for name in RECORDS):
        try:
            run = read_run_data(folder)
        except KitError as error:
            return FolderState(folder, DAMAGED, _without_place(error, folder), None, page)
    kind, detail = _by_steps(_steps(state), missing) if state else _by_records(missing)
    return FolderState(folder, kind, detail, run, page)


def _read_state(folder: Path) -> dict[str, Any] | str:
    """`run.json`, empty where there is none; or what is wrong with it."""
    path = folder / "run.json"
    if not path.is_file():
        return {}
    try:
        values = read_json(path)
    except KitError as error:
        return _without_place(error, folder)
    return values if isinstance(values, dict) else marked("run.json is no object")


def _steps(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    steps = state.get("steps")
    listed = steps if isinstance(steps, list) else []
    return [step for step in listed if isinstance(step, dict) and {"name", "status"} <= set(step)]


def _by_steps(steps: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> tuple[str, str]:
    for status, kind in (("failed", FAILED), ("interrupted", INTERRUPTED), ("running", AT_WORK)):
        if stopped := [step for step in steps if step["status"] == status]:
            return kind, _where(stopped[0])
    waiting = [
        str(step["name"])
        for step in steps
        if step["status"] == "pending" or (step["status"] == "skipped" and not step.get("key"))
    ]
    if waiting:
        return INCOMPLETE, Message("not run: {waiting}", waiting=", ".join(waiting))
    if missing or not steps:
        return INCOMPLETE, Message("{missing} missing", missing=", ".join(missing) or Message("steps"))
    return COMPLETE, ""


def _where(step: Mapping[str, Any]) -> str:
    """Where a run stopped, and why if a step failed."""
    failure, name = step.get("failure"), step["name"]
    if not isinstance(failure, dict) or step["status"] != "failed":
        return Message("in {step}", step=name)
    problem = str(failure.get("message", "")).strip().split("\n")[0]
    error = failure.get("error", "error")
    return Message("in {step}: {error}: {problem}", step=name, error=error, problem=problem)


def _by_records(missing: Sequence[str]) -> tuple[str, str]:
    """A folder without `run.json`: notebooks were run one by one."""
    there = [name for name in _LEAVES.values() if name not in missing]
    if not there:
        return EMPTY, ""
    return BY_HAND, Message("{missing} missing", missing=", ".join(missing)) if missing else Message(
        "all {count} steps", count=len(there)
    )


def _page(folder: Path) -> str:
    """The report; without it the page of a failed step, then that of the last step."""
    names = [_REPORT]
    names += [path.name for path in sorted(folder.glob("*.failed.html"), reverse=True)]
    names += [f"{step}.html" for step in reversed(_LEAVES)]
    return next((name for name in names if (folder / name).is_file()), "")


def _without_place(error: KitError, folder: Path) -> str:
    """An error as a page may show it: without the folders of the machine."""
    return str(error).replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "")

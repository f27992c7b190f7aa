"""What a run has to do: which steps run, which are kept, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from telechat_kit.comparison.rules import FLOAT, parse_limits
from telechat_kit.errors import ParameterError
from telechat_kit.files import resolve
from telechat_kit.messages import Message, joined, marked
from telechat_kit.provenance import code_hash, combined_hash, file_hash, machine
from telechat_kit.records import RECORDS
from telechat_kit.runs.profile import Profile, default_values, notebook_path
from telechat_kit.runs.state import STEPS, RunState, Step, StepState
from telechat_kit.texts import text_files

#: Parameters that name texts, with commas or by the kit's name for its own
_TEXTS = ("calibration_path", "text_path", "kinds_path", "languages_path")
RUN, PERHAPS, KEEP, LEAVE = marked("run"), marked("perhaps"), marked("keep"), marked("leave")


@dataclass(frozen=True)
class Selection:
    """What is asked for: steps by name (none: all), and whether they run although nothing changed."""

    only: tuple[str, ...] = ()
    start: str | None = None
    fresh: bool = False

    def steps(self) -> list[Step]:
        """The steps asked for, in their order; a `ParameterError` names a step that does not exist."""
        chosen = {find_step(name).name for name in self.only} or {step.name for step in STEPS}
        first = STEPS.index(find_step(self.start)) if self.start else 0
        return [step for step in STEPS[first:] if step.name in chosen]


@dataclass(frozen=True)
class Decision:
    """`action` is run, perhaps (it reads what an earlier step will make), keep, or leave (not asked for)."""

    step: Step
    action: str
    reason: str


def find_step(name: str) -> Step:
    """The step called `name`: `3`, `03`, `precision` or `03_precision`."""
    for step in STEPS:
        number, word = step.name.split("_", 1)
        if name in (step.name, number, number.lstrip("0"), word):
            return step
    known = ", ".join(step.name for step in STEPS)
    raise ParameterError(
        'no step is called "{name}". Steps: {known}; the number or the word is enough.',
        name=name,
        known=known,
    )


def plan(profile: Profile, folder: Path, earlier: RunState | None, selection: Selection) -> list[Decision]:
    """What a run would do now, without doing it."""
    chosen, found, changing = selection.steps(), [], set[str]()
    for step in STEPS:
        decision = decide(step, profile, folder, earlier, selection.fresh)
        if step not in chosen:
            stale = Message("not asked for; out of date: {reason}", reason=decision.reason)
            decision = Decision(step, LEAVE, stale if decision.action == RUN else marked("not asked for"))
        elif decision.action == KEEP and (before := inputs(step, profile) & changing):
            decision = Decision(
                step, PERHAPS, Message("reads {before}, which may change", before=", ".join(sorted(before)))
            )
        if decision.action in (RUN, PERHAPS):
            changing |= outputs(step, profile)
        found.append(decision)
    return found


def decide(step: Step, profile: Profile, folder: Path, earlier: RunState | None, fresh: bool) -> Decision:
    """Whether an earlier result of `step` can be taken over: nothing that decides it changed, all it left is there."""
    done = earlier.step(step.name) if earlier else None
    if fresh:
        return Decision(step, RUN, marked("asked for afresh"))
    if done is None or done.status == "pending" or (done.status == "skipped" and not done.key):
        return Decision(step, RUN, marked("not run yet"))
    if done.status not in ("completed", "skipped"):
        return Decision(step, RUN, Message("the last run left it {status}", status=done.status))
    found = content_parts(step, profile, folder)
    if done.key != combined_key(found):
        return Decision(step, RUN, _difference(done, found))
    missing = [name for name in left_by(step) if not (folder / name).exists()]
    if missing:
        return Decision(step, RUN, Message("{missing} is missing", missing=", ".join(missing)))
    return Decision(step, KEEP, marked("unchanged"))


def _difference(done: StepState, found: dict[str, str]) -> str:
    if not done.parts:
        return marked("something that it depends on changed")
    names = [name for name in {**done.parts, **found} if done.parts.get(name) != found.get(name)]
    changes = joined(", ", (_change(name, done.parts.get(name), found.get(name)) for name in names))
    return Message("changed: {changes}", changes=changes)


def _change(name: str, before: str | None, now: str | None) -> str:
    if not name.startswith("parameter "):
        return name
    return f"{name} {before or 'none'} -> {now or 'none'}"


def left_by(step: Step) -> Sequence[str]:
    """Names of the files that a completed step leaves in the run folder."""
    return (*step.writes, f"{step.name}.ipynb", f"{step.name}.html")


def inputs(step: Step, profile: Profile) -> set[str]:
    """Folders and records that a step reads, as a profile names them."""
    values = default_values(step.name) | profile.for_notebook(step.name)
    return {str(values[key]) for key in step.reads if values.get(key)} | set(step.needs)


def outputs(step: Step, profile: Profile) -> set[str]:
    """Folders and records that a step makes."""
    values = default_values(step.name) | profile.for_notebook(step.name)
    return {str(values[key]) for key in step.makes if values.get(key)} | set(step.writes)


def content_parts(step: Step, profile: Profile, folder: Path) -> dict[str, str]:
    """All that decides a step's result: notebook, code, machine, parameters, content of the files it reads.

    What the step made itself belongs to it: another run may have put something else in its place.
    """
    values = default_values(step.name) | profile.for_notebook(step.name)
    parts = {"the notebook": file_hash(notebook_path(step.name)), "the kit's code": code_hash()}
    parts["the machine"] = machine()
    parts |= {f"parameter {key}": repr(values[key]) for key in sorted(values)}
    for key in (*step.reads, *step.makes):
        if values.get(key):
            paths = text_files(values[key]) if key in _TEXTS else [resolve(values[key])]
            name = values[key] if len(paths) != 1 else paths[0].name
            parts[f"content of {key} {name}"] = content_of(*paths)
    for place in _held_against(values.get("limits")):
        parts[f"content of limits {place}"] = content_of(*_records_of(resolve(place)))
    return parts | {f"record {name}": content_of(folder / name) for name in step.needs}


def _held_against(limits: Sequence[str] | None) -> list[str]:
    """The other runs that limits look at; none if a limit is none: the report says what is wrong with it."""
    try:
        places = {limit.against for limit in parse_limits(limits or ())}
    except ParameterError:
        return []
    return sorted(places - {"", FLOAT})


def _records_of(place: Path) -> list[Path]:
    """What is read of another run: its records, or the page that carries them."""
    names = (*(f"{key}.json" for key in RECORDS), "samples.jsonl")
    return [place / name for name in names] if place.is_dir() else [place]


def combined_key(parts: dict[str, str]) -> str:
    """One hash over the parts that decide a result."""
    return combined_hash(f"{name}={value}" for name, value in parts.items())


def content_key(step: Step, profile: Profile, folder: Path) -> str:
    """Hash of all that decides a step's result."""
    return combined_key(content_parts(step, profile, folder))


def content_of(*paths: Path) -> str:
    """What stands for these files among the parts that decide a result."""
    files = [
        file
        for path in paths
        for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        if file.is_file()
    ]
    return combined_hash(f"{file.name} {file_hash(file)}" for file in files if file.is_file())

"""Whether the files of a run still belong together: the manifest both ways, `run.json`, parameters, hashes that it holds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from telechat_kit.comparison.findings import CHANGED, SAME, Finding, compared, unchecked
from telechat_kit.comparison.run_data import RunData
from telechat_kit.files import sha256
from telechat_kit.manifest import BY_RUN, NAME, Manifest, read_manifest, run_files
from telechat_kit.messages import Message, marked
from telechat_kit.provenance import file_hash
from telechat_kit.runs.plan import combined_key, content_of
from telechat_kit.runs.profile import read_mapping

MANIFEST, STATE = marked("manifest"), "run.json"
#: Pages that are rebuilt from the records at any time: the manifest and their content decide, not `run.json`
_REBUILT = ("report.html", "report.md")


def check_manifest(run: RunData) -> Iterator[Finding]:
    """Every file of the folder against the manifest, and every entry of the manifest against the folder."""
    if run.folder is None:
        yield unchecked(MANIFEST, NAME, marked("a page alone has none"))
        return
    found, folder = read_manifest(run.folder), run.folder
    if found is None:
        yield _without(run)
        return
    here = dict(run_files(folder))
    wrong = [_changed(name, entry, here[name]) for name, entry in found.files.items() if name in here]
    findings = [finding for finding in wrong if finding is not None]
    findings += [
        Finding(name, marked("in the manifest"), "missing", CHANGED, MANIFEST)
        for name in found.files
        if name not in here
    ]
    findings += [
        Finding(name, marked("not in the manifest"), "there", CHANGED, MANIFEST)
        for name in here
        if name not in found.files and found.covers(name)
    ]
    yield from findings or [Finding(Message("{count} files", count=len(found.files)), "", "", SAME, MANIFEST)]
    yield from _bound(found, run.state)
    for name in here:
        if not found.covers(name):
            yield unchecked(MANIFEST, name, marked("saved by hand after the manifest was written"))


def _without(run: RunData) -> Finding:
    """No manifest: of an older kit, of a run that was broken off, or taken away."""
    if run.state.get("manifest"):
        return Finding(NAME, marked("written, says run.json"), "missing", CHANGED, MANIFEST)
    if "manifest" in run.state:
        return unchecked(MANIFEST, NAME, marked("none was written: the run was broken off"))
    return unchecked(
        MANIFEST, NAME, marked("no manifest: made by an older version, or step by step without a report")
    )


def _changed(name: str, entry: Any, path: Path) -> Finding | None:
    size = path.stat().st_size
    if size != entry.bytes:
        return Finding(
            name,
            Message("{bytes:,} bytes", bytes=entry.bytes),
            Message("{size:,} bytes", size=size),
            CHANGED,
            MANIFEST,
        )
    found = sha256(path)
    if found != entry.sha256:
        return Finding(name, f"{entry.sha256[:16]}…", f"{found[:16]}…", CHANGED, MANIFEST)
    return None


def _bound(found: Manifest, state: Mapping[str, Any]) -> Iterator[Finding]:
    """`run.json` says that it has a manifest, and names the same hashes of the files that it left."""
    if found.made_by == BY_RUN and state and not state.get("manifest"):
        yield Finding(
            Message("{name} and run.json", name=NAME),
            marked("a manifest"),
            marked("run.json knows of none"),
            CHANGED,
            MANIFEST,
        )
    for step in state.get("steps", []):
        for name, recorded in (step.get("left") or {}).items():
            entry = found.files.get(name)
            if name not in _REBUILT and entry is not None and entry.sha256 != recorded:
                yield Finding(
                    Message("{name} in {manifest} and run.json", name=name, manifest=NAME),
                    recorded[:16],
                    entry.sha256[:16],
                    CHANGED,
                    MANIFEST,
                )


def check_state(run: RunData) -> Iterator[Finding]:
    """`run.json` in itself: keys, parameters, the records that the report read, and the files that the steps left."""
    state, folder = run.state, run.folder
    if not state:
        yield unchecked(STATE, STATE, marked("a run by hand has none"))
        return
    for step in state.get("steps", []):
        yield from _step(step, run)
    if folder is None:
        return
    path = folder / "params.yaml"
    if path.is_file():
        yield from compared(STATE, "params.yaml", read_mapping(path)[0], run.parameters)


def _step(step: Mapping[str, Any], run: RunData) -> Iterator[Finding]:
    name, parts, folder = step["name"], step.get("parts") or {}, run.folder
    if parts:
        yield from compared(STATE, f"{name}, key", step.get("key"), combined_key(parts))
        moved = run.state.get("moved") or {}  # texts that `pack` put elsewhere
        values = run.parameters | (moved if isinstance(moved, dict) else {})
        told = {key: repr(value) for key, value in values.items() if f"parameter {key}" in parts}
        yield from compared(
            STATE,
            Message("{name}, parameters", name=name),
            {key: parts[f"parameter {key}"] for key in told},
            told,
        )
    if folder is None:
        return
    for part, recorded in parts.items():
        record = part.removeprefix("record ")
        if part.startswith("record ") and (folder / record).is_file():
            yield from compared(
                STATE,
                Message("{record}, as {name} read it", record=record, name=name),
                recorded,
                content_of(folder / record),
            )
    for left, recorded in (step.get("left") or {}).items():
        if left in _REBUILT and (folder / NAME).is_file():
            continue
        if not (folder / left).is_file():
            yield Finding(Message("file {left}", left=left), f"{recorded[:16]}…", "missing", CHANGED, STATE)
        else:
            yield from compared(STATE, Message("file {left}", left=left), recorded, file_hash(folder / left))

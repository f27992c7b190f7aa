"""All that one run measured, as one value: from its folder, or from the record that its report.html carries."""

import html
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from telechat_kit.environment import SCHEMA as SETUP
from telechat_kit.environment import SetupRecord
from telechat_kit.errors import DataError
from telechat_kit.files import read_json, read_jsonl, relative, resolve
from telechat_kit.messages import Message, marked
from telechat_kit.performance.measurement import SCHEMA as PERFORMANCE
from telechat_kit.performance.measurement import PerformanceRecord, Sample
from telechat_kit.precision import SCHEMA as PRECISION
from telechat_kit.precision import PrecisionRecord
from telechat_kit.quantization.pipeline import SCHEMA as QUANTIZE
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.records import RECORDS, parse_record
from telechat_kit.strict_json import parse

SCHEMA = "telechat-kit/report/1"
_SAMPLES_REMEDY = marked("Run 04_performance again.")
_CARRIED = re.compile(r'<template id="telechat-kit-run">(.*?)</template>', re.DOTALL)


@dataclass(frozen=True)
class RunData:
    """The records of a run, those that it has. `state` is its `run.json`, empty for a run by hand."""

    name: str
    folder: Path | None
    setup: SetupRecord | None = None
    quantize: QuantizeRecord | None = None
    precision: PrecisionRecord | None = None
    performance: PerformanceRecord | None = None
    samples: list[Sample] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the run; empty where nothing tells."""
        found = self.state.get("parameters")
        return found if isinstance(found, dict) else {}


def read_run_data(place: str | Path) -> RunData:
    """A run by its folder, or by a `report.html` alone.

    Raises:
        DataError: nothing there, a damaged record, or one of a newer kit.
    """
    path = resolve(place)
    if path.is_dir():
        return parse_run(collect_run(path), relative(path), path)
    if not path.is_file():
        raise DataError("{path} does not exist. Give a run folder or a report.html.", path=path)
    return parse_run(carried_run(path), relative(path), None)


def collect_run(folder: Path) -> dict[str, Any]:
    """What `report.html` carries: the records of a run folder as they are, its raw samples, its state."""
    present = {name: folder / f"{name}.json" for name in RECORDS if (folder / f"{name}.json").is_file()}
    if not present:
        raise DataError(
            "{folder} holds no record of a run. Give a folder that `telechat-kit run` wrote.", folder=folder
        )
    samples, state = folder / "samples.jsonl", folder / "run.json"
    return {
        "schema": SCHEMA,
        "records": {name: read_json(path) for name, path in present.items()},
        "samples": read_jsonl(samples, _SAMPLES_REMEDY) if samples.is_file() else [],
        "state": read_json(state) if state.is_file() else {},
    }


def carried_html(run: dict[str, Any]) -> str:
    """The record as an inert element of a page: never run, never shown, its text escaped."""
    text = html.escape(json.dumps(run, ensure_ascii=False, separators=(",", ":")), quote=False)
    return f'<template id="telechat-kit-run">{text}</template>'


def carried_run(page: Path) -> dict[str, Any]:
    """The record that a page carries, as parsed JSON.

    Raises:
        DataError: it carries none, or more than one: the page would show one and be judged by another.
    """
    found = _CARRIED.findall(page.read_text(encoding="utf-8", errors="replace"))
    if not found:
        raise DataError(
            "{page} carries no record of its run. Give the run folder, or a report.html of this kit or a newer one.",
            page=page,
        )
    if len(found) > 1:
        raise DataError(
            "{page} carries {count} records of its run. Give the run folder, or a report.html of this "
            "kit or a newer one.",
            page=page,
            count=len(found),
        )
    values = parse(
        html.unescape(found[0]).encode(),
        Message("the record in {page}", page=page),
        marked("Give the run folder."),
    )
    return values if isinstance(values, dict) else {}


def without_record(page: str) -> str:
    """A page without the record that it carries: what a reader sees."""
    return _CARRIED.sub("", page)


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Step(_Open):
    """What others read of a step in `run.json`; names of files have no folder in them."""

    name: str
    status: str = ""
    parts: dict[str, str] = {}
    left: dict[Annotated[str, Field(pattern=r"^[^/\\\x00]{1,200}$")], str] = {}


class _State(_Open):
    """What others read of `run.json`; a run by hand has none."""

    parameters: dict[str, bool | int | float | str | list[int] | list[str]] = {}
    steps: list[_Step] = []
    versions: dict[str, str] = {}


class _Carried(BaseModel):
    """`collect_run`'s mapping."""

    records: dict[Literal["setup", "quantize", "precision", "performance"], dict[str, Any]]
    samples: list[Sample]
    state: _State


def parse_run(values: dict[str, Any], name: str, folder: Path | None) -> RunData:
    """`collect_run`'s mapping as typed records; `name` stands in messages and headings.

    Raises:
        DataError: a part of it is damaged, or of another version of the kit.
    """
    if values.get("schema") != SCHEMA:
        kit = _kit_version(values)
        raise DataError(
            '{name}: its record has schema "{values}" (telechat-kit {kit}), this kit reads "{schema}". '
            "Update telechat-kit, or give the run folder.",
            name=name,
            values=str(values.get("schema"))[:80],
            kit=kit,
            schema=SCHEMA,
        )
    try:
        carried = _Carried.model_validate({"samples": [], "state": {}, **values})
    except ValidationError as error:
        raise DataError("{name}: {told}", name=name, told=_told(error)) from error
    records = carried.records

    def typed(key: Any, kind: Any, schema: str) -> Any:
        return (
            parse_record(records[key], kind, schema, Message("{name}: {key}.json", name=name, key=key))
            if key in records
            else None
        )

    return RunData(
        name=name,
        folder=folder,
        setup=typed("setup", SetupRecord, SETUP),
        quantize=typed("quantize", QuantizeRecord, QUANTIZE),
        precision=typed("precision", PrecisionRecord, PRECISION),
        performance=typed("performance", PerformanceRecord, PERFORMANCE),
        samples=carried.samples,
        state=values.get("state", {}),
    )


def _kit_version(values: dict[str, Any]) -> str:
    try:
        return _State.model_validate(values.get("state")).versions["telechat-kit"]
    except (ValidationError, KeyError):
        return marked("another version")


#: Parts of a run by the file that holds them, and what to do about a damaged one
_REMEDIES = {
    "samples": ("samples.jsonl", _SAMPLES_REMEDY),
    "state": ("run.json", marked("Remove it, or run all steps again.")),
}


def _told(error: ValidationError) -> str:
    first = error.errors()[0]
    part, *keys = [str(key)[:60] for key in first["loc"]]
    if part == "records" and keys:
        file, remedy = f"{keys.pop(0)}.json", marked("Run the step again.")
    else:
        file, remedy = _REMEDIES.get(part, (part, marked("Give a run folder of this kit.")))
    where = f"{'.'.join(keys)}: {first['msg']}" if keys else first["msg"]
    return Message("{file} is damaged ({where}). {remedy}", file=file, where=where, remedy=remedy)

"""Records on disk: a dataclass to JSON and back, checked against its types; and requests, held to theirs."""

import math
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.files import read_json, resolve, write_json
from telechat_kit.manifest import renew_manifest

#: The records of a run, in the order of its steps
RECORDS = ("setup", "quantize", "precision", "performance")
#: The notebook that leaves each record
WRITTEN_BY = {name: f"0{number}_{name}" for number, name in enumerate(RECORDS, 1)}


class Record(Protocol):
    """A dataclass with a schema name such as `telechat-kit/quantize/1`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def schema(self) -> str: ...


Kind = TypeVar("Kind")
#: The largest whole number that seeds and counts can be: torch draws by 64 bits
MOST_NUMBER = 2**63 - 1


def record_path(run_folder: str | Path, schema: str) -> Path:
    """Where a record of that schema lies in a run folder: `telechat-kit/quantize/1` -> `quantize.json`."""
    return resolve(run_folder) / f"{schema.split('/')[1]}.json"


def write_record(run_folder: str | Path, record: Record) -> Path:
    """Write a record into its run folder, whole or not at all. Infinite and missing numbers become null.

    Where notebooks are stepped through by hand, the manifest that the folder has follows.

    Example:
        >>> [write_record("results/tiny", record).name for record in (setup, quantized, measured, timed)]
        ['setup.json', 'quantize.json', 'precision.json', 'performance.json']
    """
    path = write_json(record_path(run_folder, record.schema), finite(asdict(record)))
    renew_manifest(path.parent)
    return path


def read_record(run_folder: str | Path, kind: type[Kind], schema: str) -> Kind:
    """The record of a run folder, as the dataclass `kind`.

    Raises:
        DataError: the file is missing, damaged, of another schema, or lacks a field.
    """
    path = record_path(run_folder, schema)
    if not path.exists() and path.stem in WRITTEN_BY:
        raise DataError(
            "{path} does not exist. Run {written_by}, which writes it, or correct run_folder.",
            path=path,
            written_by=WRITTEN_BY[path.stem],
        )
    return parse_record(read_json(path), kind, schema, str(path))


def parse_record(values: Any, kind: type[Kind], schema: str, where: str) -> Kind:
    """Parsed JSON as the dataclass `kind`; `where` names its place in errors.

    Raises:
        DataError: another schema (an older or a newer kit's is named as such), or a field that is missing or wrong.
    """
    if not isinstance(values, dict) or values.get("schema") != schema:
        found = values.get("schema") if isinstance(values, dict) else type(values).__name__
        raise DataError(
            '{where} has schema "{found}", this kit reads "{schema}". {remedy}',
            where=where,
            found=found,
            schema=schema,
            remedy=_remedy(found, schema),
        )
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(
            "{where}: {key}: {first}. The record is damaged; run the step again.",
            where=where,
            key=key,
            first=first["msg"],
        ) from error


def _remedy(found: Any, schema: str) -> str:
    name, _, version = str(found).rpartition("/")
    known_name, _, known = schema.rpartition("/")
    if name == known_name and version.isdigit() and int(version) > int(known):
        return "It is of a newer kit: update telechat-kit."
    return "Run the step again."


def finite(value: Any) -> Any:
    """`value` with null for infinite and missing numbers, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_types(request: Any) -> None:
    """Hold the fields of a request (a dataclass of parameters) to their types, for its `__post_init__`.

    A number where a text is due becomes that text: papermill's `-p calibration_lines 3` gives the number 3.

    Raises:
        ParameterError: a value of another type, or a number that is not finite; the field is named.
    """
    for field in fields(request):
        value, kind = getattr(request, field.name), cast(Any, field.type)
        if _takes_text(kind) and isinstance(value, int | float) and not isinstance(value, bool):
            object.__setattr__(request, field.name, str(value))
            continue
        try:
            _adapter(kind).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise ParameterError(
                "{name} is {value!r} ({kind}): {problem}. Correct it.",
                name=field.name,
                value=str(value)[:60],
                kind=type(value).__name__,
                problem=first["msg"],
            ) from error
        if isinstance(value, int) and abs(value) > MOST_NUMBER:
            raise ParameterError(
                "{name} is beyond {most_number:,}. Give a smaller number.",
                name=field.name,
                most_number=MOST_NUMBER,
            )


def _takes_text(kind: Any) -> bool:
    return kind is str or str in get_args(kind)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))

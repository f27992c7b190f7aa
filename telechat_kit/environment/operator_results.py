"""What the test of operators found, and how a run heeds it: the ways that passed, and the slower way for the rest."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from telechat_kit.backends import backend_for, resolve_device
from telechat_kit.errors import DataError
from telechat_kit.files import read_json, relative, resolve, write_json
from telechat_kit.messages import Message, marked, shown
from telechat_kit.messages import gettext as _

Verdict = Literal["right", "wrong", "refused", "crashed", "timed out", "no memory", "not called", "not tried"]
#: Verdicts that a later notebook avoids the way for
BAD = (marked("wrong"), marked("refused"), marked("crashed"), marked("timed out"))
#: In a run folder: what took the device away from one of its steps
FAILED = "failed_operators.json"
#: What a record says of a way that is set aside for it
BY_TEST = marked("in the test of operators")


@dataclass(frozen=True)
class OperatorTest:
    """One call: `operation` by `way` on `rows` rows (positions, in attention).

    `error` is the largest difference to the reference as a share of its largest value, in `quantize` the share of
    values that are off by one. `not called`: a run of this model does not take the way for so many rows.
    """

    operation: str
    way: str
    rows: int
    verdict: Verdict
    error: float | None = None
    milliseconds: float | None = None
    message: str = ""


@dataclass(frozen=True)
class FailedOperator:
    """A way of an operation that took the device away from the process that ran it."""

    device_name: str
    operation: str
    way: str
    message: str


@dataclass(frozen=True)
class OperatorTests:
    """What was tried on a device, and what of it is not to be used: operation -> way -> why."""

    device: str
    device_name: str
    dtype: str
    sizes: dict[str, int]
    tests: list[OperatorTest]

    def avoided(self) -> dict[str, dict[str, str]]:
        """Ways with a bad verdict and the first reason; the last way of an operation cannot be avoided."""
        found: dict[str, dict[str, str]] = {}
        for test in self.tests:
            if test.verdict in BAD and test.way != last_way(self.tests, test.operation):
                found.setdefault(test.operation, {}).setdefault(test.way, reason(test))
        return found

    def dead_ends(self) -> list[OperatorTest]:
        """Bad verdicts on what there is no other way for."""
        return [t for t in self.tests if t.verdict in BAD and t.way == last_way(self.tests, t.operation)]


def last_way(tests: Sequence[OperatorTest], operation: str) -> str:
    """The way that an operation falls back on."""
    return [test.way for test in tests if test.operation == operation][-1]


def reason(test: OperatorTest) -> str:
    """Why a way is not to be used, in a few words."""
    told: str = test.verdict
    told = (
        Message("{verdict} at 1 row", verdict=told)
        if test.rows == 1
        else Message("{verdict} at {rows:,} rows", verdict=told, rows=test.rows)
    )
    if test.error is not None:
        told = Message("{told}, off by {error:.2g}", told=told, error=test.error)
    return Message("{told}: {reason}", told=told, reason=test.message) if test.message else told


def sentences(found: OperatorTests) -> list[str]:
    """What follows from the tests: a sentence for each way that failed, or one if all passed."""
    lines: list[str] = [
        Message(
            "{operation}: {way} is not used ({why}); {next} does it.",
            operation=operation,
            way=way,
            why=why,
            next=_next(found, operation),
        )
        for operation, ways in found.avoided().items()
        for way, why in ways.items()
    ]
    ends = {(test.operation, test.way): reason(test) for test in reversed(found.dead_ends())}
    lines += [
        Message("{name}: {way} failed ({why}), and no way is left behind it.", name=name, way=way, why=why)
        for (name, way), why in ends.items()
    ]
    right = {(test.operation, test.way) for test in found.tests if test.verdict == "right"}
    return lines or [Message("All {count} ways that were tried are right.", count=len(right))]


def _next(found: OperatorTests, operation: str) -> str:
    """The best way of an operation that is left."""
    avoided = found.avoided().get(operation, {})
    ways = dict.fromkeys(test.way for test in found.tests if test.operation == operation)
    return next(way for way in ways if way not in avoided)


def use_tested_operators(run_folder: str | Path, device: str = "auto") -> dict[str, dict[str, str]]:
    """Take the slower way for every operator that failed in `01_setup` of this run folder, and print which.

    Those that took the device away in an earlier step count too: they stand in `failed_operators.json`, and what takes
    it away from now on is noted there. Results of another device than the one at hand are left alone, which is printed, as
    it is where none were tried. Gives operation -> way -> why.

    Raises:
        DataError: setup.json or failed_operators.json is damaged.
        DeviceError: the device cannot be opened.

    Example:
        >>> avoided = use_tested_operators("results/tiny", "cpu")
        operators: 01_setup of this run tried none; they are used as they are.
        >>> avoided
        {}
    """
    folder = resolve(run_folder)
    found, failed = _recorded(folder / "setup.json"), _failed(folder / FAILED)
    backend = backend_for(resolve_device(device).type)
    name = backend.device_name()
    backend.operations.remember = partial(_remember, folder / FAILED, name)
    avoided: dict[str, dict[str, str]] = {}
    if found is None:
        print(_("operators: 01_setup of this run tried none; they are used as they are."))
    elif found.device_name != name:
        print(
            Message(
                "operators: those tried were of {device_name}, this is {name}. Run 01_setup again.",
                device_name=found.device_name,
                name=name,
            ).shown()
        )
    else:
        avoided = found.avoided()
        print(*map(shown, sentences(found)), sep="\n")
    for operation, ways in avoided.items():
        for way, why in ways.items():
            backend.operations.use_slower(operation, f"{BY_TEST} {why}", way)
    for each in failed:
        if each.device_name == name and each.way not in avoided.get(each.operation, {}):
            why = Message("in an earlier step it took the device away: {text}", text=each.message)
            backend.operations.use_slower(each.operation, why, each.way)
            avoided.setdefault(each.operation, {})[each.way] = why
            print(
                Message(
                    "{operation}: {way} is not used ({why}). Remove {folder} to try it again.",
                    operation=each.operation,
                    way=each.way,
                    why=why,
                    folder=relative(folder / FAILED),
                ).shown()
            )
    return avoided


def _remember(path: Path, device_name: str, operation: str, way: str, message: str) -> None:
    """Note a way that took the device away; who notes it is about to stop."""
    found = [asdict(each) for each in _failed(path)]
    write_json(path, [*found, asdict(FailedOperator(device_name, operation, way, message))])


def _failed(path: Path) -> list[FailedOperator]:
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[FailedOperator]).validate_python(read_json(path))
    except ValidationError as error:
        raise DataError(
            "{path}: {errors}. Remove it: operators that took the device away are then tried again.",
            path=relative(path),
            errors=error.errors()[0]["msg"],
        ) from error


def _recorded(path: Path) -> OperatorTests | None:
    values = read_json(path) if path.is_file() else {}
    tests = values.get("operators") if isinstance(values, dict) else None
    if tests is None:
        return None
    try:
        return TypeAdapter(OperatorTests).validate_python(tests)
    except ValidationError as error:
        raise DataError(
            "{path}: operators: {errors}. Run 01_setup again.",
            path=relative(path),
            errors=error.errors()[0]["msg"],
        ) from error

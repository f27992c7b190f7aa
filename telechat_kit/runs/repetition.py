"""Repeat a run and judge what came out: equal where it must be, within the interval of the difference elsewhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import hypot, isclose
from pathlib import Path

import yaml

from telechat_kit.comparison.changes import Figure, figures
from telechat_kit.comparison.findings import Finding, compared
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import DataError
from telechat_kit.messages import marked
from telechat_kit.precision import PrecisionRecord
from telechat_kit.provenance import code_hash, machine, versions
from telechat_kit.runs.execution import run_profile
from telechat_kit.runs.origins import recorded_code
from telechat_kit.runs.plan import Selection, find_step
from telechat_kit.runs.profile import load_profile
from telechat_kit.statistics import Estimate
from telechat_kit.temporary import temporary_folder

REPRODUCED, WITHIN, NOT, UNDECIDED = (
    marked("reproduced"),
    marked("within the interval of the difference"),
    marked("not reproduced"),
    marked("no interval"),
)
PART = marked("repeated")
#: Sums in another order, by another number of threads say, move a figure by less than this
RELATIVE_TOLERANCE = 1e-5
#: Means over answers, of which a single one has no interval: it may go another way where sums round otherwise
_OF_ANSWERS = ("answer_similarity",)
#: Packages that round
_ROUND = ("torch", "numpy")


@dataclass(frozen=True)
class Verdict:
    """One figure, as recorded and as it came out again."""

    name: str
    recorded: Figure
    repeated: Figure
    verdict: str


def repeat_run(run: RunData, steps: Sequence[str] = ()) -> RunData:
    """Run the steps again into a folder that is removed afterwards.

    With 02_quantize among them the quantized weights are made anew; otherwise those of the run are used.
    """
    if not run.parameters:
        raise DataError(
            "{name} does not tell its parameters, so it cannot be repeated. Use --hashes-only.", name=run.name
        )
    made = [step["name"] for step in run.state.get("steps", []) if step.get("status") == "completed"]
    chosen = [find_step(name).name for name in steps] or made
    with temporary_folder() as folder:
        values = run.parameters | {"run_folder": f"{folder}/run"}
        if "02_quantize" in chosen:
            values["quant_path"] = f"{folder}/w8a8"
        profile = folder / f"{Path(run.name).stem}.yaml"
        profile.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        only = tuple(name for name in chosen if name != "05_report")
        outcome = run_profile(load_profile(profile), Selection(only=only))
        if outcome.stopped is not None:
            failure = outcome.stopped.failure
            raise DataError(
                "the repetition stopped at {name}: {text}",
                name=outcome.stopped.name,
                text=failure.message if failure else "",
            )
        return read_run_data(f"{folder}/run")


def same_conditions(run: RunData) -> bool:
    """Whether the run was made here: this machine, this code, these versions, on the CPU, whose sums do not vary."""
    made_on = {step.get("parts", {}).get("the machine") for step in run.state.get("steps", [])} - {None}
    told = run.state.get("versions") or {}
    here = versions()
    record = run.precision or run.performance or run.quantize or run.setup
    return (
        made_on == {machine()}
        and recorded_code(run) == [code_hash()]
        and all(told.get(name) == here.get(name) for name in _ROUND)
        and record is not None
        and record.conditions.device == "cpu"
    )


def same_results(run: RunData, repeated: RunData) -> Iterator[Finding]:
    """All that the same machine, code and weights compute the same: every figure and answer, to the last digit."""
    before, now = run.precision, repeated.precision
    if before is not None and now is not None:
        yield from compared(PART, "precision", _computed(before), _computed(now))
    if run.quantize is not None and repeated.quantize is not None:
        for name in ("recipe", "linears", "float_linears", "float_bytes", "w8a8_bytes"):
            a, b = getattr(run.quantize, name), getattr(repeated.quantize, name)
            yield from compared(PART, f"quantize.{name}", a, b)


def _computed(record: PrecisionRecord) -> PrecisionRecord:
    """The record without what belongs to the run and not to its result."""
    conditions = replace(record.conditions, started="", memory_bytes=0, code="", hashes={})
    return replace(record, quant_path="", conditions=conditions)


def judge(recorded: RunData, repeated: RunData) -> list[Verdict]:
    """Every figure that both have, with what to say of it."""
    before, now = figures(recorded), figures(repeated)
    return [
        Verdict(name, before[name], now[name], _say(name, before[name], now[name]))
        for name in before
        if name in now
    ]


def _say(name: str, recorded: Figure, repeated: Figure) -> str:
    a, b = recorded.estimate, repeated.estimate
    if isclose(a.value, b.value, rel_tol=RELATIVE_TOLERANCE):
        return REPRODUCED
    if recorded.exact or repeated.exact:
        return UNDECIDED if recorded.timed or name in _OF_ANSWERS else NOT
    return WITHIN if _holds_none(a, b) else NOT


def _holds_none(a: Estimate, b: Estimate) -> bool:
    """Whether the interval of the difference of two estimates holds 0: the sides that face each other, in squares."""
    below, above = (a, b) if a.value < b.value else (b, a)
    return above.value - below.value <= hypot(below.high - below.value, above.value - above.low)

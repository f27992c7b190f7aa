"""Runs side by side: the conditions in which they differ, then every figure with the interval of its change."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePath

from telechat_kit.comparison.alignment import BUNDLE, Alignment, Tolerances, compare_bundles
from telechat_kit.comparison.changes import Change, Figure, Withheld, change, exact, figures
from telechat_kit.comparison.comparable import impossible
from telechat_kit.comparison.differing_conditions import run_conditions
from telechat_kit.comparison.rules import Rule
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.messages import Message, marked
from telechat_kit.performance.measurement import PUBLISHED

#: What the guide's table is of
PUBLISHED_MODEL = "TeleChat-7B"


@dataclass(frozen=True)
class Side:
    """One of the compared: a run, or a column of the published table."""

    name: str
    conditions: dict[str, str]
    figures: dict[str, Figure]
    run: RunData | None = None


#: What is said of a condition
DIFFERS, UNKNOWN, SAME = marked("differs"), marked("unknown"), marked("same")


@dataclass(frozen=True)
class ConditionRow:
    """One condition of every run; None where a run does not tell."""

    name: str
    values: list[str | None]

    @property
    def differs(self) -> bool:
        return len({value for value in self.values if value is not None}) > 1

    @property
    def verdict(self) -> str:
        """differs, same, or unknown where a run does not tell and the others agree."""
        return DIFFERS if self.differs else UNKNOWN if None in self.values else SAME


@dataclass(frozen=True)
class FigureRow:
    """One figure of every run, and the change of each later run against the first."""

    name: str
    values: list[Figure | None]
    changes: list[Change | Withheld | None]

    @property
    def shown(self) -> Figure:
        """One that is there, for label and unit."""
        return next(value for value in self.values if value is not None)


@dataclass(frozen=True)
class BundleRow:
    """A run against the first one, position by position; `refused` says why their bundles cannot be compared."""

    name: str
    alignment: Alignment | None
    refused: str = ""


@dataclass(frozen=True)
class Comparison:
    """Runs beside the first of them. Conditions that differ come first."""

    names: list[str]
    conditions: list[ConditionRow]
    figures: list[FigureRow]
    bundles: list[BundleRow]

    @property
    def differing(self) -> list[ConditionRow]:
        return [row for row in self.conditions if row.differs]


def compare(places: Sequence[str], tolerances: Tolerances | None = None) -> Comparison:
    """Compare run folders, report.html files, and the guide's columns `published:310P` and `published:A10`.

    Run folders that hold a bundle are compared position by position too, by `tolerances`.

    Raises:
        DataError: a place holds no run, or a damaged one.
        ParameterError: no such column of the published table.

    Example:
        >>> comparison = compare(["results/tiny", "results/tiny/report.html"])
        >>> [row.name for row in comparison.differing]
        []
    """
    sides = _short_names([_side(place) for place in places])
    found = list(dict.fromkeys(name for side in sides for name in side.figures))
    if any(side.run is None for side in sides):  # the table has few cases: the others say nothing about it
        found = [name for name in found if all(name in side.figures for side in sides)]
    if not found:
        raise DataError(
            "{sides} have no figure in common, so nothing is compared.",
            sides=", ".join(side.name for side in sides),
        )
    rows = [_figure_row(name, sides) for name in found]
    names = dict.fromkeys(name for side in sides for name in side.conditions)
    conditions = [ConditionRow(name, [side.conditions.get(name) for side in sides]) for name in names]
    conditions.sort(key=lambda row: ("differs", "unknown", "same").index(row.verdict))
    return Comparison(
        [side.name for side in sides], conditions, rows, bundle_rows(sides, tolerances or Tolerances())
    )


def _side(place: str) -> Side:
    if place.startswith("published"):
        return _published(place.partition(":")[2])
    run = read_run_data(place)
    return Side(run.name, run_conditions(run), figures(run), run)


def _short_names(sides: list[Side]) -> list[Side]:
    """Runs by the last part of their place, where that tells them apart."""
    short = [PurePath(side.name.removesuffix("/report.html")).name for side in sides]
    if len(set(short)) < len(short):
        return sides
    return [replace(side, name=name) if side.run else side for side, name in zip(sides, short, strict=True)]


def _published(device: str) -> Side:
    columns = {"310p": ("NPU 310P", "npu_310p"), "a10": ("GPU A10", "gpu_a10")}
    if device.lower() not in columns:
        raise ParameterError(
            'there is no published column "{device}". Use published:310P or published:A10.', device=device
        )
    name, attribute = columns[device.lower()]
    rows = {
        f"tokens_per_second[{row.input_tokens}/{row.output_tokens}]": Figure(
            Message(
                "W8A8, {input_tokens} / {output_tokens} tokens",
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
            ),
            "tokens/s",
            exact(getattr(row, attribute)),
            timed=True,
        )
        for row in PUBLISHED
        if row.input_tokens
    }
    told = {"model": PUBLISHED_MODEL, "device": name, "batch": "1"}
    return Side(Message("published: {name}", name=name), told, rows)


def _figure_row(name: str, sides: Sequence[Side]) -> FigureRow:
    values = [side.figures.get(name) for side in sides]
    changes = [
        _change(name, sides[0], side, values[0], value)
        for side, value in zip(sides[1:], values[1:], strict=True)
    ]
    return FigureRow(name, values, changes)


def _change(
    name: str, first: Side, second: Side, before: Figure | None, now: Figure | None
) -> Change | Withheld | None:
    if first.run is not None and second.run is not None:
        return change(name, before, now, (first.run, second.run))
    models = [side.conditions.get("model", "") for side in (first, second)]
    if not all(PUBLISHED_MODEL.lower() in model.lower() for model in models):
        return Withheld(marked("other model"))
    return change(name, before, now, None)


def bundle_rows(sides: Sequence[Side], tolerances: Tolerances) -> list[BundleRow]:
    """Each later run's bundle against the first's; none if no run has kept one."""
    runs = [(side.name, side.run.folder) for side in sides if side.run is not None]
    if not any(folder and (folder / BUNDLE).is_file() for _, folder in runs):
        return []
    return [_bundle_row(name, runs[0][1], folder, tolerances) for name, folder in runs[1:]]


def _bundle_row(name: str, first: Path | None, second: Path | None, tolerances: Tolerances) -> BundleRow:
    if first is None or second is None:
        return BundleRow(name, None, marked("a report.html alone holds no bundle. Give the run folder."))
    try:
        return BundleRow(name, compare_bundles(first, second, tolerances))
    except DataError as error:
        return BundleRow(name, None, str(error))


def not_aligned(found: Comparison) -> list[str]:
    """Each run that is not called aligned with the first one; a run without a bundle is not."""
    if not found.bundles:
        return [marked("no run holds a bundle. Run 03_precision with -p bundle w8a8.")]
    return [
        Message(
            "{name} is not aligned with {names}: {alignment}",
            name=row.name,
            names=found.names[0],
            alignment=str(row.alignment or row.refused),
        )
        for row in found.bundles
        if row.alignment is None or row.alignment.verdict != "aligned"
    ]


def broken_by(rule: Rule, found: Comparison) -> list[str]:
    """What meets a condition, in words; empty if nothing does.

    Raises:
        DataError: a run lacks the figure, holds one that cannot be true, or one that does not compare: silence would
            look like a pass.
        ParameterError: no run has a figure of that name.
    """
    rows = {row.name: row for row in found.figures}
    if rule.figure not in rows:
        near = get_close_matches(rule.figure, rows, n=1)
        hint = (
            Message('Did you mean "{near}"?', near=near[0])
            if near
            else Message("Figures: {rows}.", rows=", ".join(rows))
        )
        raise ParameterError(
            '--fail-if: there is no figure "{figure}". {hint}', figure=rule.figure, hint=hint
        )
    row = rows[rule.figure]
    start = 1 if rule.relative or len(found.names) > 1 else 0
    for index in range(0 if rule.relative else start, len(found.names)):
        _require(rule, found.names[index], row.values[index])
    return [text for i in range(start, len(found.names)) if (text := _judge(rule, found.names[i], row, i))]


def _require(rule: Rule, name: str, figure: Figure | None) -> None:
    """Refuse a figure that is not there, or that cannot be true."""
    if figure is None:
        raise DataError(
            "--fail-if: {name} has no {figure}. Run the step that measures it.", name=name, figure=rule.figure
        )
    if wrong := impossible(rule.figure, figure.estimate):
        raise DataError(
            "--fail-if: {figure} of {name} cannot be true: {wrong}. Run the step that measures it again.",
            figure=rule.figure,
            name=name,
            wrong=wrong,
        )


def _judge(rule: Rule, name: str, row: FigureRow, index: int) -> str | None:
    figure = row.values[index]
    assert figure is not None
    value = figure.estimate.value
    if rule.relative:
        changed = row.changes[index - 1]
        if not isinstance(changed, Change):
            reason = changed.reason if isinstance(changed, Withheld) else marked("one of them is missing")
            raise DataError(
                "--fail-if: {figure} of {name} does not compare with the first run's: {reason}.",
                figure=rule.figure,
                name=name,
                reason=reason,
            )
        value = changed.ratio.value
    if not rule.holds(value):
        return None
    return Message(
        "{name}: {figure} is {value:.4g}{unit}, fails on {text}",
        name=name,
        figure=rule.figure,
        value=value,
        unit="x" if rule.relative else "",
        text=rule.text,
    )

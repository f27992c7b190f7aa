"""The result of a sweep: one row a run, loss against speed, and which runs are shown to be beaten by another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas

from telechat_kit.comparison.changes import (
    LOSS,
    OVER_FLOAT,
    Change,
    Figure,
    Withheld,
    change,
    figures,
    worst_loss,
)
from telechat_kit.comparison.comparable import same_float
from telechat_kit.comparison.folder_states import FolderState, folder_state
from telechat_kit.comparison.run_data import RunData
from telechat_kit.errors import KitError
from telechat_kit.files import write_text
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, ngettext, shown
from telechat_kit.reports.charts import COLORS, STYLE, Chart, error_bars, finish
from telechat_kit.reports.comparison_page import figure_text, frame_csv, markdown_table
from telechat_kit.reports.html import dress_tables, plain_table, render_page
from telechat_kit.reports.index_page import headed, state_text, varied_parameters
from telechat_kit.reports.inline_svg import hover
from telechat_kit.reports.label_places import point_labels
from telechat_kit.reports.page import Section
from telechat_kit.reports.plain_text import markdown_text

SPEED = "tokens_per_second"
#: What stands on the axis of speed
_SPEEDS = {SPEED: marked("W8A8, tokens/s"), OVER_FLOAT: marked("W8A8, times float's tokens/s")}
_HEADINGS = {
    "perplexity_ratio": marked("perplexity ratio"),
    LOSS: marked("mean KL, nats"),
    "top1_agreement": marked("same token"),
    OVER_FLOAT: marked("speed, times float"),
    SPEED: _SPEEDS[SPEED],
    "w8a8_bytes": marked("W8A8 bytes"),
}
_HOW_TO_READ = marked(
    "A run beats another if their paired intervals show it better in loss or speed, and not worse in the other. What is "
    "beaten by none is not shown to be best: it may only not be told apart."
)
#: What the speed of a sweep is, said on the page
_OF_RATIO = marked(
    "Speed is W8A8's over float's, of the same run: the state of the machine while a run was timed cancels out."
)
_OF_SPEED = marked(
    "Speed is W8A8's tokens per second: float was not timed, or not under the same conditions in all runs, so nothing takes "
    "out the state of the machine while a run was timed."
)


@dataclass(frozen=True)
class SweepRow:
    """One run of a sweep, its figures as far as it got, and the runs that are shown to beat it."""

    label: str
    state: FolderState
    figures: dict[str, Figure]
    beaten_by: list[str] = field(default_factory=list)

    def point(self, loss: str, speed: str) -> tuple[Figure, Figure] | None:
        """Loss and speed."""
        if loss not in self.figures or speed not in self.figures:
            return None
        return self.figures[loss], self.figures[speed]


@dataclass(frozen=True)
class SweepResult:
    """The runs of a sweep in their order.

    Attributes:
        loss: name of the figure that stands for the loss: mean KL on the text that costs most over all runs.
        speed: name of the figure that stands for the speed: W8A8 over float where float was the same in all runs, for
            both were timed in turns and the state of the machine in that hour cancels out; else tokens per second.
        apart: pairs of runs that do not compare, with the reason.
        told: pairs of runs of which one is shown to beat the other.
    """

    rows: list[SweepRow]
    loss: str
    speed: str
    apart: dict[tuple[str, str], str]
    told: int

    @property
    def finished(self) -> list[SweepRow]:
        """The runs that have loss and speed."""
        return [row for row in self.rows if row.point(self.loss, self.speed) is not None]

    @property
    def unbeaten(self) -> list[SweepRow]:
        """Those of them that none is shown to beat."""
        return [row for row in self.finished if not row.beaten_by]

    @property
    def title(self) -> str:
        """What the sweep shows, in a sentence."""
        count = len(self.finished)
        if not self.told:
            return _("None of {count} runs is shown to be better than another").format(count=count)
        told = _(
            "{unbeaten} of {count} runs are beaten by none in loss and speed, as far as the intervals show"
        )
        return told.format(unbeaten=len(self.unbeaten), count=count)


def sweep_result(folders: Mapping[str, Path]) -> SweepResult:
    """The runs of a sweep, each against each."""
    states = {label: folder_state(folder) for label, folder in folders.items()}
    found = {label: _figures(state) for label, state in states.items()}
    loss, speed = worst_loss(list(found.values())), _speed(states, found)
    beaten: dict[str, list[str]] = {label: [] for label in folders}
    apart, told = {}, 0
    for first in folders:
        for second in folders:
            if first == second or not all(
                name in found[label] for name in (loss, speed) for label in (first, second)
            ):
                continue
            better = _beats(states[first], states[second], found[first], found[second], (loss, speed))
            if isinstance(better, str):
                apart[first, second] = better
            elif better:
                beaten[second].append(first)
                told += 1
    rows = [SweepRow(label, states[label], found[label], beaten[label]) for label in folders]
    return SweepResult(rows, loss, speed, apart, told)


def _speed(states: Mapping[str, FolderState], found: Mapping[str, Mapping[str, Figure]]) -> str:
    """The figure that stands for the speed: over float, where all finished runs timed the same float."""
    runs = [state.run for label, state in states.items() if SPEED in found[label]]
    timed = [run.performance.conditions for run in runs if run and run.performance]
    over_float = all(OVER_FLOAT in found[label] for label in found if SPEED in found[label])
    return OVER_FLOAT if over_float and all(same_float(timed[0], other) for other in timed) else SPEED


def _figures(state: FolderState) -> dict[str, Figure]:
    try:
        return figures(state.run) if state.run else {}
    except KitError:
        return {}


def _beats(
    first: FolderState,
    second: FolderState,
    own: Mapping[str, Figure],
    other: Mapping[str, Figure],
    names: tuple[str, str],
) -> bool | str:
    """Whether the first run is shown to beat the second by loss and speed; or why the two do not compare."""
    assert first.run is not None
    assert second.run is not None
    runs: tuple[RunData, RunData] = (second.run, first.run)
    lost, gained = (change(name, other[name], own[name], runs) for name in names)
    for found in (lost, gained):
        if isinstance(found, Withheld):
            return found.reason
    assert isinstance(lost, Change)
    assert isinstance(gained, Change)
    less, worse = lost.seen and lost.ratio.high < 1, lost.seen and lost.ratio.low > 1
    more, slower = gained.seen and gained.ratio.low > 1, gained.seen and gained.ratio.high < 1
    return (less and not slower) or (more and not worse)


def sweep_frame(result: SweepResult) -> pd.DataFrame:
    """One row a run: its parameters where runs differ, state, figures with their intervals, and who beats it."""
    parameters = [row.state.run.parameters if row.state.run else {} for row in result.rows]
    varied, heads = varied_parameters(parameters), _shown(result)
    rows = [
        (
            row.label,
            *(_text(given.get(name)) for name in varied),
            state_text(row.state),
            *(figure_text(row.figures.get(name)) for name in heads),
            ", ".join(row.beaten_by) or (_("none") if row in result.finished else "–"),
        )
        for row, given in zip(result.rows, parameters, strict=True)
    ]
    return pd.DataFrame(rows, columns=[_("run"), *varied, _("state"), *heads.values(), _("beaten by")])


def sweep_data(result: SweepResult) -> pd.DataFrame:
    """The same as numbers for programs: value and both ends of the interval of each figure."""
    rows = []
    for row in result.rows:
        given = row.state.run.parameters if row.state.run else {}
        cells: dict[str, Any] = {"run": row.label, "state": row.state.kind, "started": row.state.started}
        cells |= {name: _text(value) for name, value in given.items()}
        for name in _shown(result):
            if name in row.figures:
                found = row.figures[name].estimate
                cells |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(cells | {"beaten_by": " ".join(row.beaten_by)})
    return pd.DataFrame(rows)


def _shown(result: SweepResult) -> dict[str, str]:
    """The figures of the table and what heads them; that of the worst text where it is not `text_path`'s."""
    return headed(_HEADINGS, result.loss, [row.figures for row in result.rows])


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)


@mpl.rc_context(STYLE)
def trade_chart(result: SweepResult) -> Chart:
    """Loss against speed with their intervals, a point a run; those that are beaten by none in color."""
    canvas = Canvas(figsize=(8.6, 4.4), layout="constrained")
    axes = canvas.add_subplot()
    told = _("{run}: KL {loss} nats, {speed} tokens/s")
    if result.speed == OVER_FLOAT:
        told = _("{run}: KL {loss} nats, {speed} times float")
    for row in result.finished:
        loss, speed = (figure.estimate for figure in row.point(result.loss, result.speed) or ())
        color = COLORS["published"] if row.beaten_by else COLORS["w8a8"]
        axes.errorbar(
            loss.value, speed.value, error_bars([speed]), error_bars([loss]), "none", ecolor=color, capsize=3
        )
        (mark,) = axes.plot(loss.value, speed.value, "s" if row.beaten_by else "o", ms=7, color=color)
        hover(mark, told.format(run=row.label, loss=loss, speed=speed))
        point_labels(axes, [(loss.value, speed.value)], [row.label], fontsize=8)
    axes.margins(x=0.25, y=0.15)
    axes.set_xlim(left=0)  # no divergence lies below
    x = _("{figure} per token (lower is better), 95 % interval").format(figure=_shown(result)[result.loss])
    y = _("{figure}, 95 % interval").format(figure=_(_SPEEDS[result.speed]))
    labels = ", ".join(row.label for row in result.unbeaten)
    return finish(canvas, axes, result.title, x, y, labels)


def write_sweep(folders: Mapping[str, Path], results: Path) -> Path:
    """Write `sweep.html`, `sweep.md` and `sweep.csv` into `results`."""
    result = sweep_result(folders)
    frame = sweep_frame(result)
    notes = _notes(result)
    chart = [trade_chart(result).html()] if result.finished else []
    page = render_page(
        "report.html.j2",
        title=_("Sweep: {name}").format(name=results.name),
        verdict=[f"{_runs(result)} {notes[0]}", *notes[1:]],
        sections=[
            Section(
                marked("Loss against speed"),
                _(_HOW_TO_READ),
                [*chart, dress_tables(_html(frame, result, results))],
            )
        ],
    )
    write_text(results / "sweep.csv", frame_csv(sweep_data(result)))
    title = "## " + markdown_text(_("Sweep: {name}").format(name=results.name))
    text = "\n\n".join([title, *map(markdown_text, notes), markdown_table(frame), _(_HOW_TO_READ)])
    write_text(results / "sweep.md", f"{text}\n")
    return write_text(results / "sweep.html", page)


def _notes(result: SweepResult) -> list[str]:
    """What is not finished, what the sweep shows, and what does not compare."""
    missing = [row.label for row in result.rows if row not in result.finished]
    notes = [_("All runs are finished.")]
    if missing:
        notes = [_("Not finished: {runs}.").format(runs=", ".join(missing))]
    if result.finished:
        notes.append(_("{sentence}.").format(sentence=result.title))
        notes.append(_(_OF_RATIO if result.speed == OVER_FLOAT else _OF_SPEED))
    if result.apart:
        reasons = ", ".join(map(shown, dict.fromkeys(result.apart.values())))
        told = _("{count} of the pairs of runs do not compare: {reasons}.")
        notes.append(told.format(count=len(result.apart) // 2, reasons=reasons))
    return notes


def _runs(result: SweepResult) -> str:
    return ngettext("{count} run.", "{count} runs.", len(result.rows)).format(count=len(result.rows))


def _html(frame: pd.DataFrame, result: SweepResult, results: Path) -> str:
    """The table, each run a link to its page."""
    texts = zip(result.rows, frame.to_numpy().tolist(), strict=True)
    return str(plain_table(frame.columns, [[_link(row, results), *cells[1:]] for row, cells in texts]))


def _link(row: SweepRow, results: Path) -> str:
    if not row.state.page or not row.state.folder.is_relative_to(results):
        return row.label
    place = f"{row.state.folder.relative_to(results).as_posix()}/{row.state.page}"
    return Markup('<a href="{}">{}</a>').format(quote(place), row.label)

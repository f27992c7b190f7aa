"""A comparison as tables, a chart, a page and Markdown."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter
from pandas.io.formats.style import Styler

from telechat_kit.comparison.changes import Change, Figure, Withheld
from telechat_kit.comparison.side_by_side import DIFFERS, SAME, UNKNOWN, BundleRow, Comparison, FigureRow
from telechat_kit.comparison.verdict import shown as rounded
from telechat_kit.files import write_text
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, ngettext, shown
from telechat_kit.reports.charts import COLORS, STYLE, Chart, titled
from telechat_kit.reports.html import dress_tables, render_page
from telechat_kit.reports.inline_svg import hover
from telechat_kit.reports.page import Section
from telechat_kit.reports.plain_text import csv_text, markdown_rows, markdown_text
from telechat_kit.reports.precision_tables import aligned
from telechat_kit.reports.tables import styled
from telechat_kit.statistics import LEVEL

HOW_TO_READ = marked(
    "Changes are multiples of the first run. A 95 % interval that leaves out 1 is marked * : the runs differ. One that "
    "covers less, of a single case with few repeats, says so and is not judged. "
    "Precision: sequence by sequence where both runs read the same text; speeds: the cases of both in pairs, repeats "
    "drawn anew; elsewhere from the two runs' own intervals."
)

#: Behind a change of speed that float, the same weights by the same code, has too
BY_MACHINE_MARK = "†"
BY_MACHINE = marked(
    "† : float, the same weights by the same code on the same device, ran at another speed too. The machine was in "
    "another state, and the speeds of W8A8 carry that; W8A8 over float was timed within each run and does not."
)


def conditions_frame(found: Comparison) -> pd.DataFrame:
    """Every condition, those that differ first and marked."""
    rows = [
        (_(row.verdict), shown(row.name), *(shown(value or marked("not recorded")) for value in row.values))
        for row in found.conditions
    ]
    return pd.DataFrame(rows, columns=[_("state"), _("condition"), *_headings(found)])


def figures_frame(found: Comparison) -> pd.DataFrame:
    """Every figure with its interval, and its change against the first run."""
    names = _headings(found)
    changed = [_("{name} against {first}").format(name=name, first=names[0]) for name in names[1:]]
    rows = [
        (row.name, _with_unit(row), *map(figure_text, row.values), *map(change_text, row.changes))
        for row in found.figures
    ]
    return pd.DataFrame(rows, columns=[_("name"), _("figure"), *names, *changed])


def bundle_text(row: BundleRow) -> str:
    """Whether a run agrees with the first one, why, and what a reader must know before that verdict."""
    found = row.alignment
    if found is None:
        return _("Position by position, {name}: {told}").format(name=row.name, told=shown(row.refused))
    told = _("{verdict}, over {positions} positions.").format(
        verdict=shown(str(found)), positions=f"{found.positions:,}"
    )
    parts = [_("Position by position, {name}: {told}").format(name=row.name, told=told)]
    if found.differences:
        apart = ", ".join(shown(one.condition) for one in found.differences)
        parts += [_("Differing: {conditions}.").format(conditions=apart)]
    else:
        parts += [_("Differing: no condition.")]
    equal = _("{equal} of {count} answers are equal.")
    if first := found.first_differing_answer:
        equal = _(
            "{equal} of {count} answers are equal, the first that differs is number {number}, after {tokens} tokens."
        )
    values = {"number": first.number, "tokens": first.common_tokens} if first else {}
    return " ".join([*parts, equal.format(equal=found.equal_answers, count=found.answers, **values)])


def _headings(found: Comparison) -> list[str]:
    """The runs' names; numbered where two are the same, since a table's columns must be told apart."""
    return [
        name if found.names.count(name) == 1 else f"{number}: {name}"
        for number, name in enumerate(found.names, start=1)
    ]


def _with_unit(row: FigureRow) -> str:
    label, unit = shown(row.shown.label), shown(row.shown.unit)
    return _("{figure}, {unit}").format(figure=label, unit=unit) if unit else label


def figure_text(figure: Figure | None) -> str:
    """A value with its interval, if it has one, and no digit finer than that allows."""
    if figure is None:
        return "–"
    value = figure.estimate.value
    if figure.exact:
        return f"{value:,.0f}" if value >= 1e3 else f"{value:.4g}"
    return rounded(figure.estimate)


def change_text(change: Change | Withheld | None) -> str:
    """A ratio with its interval, a star where the interval leaves out 1; or why there is none."""
    if change is None:
        return "–"
    if isinstance(change, Withheld):
        return _("not compared: {reason}").format(reason=shown(change.reason))
    if change.ratio.coverage == 0:
        return f"{change.ratio.value:.3f}x"
    if change.ratio.coverage < LEVEL:
        star = f" ({100 * change.ratio.coverage:.0f} %)"
    else:
        star = " *" if change.seen else f" {BY_MACHINE_MARK}" if change.differs else ""
    return f"{change.ratio.value:.3f}x [{change.ratio.low:.3f}, {change.ratio.high:.3f}]{star}"


def markdown(found: Comparison) -> str:
    """The comparison for a terminal or a pull request: differing conditions, then figures."""
    differing = conditions_frame(found).iloc[: len(found.differing), 1:]
    counts = Counter(row.verdict for row in found.conditions)
    head = _("{differing} conditions differ, {same} are the same.")
    if counts[UNKNOWN]:
        head = _("{differing} conditions differ, {same} are the same, {unknown} are not told by all.")
    head = head.format(differing=counts[DIFFERS], same=counts[SAME], unknown=counts[UNKNOWN])
    parts = [f"## {' / '.join(map(markdown_text, _headings(found)))}", head]
    parts += [markdown_table(differing)] if len(differing) else []
    parts += (
        [markdown_text(_("Not compared: {reasons}.").format(reasons=_reasons(found)))]
        if _reasons(found)
        else []
    )
    parts += [markdown_table(figures_frame(found).iloc[:, 1:]), _how_to_read(found)]
    parts += [markdown_text(bundle_text(row)) for row in found.bundles]
    return "\n\n".join(parts) + "\n"


def _how_to_read(found: Comparison) -> str:
    machine = _(BY_MACHINE) if _by_machine(found) else ""
    return " ".join(filter(None, [_(HOW_TO_READ), by_chance(found), machine]))


def by_chance(found: Comparison) -> str:
    """How many intervals would be marked if nothing differed: one in twenty, however the figures hang together."""
    count = sum(
        isinstance(change, Change) and change.ratio.coverage >= LEVEL
        for row in found.figures
        for change in row.changes
    )
    expected = round(count * (1 - LEVEL))
    told = _("Where nothing differs, about {expected} of {count} intervals leave out 1 by chance.")
    return told.format(expected=expected, count=count) if expected else ""


def _by_machine(found: Comparison) -> bool:
    """Whether a speed changed that the machine's state changed."""
    return any(
        isinstance(change, Change) and change.by_machine for row in found.figures for change in row.changes
    )


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame as a table in Markdown."""
    return markdown_rows(_rows(frame))


def frame_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV."""
    return csv_text(_rows(frame))


def _rows(frame: pd.DataFrame) -> list[list[str]]:
    return [[str(value) for value in row] for row in [list(frame.columns), *frame.to_numpy().tolist()]]


@mpl.rc_context(STYLE)
def changes_chart(found: Comparison) -> Chart:
    """Each run's figures as multiples of the first run's, with their intervals."""
    rows = [row for row in found.figures if any(isinstance(change, Change) for change in row.changes)]
    canvas = Canvas(
        figsize=(8.6, 1.2 + 0.26 * len(rows) * max(1, len(found.names) - 1)), layout="constrained"
    )
    axes = canvas.add_subplot()
    runs = found.names[1:]
    colors = [COLORS["float"], COLORS["w8a8"], COLORS["kept in float"], COLORS["published"]]
    for number, name in enumerate(runs):
        shift = 0.25 * (number - (len(runs) - 1) / 2)
        points = [(i + shift, row, row.changes[number]) for i, row in enumerate(rows)]
        seen_points = [(y, row, change) for y, row, change in points if isinstance(change, Change)]
        line = _draw(axes, [(y, change) for y, __, change in seen_points], colors[number % 4], name)
        hover(
            line,
            [f"{name}, {shown(row.shown.label)}: {change_text(change)}" for __, row, change in seen_points],
        )
    axes.axvline(1, color="#333333", lw=1)
    axes.set_yticks(range(len(rows)), [shown(row.shown.label) for row in rows], fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=9))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x")
    label = _("multiple of {name}, 95 % interval, or what the repeats allow")
    axes.set_xlabel(label.format(name=found.names[0]))
    seen = sum(isinstance(change, Change) and change.seen for row in rows for change in row.changes)
    if len(runs) > 1:
        canvas.legend(ncol=len(runs), loc="outside lower center")
    title = _("{seen} of {count} figures changed beyond their intervals")
    title = title.format(seen=seen, count=len(rows) * len(runs))
    return titled(canvas, title, by_chance(found) or _("The table under the chart has the values"))


def _draw(
    axes: mpl.axes.Axes, points: Sequence[tuple[float, Change]], color: str, label: str
) -> mpl.lines.Line2D:
    places, values = [y for y, __ in points], [change.ratio.value for __, change in points]
    spans = [
        [change.ratio.value - change.ratio.low for __, change in points],
        [change.ratio.high - change.ratio.value for __, change in points],
    ]
    drawn = axes.errorbar(
        values, places, xerr=spans, fmt="o", ms=5, color=color, ecolor="#333333", capsize=3, label=label
    )
    return drawn.lines[0]


def write_comparison(found: Comparison, page: Path) -> Path:
    """Write the comparison as one self-contained page, whole or not at all."""
    names = ", ".join(shown(row.name) for row in found.differing)
    conditions = conditions_frame(found)
    apart = conditions[conditions.iloc[:, 0] != _(SAME)]
    differing = [_table(styled(apart))] if len(apart) else []
    sections = [
        Section(
            marked("Conditions that differ"),
            _("These differ: {names}.").format(names=names) if names else _("No recorded condition differs."),
            [*differing, _folded(conditions[conditions.iloc[:, 0] == _(SAME)])],
        ),
        Section(
            marked("Figures"),
            _how_to_read(found),
            [*_chart(found), _table(styled(figures_frame(found).iloc[:, 1:]))],
        ),
    ]
    if found.bundles:
        text = " ".join(map(bundle_text, found.bundles))
        tables = [_table(aligned(row.alignment)) for row in found.bundles if row.alignment]
        sections.append(Section(marked("Position by position"), text, tables))
    title = _(" against ").join(_headings(found))
    return write_text(
        page, render_page("report.html.j2", title=title, verdict=verdict(found), sections=sections)
    )


def verdict(found: Comparison) -> str:
    """What differs, which figures changed beyond their intervals, and how many would by chance."""
    apart = "; ".join(
        f"{shown(row.name)} {' / '.join(map(_value, row.values))}" for row in found.differing[:4]
    )
    more = len(found.differing) - 4
    seen = [
        f"{shown(row.shown.label)} {change.ratio.value:.2f}x"
        for row in found.figures
        for change in row.changes
        if isinstance(change, Change) and change.seen
    ]
    conditions = _("Conditions that differ: {conditions}.")
    if more > 0:
        conditions = _("Conditions that differ: {conditions} and {count} more.")
    if not apart:
        conditions = _("The runs were made under the same conditions.")
    parts = [conditions.format(conditions=apart, count=more)]
    compared = [isinstance(change, Change) for row in found.figures for change in row.changes]
    if not any(compared):
        return " ".join([*parts, _("No figure is compared: {reasons}.").format(reasons=_reasons(found))])
    figures = (
        _("Changed beyond their intervals: {figures}.")
        if seen
        else _("No figure changed beyond its interval.")
    )
    parts += [figures.format(figures=", ".join(seen))]
    if seen:
        parts += [by_chance(found)]
    if _by_machine(found):
        parts += [_("The machine was in another state: float's speed changed too.")]
    if _reasons(found):
        parts += [_("Not compared: {reasons}.").format(reasons=_reasons(found))]
    return " ".join(filter(None, parts))


def _value(value: str | None) -> str:
    return shown(value) if value else _("not recorded")


def _reasons(found: Comparison) -> str:
    """Why figures are withheld, with the number of them."""
    counts = Counter(
        change.reason for row in found.figures for change in row.changes if isinstance(change, Withheld)
    )
    told = _("{count} for {reason}")
    return ", ".join(told.format(count=count, reason=shown(reason)) for reason, count in counts.items())


def _folded(same: pd.DataFrame) -> Markup:
    table = _table(styled(same.iloc[:, 1:]))
    told = ngettext("{count} condition is the same", "{count} conditions are the same", len(same))
    return Markup("<details><summary>{}</summary>{}</details>").format(told.format(count=len(same)), table)


def _table(style: Styler) -> Markup:
    return dress_tables(style.to_html())


def _chart(found: Comparison) -> list[Markup]:
    drawn = any(isinstance(change, Change) for row in found.figures for change in row.changes)
    return [changes_chart(found).html()] if drawn else []

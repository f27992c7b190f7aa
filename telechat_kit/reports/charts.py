"""What all charts share (the same color means the same thing in every one), and those of the speed of the cases."""

import base64
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator

from telechat_kit.comparison.verdict import first_token_gain, gain_title, speed_gain
from telechat_kit.messages import closed_up, marked, ngettext
from telechat_kit.messages import gettext as _
from telechat_kit.performance.measurement import CaseResult, PerformanceRecord
from telechat_kit.reports.inline_svg import fonts_of_the_reader, hover, inline_svg
from telechat_kit.reports.label_places import place_labels
from telechat_kit.statistics import Estimate

#: Okabe-Ito colors: told apart by color-blind readers, and by their lightness in grey print
COLORS = {"float": "#0072B2", "w8a8": "#E69F00", "published": "#7F7F7F", "kept in float": "#D55E00"}
#: Shown in the language in force
NAMES = {"float": marked("float"), "w8a8": "W8A8"}
#: Blue to yellow, monotone in lightness: the same for color-blind readers and in grey print. Light is good in every chart
COLOR_MAP = "cividis"
UNKNOWN = "#eeeeee"
#: More cases than these are drawn as lying bars
MOST_UPRIGHT = 8
#: What fits beside the left edge of a chart of the reports' width
TITLE_CHARACTERS = 96
STYLE = {
    "figure.dpi": 110,
    "font.size": 10,
    "text.parse_math": False,  # a name may hold "$"
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Chart:
    """A figure and its words for those who cannot see it. JupyterLab shows it; `html()` puts it into a page."""

    figure: Figure
    alt: str

    def svg(self) -> Markup:
        """The figure as an `<svg>` element: sharp at every size, its text searchable, values shown on hover."""
        return inline_svg(self.figure, self.alt)

    def png(self) -> bytes:
        """The figure as PNG, for programs that show no SVG."""
        buffer = io.BytesIO()
        with fonts_of_the_reader():
            self.figure.savefig(
                buffer,
                dpi=180,
                format="png",
                bbox_inches="tight",
                facecolor="white",
                metadata={"Software": None},
            )
        return buffer.getvalue()

    def html(self) -> Markup:
        """A `<figure>` that carries its picture with it; on a narrow screen it scrolls, by the keyboard too."""
        return Markup('<figure tabindex="0">{}</figure>').format(self.svg())

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        png = base64.b64encode(self.png()).decode()
        bundle = {"image/svg+xml": str(self.svg()), "image/png": png, "text/plain": self.alt}
        return bundle, {"image/png": {"alt": self.alt}}


def new_axes(width: float = 8.6, height: float = 3.6) -> tuple[Figure, Axes]:
    """A figure of the reports' width in inches, with its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def finish(figure: Figure, axes: Axes, title: str, x: str, y: str, alt: str) -> Chart:
    """The figure under a title that states the finding; `alt` goes on behind it."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return titled(figure, title, alt)


def titled(figure: Figure, title: str, alt: str) -> Chart:
    """The figure, of one or more axes, under a title that states the finding; `alt` goes on behind it.

    Labels that `point_labels` made find their places here, when everything else has its own.
    """
    title = closed_up(title)
    lines = textwrap.fill(title, TITLE_CHARACTERS)
    figure.suptitle(lines, x=0.005, ha="left", fontsize=11, fontweight="bold")
    place_labels(figure)
    return Chart(figure, f"{title}. {alt}" if alt else title)


def draw_cells(
    axes: Axes,
    values: np.ndarray,
    norm: Normalize,
    texts: Callable[[int, int], str],
    color_map: str = COLOR_MAP,
) -> ScalarMappable:
    """`values [rows, columns]` as colored cells, the first row on top, with what each shows on hover.

    Args:
        norm: from values to colors; light is good and dark is to be looked at in every chart.
        texts: what the cell of a row and column shows; NaN cells are grey.
    """
    scale = ScalarMappable(norm, color_map)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        color = UNKNOWN if np.isnan(value) else scale.to_rgba(value)
        cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, edgecolor="#ffffff", lw=0.8)
        hover(cell, texts(row, column))
        axes.add_patch(cell)
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.set_ylim(values.shape[0] - 0.5, -0.5)
    axes.grid(visible=False)
    return scale


def integer_axis(axes: Axes) -> None:
    """Blocks have whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


class _PlainLogFormatter(LogFormatter):
    """Numbers as they are spoken where matplotlib writes powers in its math, which the charts do not parse."""

    def __call__(self, value: float, position: int | None = None) -> str:
        if not super().__call__(value, position):
            return ""
        return short(value) if value < 1e5 else EngFormatter()(value)


def log_axis(axes: Axes, name: Literal["x", "y"]) -> None:
    """A logarithmic axis, that of a color bar too, with plain numbers; where it spans little, some between the powers."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    if axis.get_scale() != "log":
        axes.set(**{f"{name}scale": "log"})
    axis.set_major_formatter(_PlainLogFormatter(labelOnlyBase=False))
    axis.set_minor_formatter(_PlainLogFormatter(labelOnlyBase=False))


def ring(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Rings round the marks of linears that stay in float, or should."""
    places = [x for x, _ in points], [y for _, y in points]
    axes.plot(*places, "o", ms=11, mfc="none", mec=COLORS["kept in float"], mew=1.8)


def speed(record: PerformanceRecord) -> Chart:
    """Tokens per second of every case, float beside W8A8."""
    title = gain_title(speed_gain(record), _("W8A8 generates {ratio} times the tokens per second of float"))
    return _case_bars(record, "tokens_per_second", 1.0, _("tokens/s, prefill included"), title)


def first_token(record: PerformanceRecord) -> Chart:
    """Time to the first token of every case, float beside W8A8."""
    title = gain_title(first_token_gain(record), _("Prefill: W8A8 has the first token {ratio} times as fast"))
    return _case_bars(record, "time_to_first_token", 1e3, _("time to first token, ms"), title)


@mpl.rc_context(STYLE)
def _case_bars(record: PerformanceRecord, figure_name: str, factor: float, unit: str, title: str) -> Chart:
    """A pair of bars a case; many cases lie below each other, so that their labels stay readable."""
    cases = sorted({(case.input_tokens, case.output_tokens) for case in record.grid_cases})
    lying = len(cases) > MOST_UPRIGHT
    figure, axes = new_axes(height=1.2 + 0.34 * len(cases) if lying else 3.6)
    for shift, name in ((-0.2, "float"), (0.2, "w8a8")):
        rows = _rows(record, name, cases)
        estimates: list[Estimate] = [getattr(row, figure_name).map(lambda x: x * factor) for row in rows]
        draw: Callable[..., BarContainer] = (
            partial(axes.barh, xerr=error_bars(estimates))
            if lying
            else partial(axes.bar, yerr=error_bars(estimates))
        )
        places, values = [i + shift for i in range(len(cases))], [e.value for e in estimates]
        bars = draw(
            places, values, 0.38, color=COLORS[name], ecolor="#333333", capsize=2, label=_(NAMES[name])
        )
        for bar, row, e in zip(bars, rows, estimates, strict=True):
            note = _("unstable") if row.unstable else ""
            hover(
                bar,
                f"{_(NAMES[name])}, {row.input_tokens} / {row.output_tokens}: {short(e.value)} [{short(e.low)}, {short(e.high)}] {note}".strip(),
            )
        labels = [
            short(e.value) + ("*" if row.unstable else "") for e, row in zip(estimates, rows, strict=True)
        ]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
    names = [f"{i} / {o}" for i, o in cases]
    axes.margins(x=0.15) if lying else axes.margins(y=0.15)
    figure.legend(ncol=2, loc="outside lower center")
    alt = ngettext(
        "{count} case in two precisions; a star marks runs that differ by more than a tenth",
        "{count} cases in two precisions; a star marks runs that differ by more than a tenth",
        len(cases),
    ).format(count=len(cases))
    if not lying:
        axes.set_xticks(range(len(cases)), names)
        return finish(figure, axes, title, _("input / output tokens"), unit, alt)
    axes.set_yticks(range(len(cases)), names)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    return finish(figure, axes, title, unit, _("input / output tokens"), alt)


def _rows(record: PerformanceRecord, name: str, cases: Sequence[tuple[int, int]]) -> list[CaseResult]:
    found = {(row.input_tokens, row.output_tokens): row for row in record.grid_cases if row.precision == name}
    return [found[case] for case in cases]


@mpl.rc_context(STYLE)
def published(record: PerformanceRecord) -> Chart:
    """The guide's figures for TeleChat-7B, by themselves: another model on other hardware."""
    figure, axes = new_axes(height=2.8)
    labels = [
        f"{case.input_tokens} / {case.output_tokens}" if case.input_tokens else _("mean of 25")
        for case in record.published
    ]
    for shift, name, values in (
        (-0.2, "NPU 310P", [case.npu_310p for case in record.published]),
        (0.2, "GPU A10", [case.gpu_a10 for case in record.published]),
    ):
        hatch = "" if name.startswith("NPU") else "///"
        bars = axes.bar(
            [i + shift for i in range(len(labels))],
            values,
            0.38,
            color=COLORS["published"],
            hatch=hatch,
            edgecolor="white",
            label=name,
        )
        axes.bar_label(bars, padding=2, fontsize=8.5)
        for bar, label, value in zip(bars, labels, values, strict=True):
            hover(
                bar, _("{name}, {case}: {speed} tokens/s").format(name=name, case=label, speed=f"{value:g}")
            )
    axes.set_xticks(range(len(labels)), labels)
    axes.margins(y=0.15)
    figure.legend(ncol=2, loc="outside lower center")
    title = _("Published, not measured here: TeleChat-7B int8, batch 1")
    return finish(figure, axes, title, _("input / output tokens"), _("tokens/s"), _("the guide's table"))


def short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def error_bars(estimates: Sequence[Estimate], factor: float = 1.0) -> list[list[float]]:
    """What the intervals reach below and above their figures, as matplotlib's error bars take it."""
    return [[(e.value - e.low) * factor for e in estimates], [(e.high - e.value) * factor for e in estimates]]

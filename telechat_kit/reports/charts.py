"""What all charts share (the same color means the same thing in every one), and those of the speed of the cases."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from telechat_kit.comparison.verdict import first_token_gain, gain_title, speed_gain
from telechat_kit.performance.measurement import CaseResult, PerformanceRecord
from telechat_kit.statistics import Estimate

#: Okabe-Ito colors: told apart by color-blind readers, and by their lightness in grey print
COLORS = {"float": "#0072B2", "w8a8": "#E69F00", "published": "#7F7F7F", "kept in float": "#D55E00"}
NAMES = {"float": "float", "w8a8": "W8A8"}
#: The four inputs of a block's linears: label, a linear that reads it, marker, color
INPUTS = (
    ("query, key_value", "query", "o", "#0072B2"),
    ("dense", "dense", "s", "#009E73"),
    ("gate_proj, up_proj", "gate_proj", "^", "#CC79A7"),
    ("down_proj", "down_proj", "D", "#E69F00"),
)
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 180,
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
    """A figure and its words for those who cannot see it. JupyterLab shows it; `html()` embeds it in a page."""

    figure: Figure
    alt: str

    def png(self) -> bytes:
        """The figure as PNG."""
        buffer = io.BytesIO()
        self.figure.savefig(
            buffer, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None}
        )
        return buffer.getvalue()

    def html(self) -> Markup:
        """An `<img>` that carries its data with it."""
        data = base64.b64encode(self.png()).decode()
        return Markup(f'<figure><img src="data:image/png;base64,{data}" alt="{escape(self.alt)}"></figure>')

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.alt}
        return bundle, {"image/png": {"alt": self.alt}}


def new_axes(width: float = 8.6, height: float = 3.6) -> tuple[Figure, Axes]:
    """A figure of the reports' width in inches, with its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def finish(figure: Figure, axes: Axes, title: str, x: str, y: str, alt: str) -> Chart:
    """The figure under a title that states the finding; `alt` goes on behind it."""
    axes.set_title(title, pad=12)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return Chart(figure, f"{title}. {alt}")


def block_and_kind(name: str) -> tuple[int, str]:
    """Number of the block and last part of the name of a linear."""
    parts = name.removeprefix("transformer.").split(".")
    return int(parts[1]), parts[-1]


def speed(record: PerformanceRecord) -> Chart:
    """Tokens per second of every case, float beside W8A8."""
    title = gain_title(speed_gain(record), "W8A8 generates {} times the tokens per second of float")
    return _case_bars(record, "tokens_per_second", 1.0, "tokens/s, prefill included", title)


def first_token(record: PerformanceRecord) -> Chart:
    """Time to the first token of every case, float beside W8A8."""
    title = gain_title(first_token_gain(record), "Prefill: W8A8 has the first token {} times as fast")
    return _case_bars(record, "time_to_first_token", 1e3, "time to first token, ms", title)


@mpl.rc_context(STYLE)
def _case_bars(record: PerformanceRecord, figure_name: str, factor: float, unit: str, title: str) -> Chart:
    cases = sorted({(case.input_tokens, case.output_tokens) for case in record.grid_cases})
    figure, axes = new_axes(width=max(8.6, 0.9 * len(cases)))
    for shift, name in ((-0.2, "float"), (0.2, "w8a8")):
        rows = _rows(record, name, cases)
        estimates: list[Estimate] = [getattr(row, figure_name) for row in rows]
        places = [i + shift for i in range(len(cases))]
        bars = axes.bar(
            places,
            [e.value * factor for e in estimates],
            0.38,
            yerr=error_bars(estimates, factor),
            color=COLORS[name],
            ecolor="#333333",
            capsize=2,
            label=NAMES[name],
        )
        axes.bar_label(bars, [short(e.value * factor) for e in estimates], padding=3, fontsize=8)
    axes.set_xticks(range(len(cases)), [f"{i} / {o}" for i, o in cases])
    axes.margins(y=0.15)
    figure.legend(ncol=2, loc="outside lower center")
    return finish(figure, axes, title, "input / output tokens", unit, f"{len(cases)} cases in two precisions")


def _rows(record: PerformanceRecord, name: str, cases: Sequence[tuple[int, int]]) -> list[CaseResult]:
    found = {(row.input_tokens, row.output_tokens): row for row in record.grid_cases if row.precision == name}
    return [found[case] for case in cases]


@mpl.rc_context(STYLE)
def published(record: PerformanceRecord) -> Chart:
    """The guide's figures for TeleChat-7B, by themselves: another model on other hardware."""
    figure, axes = new_axes(height=2.8)
    labels = [
        f"{case.input_tokens} / {case.output_tokens}" if case.input_tokens else "mean of 25"
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
    axes.set_xticks(range(len(labels)), labels)
    axes.margins(y=0.15)
    figure.legend(ncol=2, loc="outside lower center")
    title = "Published, not measured here: TeleChat-7B int8, batch 1"
    return finish(figure, axes, title, "input / output tokens", "tokens/s", "the guide's table")


def short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def error_bars(estimates: Sequence[Estimate], factor: float = 1.0) -> list[list[float]]:
    """What the intervals reach below and above their figures, as matplotlib's error bars take it."""
    return [[(e.value - e.low) * factor for e in estimates], [(e.high - e.value) * factor for e in estimates]]

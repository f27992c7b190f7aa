"""The result of a sweep: one row a run, loss against speed, and the runs that no other one beats in both."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas

from telechat_kit.comparison.changes import Figure, figures
from telechat_kit.comparison.run_data import read_run_data
from telechat_kit.errors import DataError
from telechat_kit.files import write_text
from telechat_kit.reports.charts import COLORS, STYLE, Chart, finish
from telechat_kit.reports.comparison_page import figure_text, frame_csv, markdown_table
from telechat_kit.reports.html import dress_tables, render_page
from telechat_kit.reports.inline_svg import hover
from telechat_kit.reports.label_places import point_labels
from telechat_kit.reports.page import Section
from telechat_kit.reports.plain_text import markdown_text
from telechat_kit.reports.tables import styled

LOSS, SPEED = "kl_mean", "tokens_per_second"
_COLUMNS = ("perplexity_ratio", LOSS, "top1_agreement", SPEED, "w8a8_bytes")


@dataclass(frozen=True)
class SweepRow:
    """One run of a sweep; without figures if it did not get that far."""

    label: str
    figures: dict[str, Figure]
    best: bool = False

    @property
    def point(self) -> tuple[float, float] | None:
        """Loss and speed."""
        if LOSS not in self.figures or SPEED not in self.figures:
            return None
        return self.figures[LOSS].estimate.value, self.figures[SPEED].estimate.value


def sweep_rows(folders: dict[str, Path]) -> list[SweepRow]:
    """The runs of a sweep in their order; `best` for those on the Pareto front of loss and speed."""
    rows = [SweepRow(label, _figures(folder)) for label, folder in folders.items()]
    points = [row.point for row in rows if row.point is not None]
    return [
        SweepRow(row.label, row.figures, row.point is not None and _unbeaten(row.point, points))
        for row in rows
    ]


def _figures(folder: Path) -> dict[str, Figure]:
    try:
        return figures(read_run_data(folder))
    except DataError:
        return {}


def _unbeaten(point: tuple[float, float], points: list[tuple[float, float]]) -> bool:
    loss, speed = point
    return not any(a <= loss and b >= speed and (a, b) != point for a, b in points)


def sweep_frame(rows: list[SweepRow]) -> pd.DataFrame:
    """One row a run, figures with their intervals."""
    shown = [
        (
            row.label,
            *(figure_text(row.figures.get(name)) for name in _COLUMNS),
            "best trade" if row.best else "",
        )
        for row in rows
    ]
    names = ["run", "perplexity ratio", "mean KL, nats", "same token", "W8A8, tokens/s", "W8A8 bytes", ""]
    return pd.DataFrame(shown, columns=names)


@mpl.rc_context(STYLE)
def trade_chart(rows: list[SweepRow]) -> Chart:
    """Loss against speed, a point a run; the front drawn through."""
    canvas = Canvas(figsize=(8.6, 4.4), layout="constrained")
    axes = canvas.add_subplot()
    front = sorted(row.point for row in rows if row.best and row.point)
    axes.step(
        [loss for loss, _ in front], [speed for _, speed in front], where="post", color=COLORS["w8a8"], lw=1.2
    )
    for row in rows:
        if row.point is None:
            continue
        color = COLORS["w8a8"] if row.best else COLORS["published"]
        (mark,) = axes.plot(*row.point, "o" if row.best else "s", ms=7, color=color)
        hover(mark, f"{row.label}: KL {row.point[0]:.4g} nats, {row.point[1]:,.4g} tokens/s")
        point_labels(axes, [row.point], [row.label], fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.15)
    title = f"{len(front)} of {len(rows)} runs are beaten by none in loss and speed at once"
    labels = ", ".join(row.label for row in rows if row.best)
    return finish(
        canvas, axes, title, "mean KL from float, nats per token (lower is better)", "W8A8, tokens/s", labels
    )


def write_sweep(folders: dict[str, Path], results: Path) -> Path:
    """Write `sweep.html`, `sweep.md` and `sweep.csv` into `results`."""
    rows = sweep_rows(folders)
    frame, missing = sweep_frame(rows), [row.label for row in rows if row.point is None]
    note = f"Not finished: {', '.join(missing)}." if missing else "All runs are finished."
    shown = [dress_tables(styled(frame).to_html())]
    chart = [trade_chart(rows).html()] if len(missing) < len(rows) else []
    page = render_page(
        "report.html.j2",
        title=f"Sweep: {results.name}",
        verdict=f"{len(rows)} runs. {note}",
        sections=[
            Section(
                "Loss against speed",
                "The front: no other run has less loss and more speed.",
                [*chart, *shown],
            )
        ],
    )
    write_text(results / "sweep.csv", frame_csv(frame))
    title = markdown_text(results.name)
    write_text(
        results / "sweep.md", f"## Sweep: {title}\n\n{markdown_text(note)}\n\n{markdown_table(frame)}\n"
    )
    return write_text(results / "sweep.html", page)

"""No label lies on another or on a mark, in crowded points and in all charts of the reference run."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from telechat_kit.reports import charts, performance_charts, precision_charts, quantization_charts
from telechat_kit.reports.charts import Chart
from telechat_kit.reports.label_places import mark_boxes, overlaps, place_labels, point_labels
from telechat_kit.reports.page import RunRecords, read_run
from telechat_kit.reports.setup_views import checkpoint_parts
from telechat_kit.reports.thread_views import thread_cost

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
#: Square pixels that two boxes may share: boxes of text have a margin that its letters do not reach
SHARED = 6.0


def text_boxes(figure: Figure) -> dict[str, Bbox]:
    """The boxes of all texts that are seen, by their text and number."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    unseen = set(beyond_the_limits(figure))
    seen = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    seen = [text for text in seen if (text.axes is None or text.axes.axison) and text not in unseen]
    return {
        f"{text.get_text()} ({number})": Text.get_window_extent(text, renderer)
        for number, text in enumerate(seen)
    }


def beyond_the_limits(figure: Figure) -> Iterator[Text]:
    """Tick labels that Matplotlib keeps but does not draw."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    yield tick.label1


def collisions(figure: Figure) -> list[tuple[str, str]]:
    boxes = text_boxes(figure)
    return [
        (a, b) for (a, one), (b, other) in combinations(boxes.items(), 2) if overlaps(one, other) > SHARED
    ]


def covered(figure: Figure) -> list[str]:
    """Labels of points that lie on a mark."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    labels = [text for axes in figure.axes for text in axes.texts if text.get_gid() == "placed"]
    return [
        text.get_text()
        for text in labels
        if text.axes is not None
        and sum(overlaps(Text.get_window_extent(text, renderer), box) for box in mark_boxes(text.axes))
        > SHARED
    ]


def crowd() -> Figure:
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    points = [(x / 15, (x % 2) / 15) for x in range(9)]
    axes.plot(*zip(*points, strict=True), "o")
    axes.set(xlim=(-0.2, 1), ylim=(-0.3, 1))
    point_labels(axes, points, [f"down_proj {number}" for number in range(9)])
    return figure


def test_crowded_labels_are_moved_apart() -> None:
    figure = crowd()
    assert collisions(figure)  # all lie on their points before
    place_labels(figure)
    assert not collisions(figure)
    assert not covered(figure)


def test_the_bar_of_an_interval_is_a_mark_too() -> None:
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    axes.errorbar([0.5], [0.5], xerr=[0.5], fmt="o")
    axes.set(xlim=(-0.2, 1.2), ylim=(0, 1))
    point_labels(axes, [(0.5, 0.5)], ["beside its own bar"])
    place_labels(figure)
    assert not covered(figure)
    axes.texts[0].set_position((7, 0))
    axes.texts[0].set_verticalalignment("center")
    assert covered(figure)


def test_a_label_on_a_mark_is_found() -> None:
    figure = crowd()
    place_labels(figure)
    label = figure.axes[0].texts[0]
    label.set_position((0, 0))
    assert covered(figure) == [label.get_text()]


@pytest.fixture(scope="module")
def reference() -> RunRecords:
    return read_run(REFERENCE)


CHARTS = {
    "parts": lambda run: checkpoint_parts(run.setup),
    "outliers": lambda run: quantization_charts.outliers(run.quantize),
    "input_ranges": lambda run: quantization_charts.input_ranges(run.quantize),
    "sensitivity": lambda run: quantization_charts.sensitivity(run.quantize),
    "per_layer_error": lambda run: quantization_charts.per_layer_error(run.quantize),
    "file_sizes": lambda run: quantization_charts.file_sizes(run.quantize),
    "texts": lambda run: precision_charts.texts(run.precision, run.quantize),
    "divergence_quantiles": lambda run: precision_charts.divergence_quantiles(run.precision),
    "probability_change": lambda run: precision_charts.probability_change(run.precision),
    "by_position": lambda run: precision_charts.by_position(run.precision),
    "linear_sources": lambda run: precision_charts.linear_sources(run.precision.sources),
    "residual_stream": lambda run: precision_charts.residual_stream(run.precision.sources),
    "kept_in_float": lambda run: precision_charts.kept_in_float(run.precision.sources),
    "speed": lambda run: charts.speed(run.performance),
    "first_token": lambda run: charts.first_token(run.performance),
    "heat_map": lambda run: performance_charts.heat_map(run.performance),
    "roofline": lambda run: performance_charts.roofline(run.performance),
    "context_cost": lambda run: performance_charts.context_cost(run.performance),
    "threads": lambda run: thread_cost(run.performance),
    "published": lambda run: charts.published(run.performance),
}


@pytest.mark.parametrize("name", CHARTS)
def test_no_text_of_the_reference_run_s_charts_lies_on_another(name: str, reference: RunRecords) -> None:
    chart = CHARTS[name](reference)
    assert isinstance(chart, Chart)
    assert collisions(chart.figure) == []
    assert covered(chart.figure) == []

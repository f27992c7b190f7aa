"""Labels of points, each where it covers no mark and no other text: tried around the point, nearest first."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from telechat_kit.reports.inline_svg import fonts_of_the_reader

#: Directions that are tried, right and left before above and below
_DIRECTIONS = ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1))
#: Distances in points that are tried; far labels get a line to their point
_DISTANCES = (7, 13, 20, 28, 38, 50, 66, 84)
_LINE_FROM = 20
_NO_MARK = (None, "None", "none", "", " ")
_WAITING, PLACED = "a label without a place", "placed"
_ALIGNED_X: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}
_ALIGNED_Y: dict[int, Literal["bottom", "center", "top"]] = {1: "bottom", 0: "center", -1: "top"}


def point_labels(
    axes: Axes, points: Iterable[tuple[float, float]], texts: Iterable[str], fontsize: float = 8.5
) -> None:
    """A label beside each point, in data coordinates; `place_labels` finds its place when the chart is complete."""
    for point, text in zip(points, texts, strict=True):
        arrow = {"arrowstyle": "-", "lw": 0.6, "color": "#7f7f7f", "shrinkA": 1, "shrinkB": 4}
        label = axes.annotate(
            text, point, (0, 0), textcoords="offset points", fontsize=fontsize, arrowprops=arrow
        )
        label.set_gid(_WAITING)


def place_labels(figure: Figure) -> None:
    """Move the labels that `point_labels` made to the nearest place that is free, inside their axes where it can be."""
    waiting = [text for axes in figure.axes for text in axes.texts if text.get_gid() == _WAITING]
    if not waiting:
        return
    with fonts_of_the_reader():
        canvas = FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        renderer = canvas.get_renderer()
        for axes in figure.axes:
            labels = [text for text in axes.texts if text in waiting and isinstance(text, Annotation)]
            taken = [
                *mark_boxes(axes),
                *(text.get_window_extent(renderer) for text in _other_texts(axes, labels)),
            ]
            for label in labels:
                taken.append(_place(label, axes.get_window_extent(renderer), taken, renderer))
                label.set_gid(PLACED)


def overlaps(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share, in square pixels."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)


def _place(label: Annotation, inside: Bbox, taken: Sequence[Bbox], renderer: RendererAgg) -> Bbox:
    best, best_cost = None, np.inf
    for distance, (x, y) in _candidates():
        _move(label, distance, x, y, renderer)
        box = Text.get_window_extent(label, renderer)
        cost = sum(overlaps(box, other) for other in taken) + _outside(box, inside)
        if cost < best_cost:
            best, best_cost = (distance, x, y, box), cost
        if cost == 0:
            break
    assert best is not None
    distance, x, y, box = best
    _move(label, distance, x, y, renderer)
    if label.arrow_patch is not None:
        label.arrow_patch.set_visible(distance >= _LINE_FROM)
    return box


def _candidates() -> Iterator[tuple[int, tuple[int, int]]]:
    return ((distance, way) for distance in _DISTANCES for way in _DIRECTIONS)


def _move(label: Annotation, distance: int, x: int, y: int, renderer: RendererAgg) -> None:
    step = distance * (0.7 if x and y else 1.0)
    label.set_position((step * x, step * y))
    label.set_horizontalalignment(_ALIGNED_X[x])
    label.set_verticalalignment(_ALIGNED_Y[y])
    label.update_positions(renderer)


def _outside(box: Bbox, inside: Bbox) -> float:
    return box.width * box.height - overlaps(box, inside)


def _other_texts(axes: Axes, labels: Sequence[Text]) -> list[Text]:
    return [text for text in axes.texts if text not in labels and text.get_text()]


def mark_boxes(axes: Axes) -> Iterator[Bbox]:
    """A box round every mark of the lines, and small ones along what joins them and along the bars of intervals."""
    for line in axes.lines:
        points = line.get_transform().transform(line.get_xydata())
        points = points[np.isfinite(points).all(1)]
        if line.get_marker() not in _NO_MARK:
            half = line.get_markersize() / 2 * axes.figure.dpi / 72
            yield from (Bbox([point - half, point + half]) for point in points)
        if line.get_linestyle() not in _NO_MARK:
            yield from (Bbox([point - 1, point + 1]) for point in _along(points))
    bars = (one for one in axes.collections if isinstance(one, LineCollection))  # of intervals
    for segment in (segment for one in bars for segment in one.get_segments()):
        points = axes.transData.transform(segment)
        yield from (Bbox([point - 1, point + 1]) for point in _along(points[np.isfinite(points).all(1)]))


def _along(points: np.ndarray) -> Iterator[np.ndarray]:
    """Points every few pixels of the way through `points [n, 2]`."""
    for start, end in pairwise(points):
        steps = max(int(np.abs(end - start).max() / 3), 1)
        yield from start + (end - start) * np.linspace(0, 1, steps)[:, None]

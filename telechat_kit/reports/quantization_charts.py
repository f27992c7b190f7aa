"""Charts of `02_quantize`: where outliers sit, what suppression did, which linears stay in float, what int8 costs."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from telechat_kit.messages import gettext as _
from telechat_kit.quantization.levels.fallback import is_list
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.quantization.recipe import LinearRecord
from telechat_kit.reports.charts import (
    COLOR_MAP,
    COLORS,
    STYLE,
    UNKNOWN,
    Chart,
    draw_cells,
    finish,
    integer_axis,
    log_axis,
    new_axes,
    ring,
    titled,
)
from telechat_kit.reports.inline_svg import hover
from telechat_kit.reports.label_places import point_labels
from telechat_kit.reports.linear_names import BlockInput, block_and_kind, block_inputs, linear_kinds


@mpl.rc_context(STYLE)
def input_ranges(record: QuantizeRecord) -> Chart:
    """Largest absolute value of each of a block's four inputs, with and without outlier suppression."""
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    drawn = [_draw_input(axes, record, read) for axes, read in zip(panels.flat, _inputs(record), strict=True)]
    for axes in panels[-1]:
        axes.set_xlabel(_("block"))
        integer_axis(axes)
    figure.supylabel(_("largest |value| of the input"), fontsize=10)
    if not any(drawn):
        return titled(figure, _("The input ranges were not measured: the weights were given"), "")
    panels[0, 0].legend(fontsize=8.5)
    top, raw = (max(record.linears, key=key) for key in (_input_absmax, _raw_absmax))
    message = (
        _("Suppression brings the widest input from {before} ({before_linear}) to {after} ({linear})")
        if _raw_absmax(raw) > _input_absmax(top)
        else _("The widest input is that of {linear}: values up to {after}")
    )
    title = message.format(
        linear=_short(top),
        after=f"{_input_absmax(top):,.1f}",
        before_linear=_short(raw),
        before=f"{_raw_absmax(raw):,.1f}",
    )
    return titled(figure, title, _("{count} linears").format(count=len(record.linears)))


def _input_absmax(row: LinearRecord) -> float:
    return row.input_absmax or 0.0


def _raw_absmax(row: LinearRecord) -> float:
    return row.raw_absmax or 0.0


def _inputs(record: QuantizeRecord) -> list[BlockInput]:
    return block_inputs(row.name for row in record.linears)


def _draw_input(axes: Axes, record: QuantizeRecord, read: BlockInput) -> bool:
    """One input over the blocks; whether anything is known of it."""
    label, marker, color = read.label, read.marker, read.color
    rows = [row for row in _of_kind(record, read.kinds[0]) if row.input_absmax is not None]
    blocks = [block_and_kind(row.name)[0] for row in rows]
    axes.plot(
        blocks,
        _numbers(row.raw_absmax for row in rows),
        "--",
        color="#7F7F7F",
        label=_("without suppression"),
    )
    (marks,) = axes.plot(
        blocks,
        _numbers(row.input_absmax for row in rows),
        marker,
        ls="-",
        ms=3.5,
        color=color,
        label=_("as quantized"),
    )
    hover(marks, [_in_block(label, block_and_kind(row.name)[0], _range_text(row)) for row in rows])
    touched = any(row.raw_absmax != row.input_absmax for row in rows)
    axes.set_title(
        (_("input of {linears}, not suppressed") if rows and not touched else _("input of {linears}")).format(
            linears=label
        ),
        fontsize=9.5,
        fontweight="normal",
    )
    log_axis(axes, "y")
    return bool(rows)


def _range_text(row: LinearRecord) -> str:
    shown = f"{_input_absmax(row):.4g}"
    if row.raw_absmax is None:
        return shown
    return _("{largest}, without suppression {raw}").format(largest=shown, raw=f"{row.raw_absmax:.4g}")


def _in_block(linears: str, block: int, figure: str) -> str:
    return _("{linears}, block {block}: {figure}").format(linears=linears, block=block, figure=figure)


@mpl.rc_context(STYLE)
def outliers(record: QuantizeRecord) -> Chart:
    """How far the largest channel of each input stands above the median channel, with and without suppression."""
    inputs = _inputs(record)
    ratios = [
        _grid(record, [read.kinds[0] for read in inputs], figure)
        for figure in (
            lambda row: _ratio(row.raw_absmax, row.raw_median),
            lambda row: _ratio(row.input_absmax, row.input_median),
        )
    ]
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    if np.isnan(ratios[0]).all():
        for axes in panels:
            axes.set_axis_off()
        return titled(figure, _("Outliers were not measured: the weights were given"), "")
    norm = LogNorm(1, np.nanmax(ratios))
    for axes, name, values in zip(
        panels, (_("without outlier suppression"), _("as quantized")), ratios, strict=True
    ):
        image = _heat_map(
            axes, values, [read.label for read in inputs], norm, _("{:,.1f} times"), "cividis_r"
        )
        axes.set_title(name, fontsize=9.5, fontweight="normal")
    panels[-1].set_xlabel("block")
    log_axis(figure.colorbar(image, ax=panels, label=_("largest / median channel")).ax, "y")
    worst = [f"{np.nanmax(values):,.0f}" for values in ratios]
    title = _(
        "The largest channel is up to {after} times the median one; without suppression {before} times"
    ).format(after=worst[1], before=worst[0])
    return titled(figure, title, _("inputs by block"))


@mpl.rc_context(STYLE)
def sensitivity(record: QuantizeRecord) -> Chart:
    """What the linears were chosen by, of every linear's input by block; those kept in float marked."""
    figure, axes = new_axes()
    by_noise = _chosen_by_noise(record)
    drawn = {row.name: row.residual_noise if by_noise else row.score for row in record.linears}
    for read in _inputs(record):
        label, marker, color = read.label, read.marker, read.color
        values = [value for name, value in drawn.items() if name.endswith(f".{read.kinds[0]}")]
        points = [(block, value) for block, value in enumerate(values) if value]
        (marks,) = axes.plot(
            [x for x, _ in points], [y for _, y in points], marker, ms=4.5, color=color, label=label
        )
        hover(marks, [_in_block(label, block, f"{value:.4g}") for block, value in points])
    _mark_float_inputs(axes, record, drawn)
    axes.margins(y=0.18)
    integer_axis(axes)
    if by_noise:
        log_axis(axes, "y")
    figure.legend(ncol=6, loc="outside lower center")
    title = _("{kept} of {count} linears stay in float: {why}").format(
        kept=len(record.float_linears), count=len(record.linears), why=_why(record)
    )
    top = ", ".join(linear.name.removeprefix("transformer.") for linear in record.float_linears) or _("none")
    label = (
        _("int8 noise over residual stream\n(energy)")
        if by_noise
        else _("sensitivity score\n(largest |x| / std)")
    )
    return finish(figure, axes, title, _("block"), label, _("Kept in float: {linears}").format(linears=top))


def _chosen_by_noise(record: QuantizeRecord) -> bool:
    """Whether noise decided, at first or alone: level auto measures the linears of the most noise."""
    return record.recipe is not None and (record.recipe.by_noise or record.measured is not None)


def _why(record: QuantizeRecord) -> str:
    if record.recipe is None or any(row.score is None for row in record.linears):
        return _("the scores of given weights are not known")
    if record.measured is not None:
        return _("what lowers the measured KL most, {budget}").format(budget=record.measured.budget)
    if is_list(record.recipe.level):
        return _("those that the level lists")
    if record.recipe.by_noise:
        return _("where int8 adds most to the stream")
    return _("those with the largest outliers")


def _mark_float_inputs(axes: Axes, record: QuantizeRecord, drawn: Mapping[str, float | None]) -> None:
    """A ring and a label at each input whose linears stay in float."""
    inputs: dict[tuple[int, float], list[str]] = {}
    for linear in record.float_linears:
        block, kind = block_and_kind(linear.name)
        if value := drawn.get(linear.name):
            inputs.setdefault((block, value), []).append(kind)
    ring(axes, list(inputs))
    point_labels(axes, inputs, [f"{', '.join(kinds)} {block}" for (block, _), kinds in inputs.items()])


@mpl.rc_context(STYLE)
def per_layer_error(record: QuantizeRecord) -> Chart:
    """Signal to int8 error of each linear's output in dB; linears in float have none."""
    kinds = linear_kinds(row.name for row in record.linears)
    errors = _grid(record, kinds, lambda row: row.output_snr_db)
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    axes = figure.subplots()
    known = not np.isnan(errors).all()
    norm = Normalize(np.nanmin(errors), np.nanmax(errors)) if known else Normalize(0, 1)
    image = _heat_map(axes, errors, kinds, norm, "{:.1f} dB")
    _mark_float(axes, record, kinds)
    axes.set_xlabel(_("block"))
    marks = [
        Patch(facecolor="white", edgecolor=COLORS["kept in float"], hatch="////", label=_("kept in float"))
    ]
    if any(row.kind == "W8A8" and row.output_snr_db is None for row in record.linears):
        marks.append(Patch(facecolor=UNKNOWN, label=_("not measured")))
    figure.legend(handles=marks, ncol=2, loc="outside lower center")
    if not known:
        return titled(figure, _("The int8 error of single linears was not measured"), "")
    figure.colorbar(image, ax=axes, label=_("signal to error, dB"))
    lowest = min(
        (row for row in record.linears if row.output_snr_db is not None),
        key=lambda row: row.output_snr_db or 0,
    )
    title = _("The least exact int8 linear is {linear}: {snr} dB above its error").format(
        linear=_short(lowest), snr=f"{lowest.output_snr_db:.1f}"
    )
    return titled(figure, title, _("linears by block"))


@mpl.rc_context(STYLE)
def file_sizes(record: QuantizeRecord) -> Chart:
    """Size of the weight files, float and W8A8."""
    figure, axes = new_axes(height=2.0)
    sizes = {"W8A8": record.w8a8_bytes, _("float"): record.float_bytes}
    bars = axes.barh(
        list(sizes),
        [size / 1e6 for size in sizes.values()],
        color=[COLORS["w8a8"], COLORS["float"]],
        height=0.55,
    )
    axes.bar_label(bars, [f"{size / 1e6:,.1f} MB" for size in sizes.values()], padding=4)
    for bar, (name, size) in zip(bars, sizes.items(), strict=True):
        hover(bar, _("{name}: {size} bytes").format(name=name, size=f"{size:,}"))
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.14)
    share = record.w8a8_bytes / record.float_bytes
    title = _("The W8A8 file is {share} of the float file").format(share=f"{share:.0%}")
    return finish(figure, axes, title, _("weight files, MB"), "", "")


def _heat_map(
    axes: Axes,
    values: np.ndarray,
    labels: Sequence[str],
    norm: Normalize,
    text: str,
    color_map: str = COLOR_MAP,
) -> ScalarMappable:
    """`values [rows, blocks]` as colored cells; what is not known is grey."""
    axes.set_yticks(range(len(labels)), labels, fontsize=9)

    def shown(row: int, block: int) -> str:
        value = values[row, block]
        figure = _("not measured") if np.isnan(value) else text.format(value)
        return _in_block(labels[row], block, figure)

    scale = draw_cells(axes, values, norm, shown, color_map)
    integer_axis(axes)
    return scale


def _mark_float(axes: Axes, record: QuantizeRecord, kinds: Sequence[str]) -> None:
    for row in record.linears:
        if row.kind == "FLOAT":
            block, kind = block_and_kind(row.name)
            corner = (block - 0.5, kinds.index(kind) - 0.5)
            cell = mpl.patches.Rectangle(
                corner, 1, 1, facecolor="white", edgecolor=COLORS["kept in float"], hatch="////", lw=0.8
            )
            hover(cell, _in_block(kind, block, _("kept in float")))
            axes.add_patch(cell)


def _grid(
    record: QuantizeRecord, kinds: Sequence[str], figure: Callable[[LinearRecord], float | None]
) -> np.ndarray:
    """`figure` of every linear as `[kinds, blocks]`; NaN where it is not known."""
    rows = [[figure(row) for row in _of_kind(record, kind)] for kind in kinds]
    return np.array(rows, dtype=float)


def _of_kind(record: QuantizeRecord, kind: str) -> list[LinearRecord]:
    return [row for row in record.linears if block_and_kind(row.name)[1] == kind]


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    return np.array(list(values), dtype=float)


def _ratio(largest: float | None, median: float | None) -> float | None:
    return largest / median if largest and median else None


def _short(row: LinearRecord) -> str:
    block, kind = block_and_kind(row.name)
    return f"{kind} {block}"

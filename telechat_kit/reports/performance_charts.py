"""Charts of `04_performance`: what the device allows, how much of it each case reaches, and what context costs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import geometric_mean, median

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked
from telechat_kit.performance.cases import Case
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.performance.roofline import ModelSize, Peaks, decode_seconds, prefill_seconds
from telechat_kit.performance.timed_samples import CaseResult
from telechat_kit.reports.charts import (
    COLORS,
    NAMES,
    STYLE,
    Chart,
    draw_cells,
    error_bars,
    finish,
    log_axis,
    new_axes,
    short,
    titled,
)
from telechat_kit.reports.inline_svg import ON_COLOR, hover
from telechat_kit.reports.tables import styled

MARKERS = {marked("prefill"): "^", marked("decode"): "o"}
#: Below this share of the limit the dark end of the color scale needs white text
DARK_BELOW = 0.48


def _sizes(record: PerformanceRecord) -> dict[str, ModelSize]:
    return {size.precision: size for size in record.sizes if size.precision in NAMES}


def _of(record: PerformanceRecord, precision: str, decode: bool = False) -> list[CaseResult]:
    """Cases of one precision; with `decode` those that have tokens behind the first."""
    own = [case for case in record.grid_cases if case.precision == precision]
    return [case for case in own if case.time_per_output_token is not None] if decode else own


def _context(case: CaseResult) -> float:
    """Mean number of positions that the tokens of a case look back at."""
    return case.input_tokens + case.output_tokens / 2


def _prefill_work(size: ModelSize, case: CaseResult) -> tuple[float, float, float]:
    """Operations, bytes and seconds of the prompts of a case."""
    inputs = case.input_tokens
    attention = size.attention_operations * inputs * (inputs + 1) / 2
    operations = (size.int8_operations + size.float_operations) * inputs + size.head_operations + attention
    return case.batch * operations, size.read_bytes_per_token, case.time_to_first_token.value


def _decode_work(size: ModelSize, case: CaseResult) -> tuple[float, float, float]:
    """Operations, bytes and seconds of one token in every row of a case."""
    assert case.time_per_output_token is not None
    context = _context(case)
    linears = size.int8_operations + size.float_operations + size.head_operations
    operations = linears + size.attention_operations * context
    read = size.read_bytes_per_token + case.batch * context * size.cache_bytes_per_token
    return case.batch * operations, read, case.time_per_output_token.value


@mpl.rc_context(STYLE)
def roofline(record: PerformanceRecord) -> Chart:
    """Operations per second of prompts and tokens over operations per byte, under what the device can do."""
    assert record.peaks is not None
    figure, axes = new_axes(height=4.2)
    intensities = []
    for name, size in _sizes(record).items():
        for phase, work, cases in (
            ("prefill", _prefill_work, _of(record, name)),
            ("decode", _decode_work, _of(record, name, decode=True)),
        ):
            points = [(ops / read, ops / seconds) for ops, read, seconds in (work(size, c) for c in cases)]
            intensities += [x for x, _ in points]
            (marks,) = axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                MARKERS[phase],
                color=COLORS[name],
                mec="white",
                ms=8,
                label=_("{precision}, {phase}").format(precision=_(NAMES[name]), phase=_(phase)),
            )
            hover(
                marks,
                [
                    _(
                        "{precision}, {phase}, {case}: {speed} Gop/s at {intensity} operations per byte"
                    ).format(
                        precision=_(NAMES[name]),
                        phase=_(phase),
                        case=f"{c.input_tokens} / {c.output_tokens}",
                        speed=f"{y / 1e9:,.1f}",
                        intensity=f"{x:.3g}",
                    )
                    for (x, y), c in zip(points, cases, strict=True)
                ],
            )
    _roofs(axes, record.peaks, min(intensities) / 2, max(intensities) * 3)
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.grid(visible=True, axis="both")
    figure.legend(ncol=4, loc="outside lower center")
    shares = {phase: f"{share:.0%}" for phase, share in limit_shares(record, "w8a8").items()}
    message = (
        _("W8A8 reaches {prefill} of the limit in prefill, {decode} of the limit in decode")
        if "decode" in shares
        else _("W8A8 reaches {prefill} of the limit in prefill")
    )
    x, y = _("operations per byte read"), _("operations per second")
    alt = _("Median over the cases; lines are the limits of the device")
    return finish(figure, axes, message.format(**shares), x, y, alt)


def _roofs(axes: Axes, peaks: Peaks, low: float, high: float) -> None:
    """The memory's slope up to each known peak, and the peak from there on."""
    x = np.geomspace(low, high, 200)
    known = {
        _("int8 arithmetic"): (peaks.int8_operations, "-"),
        _("float arithmetic"): (peaks.float_operations, "--"),
    }
    tops = [peak for peak, _ in known.values() if peak]
    slope = np.minimum(peaks.bandwidth * x, max(tops, default=np.inf))
    axes.plot(x, slope, "-", color="#333333", lw=1.2)
    corner = float(np.sqrt(low * max(tops, default=high * peaks.bandwidth) / peaks.bandwidth))
    axes.annotate(
        _("memory, {bandwidth} GB/s").format(bandwidth=f"{peaks.bandwidth / 1e9:.0f}"),
        (corner, peaks.bandwidth * corner),
        (-6, 4),  # above the line, where no point can be
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
    )
    shown = sorted(((peak, label, style) for label, (peak, style) in known.items() if peak), reverse=True)
    for place, (peak, label, style) in enumerate(shown):
        axes.plot([max(low, peak / peaks.bandwidth), high], [peak, peak], style, color="#333333", lw=1.2)
        axes.annotate(
            f"{label}, {peak / 1e12:.2f} TOPS",
            (high, peak),
            (0, -11 if place else 4),  # the lower one under its line: both may be nearly the same
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
        )


def limit_shares(record: PerformanceRecord, precision: str) -> dict[str, float]:
    """Median over the cases of the least possible time over the measured one, of prompts and of tokens."""
    assert record.peaks is not None
    size, peaks = _sizes(record)[precision], record.peaks
    shares = {
        "prefill": [
            prefill_seconds(size, peaks, case.input_tokens, case.batch) / case.time_to_first_token.value
            for case in _of(record, precision)
        ],
        "decode": [
            decode_seconds(size, peaks, _context(case), case.batch) / case.time_per_output_token.value
            for case in _of(record, precision, decode=True)
            if case.time_per_output_token is not None
        ],
    }
    return {phase: median(found) for phase, found in shares.items() if found}


@mpl.rc_context(STYLE)
def heat_map(record: PerformanceRecord) -> Chart:
    """Tokens per second of the grid, a panel for each precision, colored by the share of the limit."""
    inputs = sorted({case.input_tokens for case in record.grid_cases})
    outputs = sorted({case.output_tokens for case in record.grid_cases})
    figure = Figure(figsize=(8.6, 1.4 + 0.5 * len(inputs)), layout="constrained")
    panels = figure.subplots(1, len(NAMES), sharey=True)
    norm = Normalize(0, 1)
    for axes, name in zip(panels, NAMES, strict=True):
        cells = {(inputs.index(c.input_tokens), outputs.index(c.output_tokens)): c for c in _of(record, name)}
        values = np.full((len(inputs), len(outputs)), np.nan)
        for place, case in cells.items():
            values[place] = case.share_of_limit
            axes.annotate(
                short(case.tokens_per_second.value) + ("*" if case.unstable else ""),
                place[::-1],
                ha="center",
                va="center",
                color="white" if case.share_of_limit < DARK_BELOW else ON_COLOR,
            )
        scale = draw_cells(axes, values, norm, partial(_case_text, cells))
        axes.set_xticks(range(len(outputs)), [str(o) for o in outputs])
        axes.set_yticks(range(len(inputs)), [str(i) for i in inputs])
        axes.set_xlabel(_("output tokens"))
        axes.set_title(_(NAMES[name]), fontsize=10)
    panels[0].set_ylabel(_("input tokens"))
    panels[1].tick_params(left=False)
    figure.colorbar(
        scale, ax=panels, label=_("share of the limit"), format=lambda share, _place: f"{share:.0%}"
    )
    share = median(case.share_of_limit for case in _of(record, "w8a8"))
    title = _("Tokens/s of each case: W8A8 reaches {share} of the limit (median)").format(
        share=f"{share:.0%}"
    )
    return titled(figure, title, _("A cell is a case; a star marks runs that differ by more than a tenth"))


def _case_text(cells: Mapping[tuple[int, int], CaseResult], row: int, column: int) -> str:
    case = cells.get((row, column))
    if case is None:
        return _("not timed")
    return _("{speed} tokens/s, {share} of the limit").format(
        speed=case.tokens_per_second, share=f"{case.share_of_limit:.0%}"
    )


@mpl.rc_context(STYLE)
def context_cost(record: PerformanceRecord) -> Chart:
    """Time of one token against the context it looks back at, measured and least possible."""
    figure, axes = new_axes()
    longest = max(map(_context, record.grid_cases))
    for name, size in _sizes(record).items():
        cases = sorted(_of(record, name, decode=True), key=_context)
        estimates = [case.time_per_output_token for case in cases if case.time_per_output_token is not None]
        drawn = axes.errorbar(
            [_context(case) for case in cases],
            [estimate.value * 1e3 for estimate in estimates],
            yerr=error_bars(estimates, 1e3),
            fmt="o",
            color=COLORS[name],
            ecolor="#333333",
            capsize=2,
            label=_("{precision}, measured").format(precision=_(NAMES[name])),
        )
        hover(
            drawn.lines[0],
            [
                _("{precision}, {positions} positions: {time} ms").format(
                    precision=_(NAMES[name]), positions=f"{_context(c):,.0f}", time=e.map(lambda t: 1e3 * t)
                )
                for c, e in zip(cases, estimates, strict=True)
            ],
        )
        if record.peaks is not None:
            _least(axes, name, longest, _least_decode(size, record.peaks, record.batch))
    axes.set_ylim(bottom=0)
    figure.legend(ncol=4, loc="outside lower center")
    title = _context_title(record)
    x, y = _("positions in the cache, mean over the answer"), _("time per output token, ms")
    return finish(figure, axes, title, x, y, _("Dashed: the least time that the device allows"))


def _least_decode(size: ModelSize, peaks: Peaks, batch: int) -> Callable[[float], float]:
    return lambda context: decode_seconds(size, peaks, context, batch)


def _least(axes: Axes, name: str, longest: float, seconds: Callable[[float], float]) -> None:
    ends: Sequence[float] = (0.0, longest)
    values = [seconds(end) * 1e3 for end in ends]
    axes.plot(
        ends,
        values,
        "--",
        color=COLORS[name],
        lw=1.2,
        label=_("{precision}, least possible").format(precision=_(NAMES[name])),
    )


@mpl.rc_context(STYLE)
def batch_cost(record: PerformanceRecord) -> Chart | Styler:
    """Tokens per second over the batch size; one line of words where only one size was timed."""
    own = [{case.batch for case in record.cases if case.precision == name} for name in NAMES]
    sizes = sorted(set.intersection(*own))
    if len(sizes) < 2:
        told = _("only batch {batch} was timed: batch_sizes names more").format(batch=record.batch)
        return styled(pd.DataFrame({_("batch"): [told]}))
    figure, axes = new_axes()
    speeds = {name: _over_batches(record, name, sizes) for name in NAMES}
    for name, found in speeds.items():
        axes.plot(
            sizes,
            [speed for speed, _ in found],
            "o-",
            color=COLORS[name],
            label=_("{precision}, measured").format(precision=_(NAMES[name])),
        )
        axes.plot(
            sizes,
            [limit for _, limit in found],
            "--",
            color=COLORS[name],
            label=_("{precision}, limit").format(precision=_(NAMES[name])),
        )
    axes.set_xscale("log", base=2)
    log_axis(axes, "y")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    figure.legend(ncol=4, loc="outside lower center")
    first, last = speeds["w8a8"][0][0], speeds["w8a8"][-1][0]
    title = _(
        "W8A8 generates {ratio} times the tokens per second at batch {largest} as at batch {smallest}"
    ).format(ratio=f"{last / first:.2f}", largest=sizes[-1], smallest=sizes[0])
    note = _("Geometric mean of the cases that all batch sizes have; dashed: the limit of the device")
    return finish(figure, axes, title, _("batch"), _("tokens/s of all rows, prefill included"), note)


def _over_batches(
    record: PerformanceRecord, precision: str, sizes: Sequence[int]
) -> list[tuple[float, float]]:
    """Tokens per second and their limit for each batch size, over the cases that are there at each."""
    found = {case.case: case for case in record.cases if case.precision == precision}
    lengths = [key[:2] for key in found if all((*key[:2], size) in found for size in sizes)]
    rows = [[found[Case(*pair, size)] for pair in dict.fromkeys(lengths)] for size in sizes]
    return [
        (
            geometric_mean(case.tokens_per_second.value for case in row),
            geometric_mean(case.limit_tokens_per_second for case in row),
        )
        for row in rows
    ]


def _context_title(record: PerformanceRecord) -> str:
    cases = sorted(_of(record, "w8a8", decode=True), key=_context)
    if not cases:
        return _("No case has tokens behind the first")
    times = [case.time_per_output_token.value for case in cases if case.time_per_output_token is not None]
    near, far = _context(cases[0]), _context(cases[-1])
    return _("A W8A8 token takes {ratio} times as long behind {far} positions as behind {near}").format(
        ratio=f"{times[-1] / times[0]:.1f}", far=f"{far:,.0f}", near=f"{near:,.0f}"
    )

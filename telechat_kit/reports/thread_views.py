"""Speed against the number of CPU threads: a chart and the table under it."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from pandas.io.formats.style import Styler

from telechat_kit.messages import gettext as _
from telechat_kit.messages import ngettext, shown
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.performance.thread_scaling import ThreadResult, ThreadScaling
from telechat_kit.reports.charts import COLORS, NAMES, STYLE, Chart, error_bars, finish, new_axes, short
from telechat_kit.reports.inline_svg import hover
from telechat_kit.reports.tables import styled


@mpl.rc_context(STYLE)
def thread_cost(record: PerformanceRecord) -> Chart | Styler:
    """Tokens per second over the number of threads; one line of words where fewer than two were timed."""
    found = record.threads
    if found is None or len({result.threads for result in found.results}) < 2:
        return styled(pd.DataFrame({_("threads"): [_why_not(found)]}))
    figure, axes = new_axes()
    lines = {name: found.of(name) for name in NAMES if found.of(name)}
    fastest = max(lines, key=lambda name: lines[name][-1].tokens_per_second.value)
    for name, results in lines.items():
        _line(axes, name, results, upper=name == fastest)
    counts = sorted({result.threads for result in found.results})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: short(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.14, y=0.14)
    note = _(
        "Input {input}, output {output} tokens, batch {batch}; dashed: as many times as fast as there are threads"
    ).format(input=found.input_tokens, output=found.output_tokens, batch=found.batch)
    return finish(figure, axes, _title(lines), _("CPU threads"), _("tokens/s, prefill included"), note)


def _line(axes: Axes, name: str, results: list[ThreadResult], upper: bool) -> None:
    """Medians with their intervals, and what perfect scaling of the first would be; labels on the outer side."""
    counts, speeds = [result.threads for result in results], [result.tokens_per_second for result in results]
    drawn = axes.errorbar(
        counts,
        [speed.value for speed in speeds],
        yerr=error_bars(speeds),
        fmt="o-",
        color=COLORS[name],
        ecolor="#333333",
        capsize=2,
    )
    hover(
        drawn.lines[0],
        [
            _("{precision}, {threads}: {speed} tokens/s").format(
                precision=_(NAMES[name]), threads=_threads(count), speed=speed
            )
            for count, speed in zip(counts, speeds, strict=True)
        ],
    )
    perfect = [speeds[0].value * count / counts[0] for count in counts]
    axes.plot(counts, perfect, "--", color=COLORS[name], lw=0.9)
    shift, ha = ((-4, 11), "right") if upper else ((6, -10), "left")  # off the lines and the intervals
    for count, speed in zip(counts, speeds, strict=True):
        _label(axes, short(speed.value), count, speed.value, shift, ha)
    _label(axes, _(NAMES[name]), counts[0], speeds[0].value, (-9, -2 if upper else -9), "right")
    if upper:
        _label(axes, _("perfect scaling"), counts[-1], perfect[-1], (7, 0), "left")


def _label(axes: Axes, text: str, x: float, y: float, shift: tuple[int, int], ha: str) -> None:
    """`text` beside a point, `shift` points away."""
    axes.annotate(text, (x, y), shift, textcoords="offset points", fontsize=8.5, ha=ha, va="center")


def _title(lines: dict[str, list[ThreadResult]]) -> str:
    """How many times the fewest threads' speed the most have, W8A8 first."""
    ratios = [
        _("{ratio} times {threads} in {precision}").format(
            ratio=f"{results[-1].tokens_per_second.value / results[0].tokens_per_second.value:.2f}",
            threads=_threads(results[0].threads),
            precision=_(NAMES[name]),
        )
        for name, results in sorted(lines.items(), reverse=True)
    ]
    most = next(iter(lines.values()))[-1].threads
    return _("{threads}: {ratios}").format(threads=_threads(most), ratios=_(", ").join(ratios))


def _threads(count: int) -> str:
    return ngettext("one thread", "{count} threads", count).format(count=count)


def _why_not(found: ThreadScaling | None) -> str:
    if found is None:
        return _("not measured: thread_counts names the numbers of CPU threads to time")
    timed = sorted({result.threads for result in found.results})
    said = _("only {threads} timed").format(threads=_threads(timed[0])) if timed else _("not measured")
    if not found.left_out:
        return _("{said}: thread_counts names more").format(said=said)
    return _("{said}, left out were {counts} threads: {reason}").format(
        said=said, counts=", ".join(map(str, found.left_out)), reason=shown(found.reason)
    )


def thread_table(record: PerformanceRecord) -> Styler:
    """Medians by precision and number of threads, and the speed against the fewest threads."""
    found = record.threads
    names = [_("precision"), _("threads"), _("tokens/s"), _("interval"), _("times the fewest threads")]
    names += [_("first token, ms"), _("per output token, ms"), _("repeats"), _("note")]
    rows = []
    for name in NAMES if found else ():
        results = found.of(name) if found else []
        for result in results:
            speed = result.tokens_per_second
            step = result.time_per_output_token
            rows.append(
                (
                    _(NAMES[name]),
                    result.threads,
                    speed.value,
                    f"{speed.low:.1f}–{speed.high:.1f}",
                    speed.value / results[0].tokens_per_second.value,
                    result.time_to_first_token.value * 1e3,
                    step.value * 1e3 if step else None,
                    result.repeats,
                    _("unstable") if result.unstable else "",
                )
            )
    formats = dict(zip((names[2], *names[4:7]), ("{:.1f}", "{:.2f}", "{:.1f}", "{:.2f}"), strict=True))
    return styled(pd.DataFrame(rows, columns=names), formats)

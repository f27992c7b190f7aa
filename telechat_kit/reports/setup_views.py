"""Tables and the chart of `01_setup`: what was checked, the model, where its bytes lie, which chip it fits."""

from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.environment import Check, OperatorTest, OperatorTests, SetupRecord, sentences
from telechat_kit.inference.memory import ASSUMED_LAUNCH_SECONDS, Fit
from telechat_kit.messages import gettext as _
from telechat_kit.messages import ngettext, shown
from telechat_kit.performance.measurement import PUBLISHED
from telechat_kit.reports.charts import COLORS, STYLE, Chart, finish, new_axes
from telechat_kit.reports.inline_svg import hover
from telechat_kit.reports.tables import styled

#: The row of `fits` for which the guide publishes a speed
_GUIDE = ("TeleChat-7B", "W8A8", 1)


def checks(found: Sequence[Check]) -> Styler:
    """Component, found, required, verdict, what to do."""
    rows = [tuple(map(shown, (c.component, c.found, c.required, c.verdict, c.advice))) for c in found]
    frame = pd.DataFrame(
        rows, columns=[_("component"), _("found"), _("required"), _("verdict"), _("what to do")]
    )
    return styled(frame)


def operators(tested: OperatorTests | None) -> Styler:
    """Milliseconds of every way at every number of rows that it was tried at, or why there are none."""
    if tested is None:
        return styled(pd.DataFrame([(_("none was tried"),)], columns=[_("operators")]))
    frame = pd.DataFrame(
        [(test.operation, test.way, test.rows, _outcome(test)) for test in tested.tests],
        columns=["operation", "way", "rows", "outcome"],
    )
    ways = frame[["operation", "way"]].drop_duplicates()
    table = frame.pivot_table(index=["operation", "way"], columns="rows", values="outcome", aggfunc="first")
    table = table.loc[pd.MultiIndex.from_frame(ways)]
    heads = [ngettext("{count} row, ms", "{count} rows, ms", count) for count in table.columns]
    table.columns = pd.Index(
        [head.format(count=f"{count:,}") for head, count in zip(heads, table.columns, strict=True)]
    )
    table.index = table.index.set_names([_("operation"), _("way")])
    return styled(table.reset_index())


def operator_verdict(tested: OperatorTests | None) -> str:
    """What follows from the trials for the notebooks behind this one."""
    if tested is None:
        return _("Every operation is done in its fastest way, untried.")
    return "\n".join(map(shown, sentences(tested)))


def _outcome(test: OperatorTest) -> str:
    if test.milliseconds is None:
        return "–" if test.verdict == "not called" else _(test.verdict)
    return f"{test.milliseconds:.0f}" if test.milliseconds >= 100 else f"{test.milliseconds:.2g}"


def model(record: SetupRecord) -> Styler:
    """Shape of the network and origin of its weights."""
    rows = [(_(key), f"{value:,}") for key, value in record.architecture.items()]
    rows += [(_("parameters"), f"{sum(part.parameters for part in record.parts):,}")]
    rows += [(_(key), _(str(value))) for key, value in record.origin.items()]
    return styled(pd.DataFrame(rows, columns=[_("model"), record.checkpoint_path]))


def fits(rows: Sequence[Fit]) -> Styler:
    """Which model fits a card, the longest context with it, and the fastest decode that its memory allows."""
    titles = [_("model"), _("weights"), _("chips"), _("GB on each"), _("KB/token of cache")]
    started = _("by launches (assumed {each} µs each)").format(each=f"{ASSUMED_LAUNCH_SECONDS * 1e6:.0f}")
    titles += [_("longest context"), _("ms a token, by bytes"), started, _("limit, tokens/s"), _("published")]
    return styled(
        pd.DataFrame(
            [
                (
                    row.model,
                    row.precision,
                    str(row.devices),
                    f"{row.weight_bytes / 1e9:.2f}",
                    f"{row.cache_bytes_per_token / 1e3:.0f}",
                    f"{row.largest_context:,}" if row.largest_context else _("does not fit"),
                    f"{1000 / row.limit_tokens_per_second:.1f}",
                    f"{row.launches * ASSUMED_LAUNCH_SECONDS * 1e3:.1f}" if row.launches else "–",
                    f"{row.limit_tokens_per_second:.1f}",
                    f"{PUBLISHED[0].npu_310p:g}"
                    if (row.model, row.precision, row.devices) == _GUIDE
                    else "–",
                )
                for row in rows
            ],
            columns=titles,
        )
    )


@mpl.rc_context(STYLE)
def checkpoint_parts(record: SetupRecord) -> Chart:
    """Where the bytes of the float checkpoint lie."""
    figure, axes = new_axes(height=2.6)
    parts = sorted(record.parts, key=lambda part: part.bytes)
    total = sum(part.bytes for part in parts)
    bars = axes.barh(
        [_(part.part) for part in parts], [part.bytes / 1e6 for part in parts], color=COLORS["float"]
    )
    axes.bar_label(
        bars, [f"{part.bytes / 1e6:,.1f} MB, {part.bytes / total:.1%}" for part in parts], padding=4
    )
    for bar, part in zip(bars, parts, strict=True):
        hover(bar, _("{name}: {size} bytes").format(name=_(part.part), size=f"{part.bytes:,}"))
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.22)
    title = _("{part} holds {share} of the {size} MB of weights").format(
        part=_(parts[-1].part).capitalize(),
        share=f"{parts[-1].bytes / total:.0%}",
        size=f"{total / 1e6:,.1f}",
    )
    return finish(
        figure,
        axes,
        title,
        _("float weights, MB"),
        "",
        "; ".join(f"{_(p.part)} {p.bytes / 1e6:.1f} MB" for p in parts),
    )

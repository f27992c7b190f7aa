"""Charts of `03_precision`: what int8 costs, at which positions, and where in the network it comes from."""

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from telechat_kit.comparison.verdict import TextLoss, loss_said, losses
from telechat_kit.messages import gettext as _
from telechat_kit.precision import PrecisionRecord, Sources
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.reports.charts import (
    COLORS,
    STYLE,
    Chart,
    error_bars,
    finish,
    integer_axis,
    log_axis,
    new_axes,
    ring,
    titled,
)
from telechat_kit.reports.inline_svg import hover
from telechat_kit.reports.label_places import point_labels
from telechat_kit.reports.linear_names import block_and_kind, block_inputs
from telechat_kit.statistics import Estimate

DARK = "#333333"


@mpl.rc_context(STYLE)
def texts(record: PrecisionRecord, quantized: QuantizeRecord | None = None) -> Chart:
    """Mean KL and perplexity ratio of every text with their intervals, the worst text at the top."""
    found = losses(record, quantized)
    figure = Figure(figsize=(8.6, 1.5 + 0.36 * len(found)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, loss in enumerate(found):
        color = COLORS["published"] if loss.like_calibration else COLORS["w8a8"]
        for axes, estimate in ((left, loss.kl), (right, loss.perplexity_ratio)):
            bars = error_bars([estimate])
            drawn = axes.errorbar(
                estimate.value, row, xerr=bars, fmt="o", ms=6, color=color, ecolor=DARK, capsize=3
            )
            hover(
                drawn.lines[0],
                _("{text}, {tokens} tokens: {figure}").format(
                    text=loss.text, tokens=f"{loss.tokens:,}", figure=estimate
                ),
            )
    left.set_yticks(range(len(found)), [f"{loss.text}{_like(loss)}" for loss in found])
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set_xlabel(_("mean KL from float, nats per token"))
    right.axvline(1, color=DARK, lw=0.8)
    right.set_xlabel(_("perplexity, W8A8 over float"))
    for axes in (left, right):
        _vertical_grid(axes)
        axes.margins(y=0.15)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    title = _("W8A8 loses most on {text}: {loss}").format(text=found[0].text, loss=loss_said(found[0]))
    alt = "; ".join(
        _("{text}: KL {kl}, perplexity ratio {ratio}").format(
            text=loss.text, kl=loss.kl, ratio=loss.perplexity_ratio
        )
        for loss in found
    )
    return titled(figure, title, alt)


def _like(loss: TextLoss) -> str:
    return "\n" + _("(like the calibration's)") if loss.like_calibration else ""


@mpl.rc_context(STYLE)
def divergence_quantiles(record: PrecisionRecord) -> Chart:
    """KL divergence at the quantiles of the positions: how bad the worst tokens are."""
    figure, axes = new_axes(height=3.0)
    quantiles = record.divergence.kl_quantiles
    labels, estimates = [f"{share} %" for share in quantiles], list(quantiles.values())
    values = [estimate.value for estimate in estimates]
    places = range(len(labels))
    drawn = axes.errorbar(
        places, values, yerr=error_bars(estimates), fmt="o-", color=COLORS["w8a8"], ecolor=DARK, capsize=3
    )
    hover(
        drawn.lines[0],
        [_nats(label, estimate) for label, estimate in zip(labels, estimates, strict=True)],
    )
    point_labels(axes, zip(places, values, strict=True), [f"{value:.3g}" for value in values], fontsize=9)
    axes.set_xticks(places, labels)
    if min(values) > 0:
        log_axis(axes, "y")
    axes.margins(y=0.2)
    mean = record.divergence.kl_mean
    title = _("KL divergence: mean {mean} nats per token, above {worst} at 1 % of the positions").format(
        mean=f"{mean.value:.4f}", worst=f"{quantiles['99'].value:.3g}"
    )
    return finish(
        figure,
        axes,
        title,
        _("share of positions with at most this divergence"),
        _("KL(float || W8A8), nats"),
        ", ".join(f"{share} %: {estimate}" for share, estimate in quantiles.items()),
    )


@mpl.rc_context(STYLE)
def probability_change(record: PrecisionRecord) -> Chart:
    """Percentiles of the change of the correct token's probability."""
    figure, axes = new_axes(height=2.8)
    change = record.divergence.probability_change
    labels = [f"{share} %" for share in change.quantiles]
    estimates = [estimate.map(lambda x: 100 * x) for estimate in change.quantiles.values()]
    values = [estimate.value for estimate in estimates]
    bars = axes.bar(labels, values, 0.6, color=COLORS["w8a8"])
    axes.errorbar(labels, values, yerr=error_bars(estimates), fmt="none", ecolor=DARK, capsize=3)
    axes.bar_label(bars, [f"{value:+.1f}".replace("-0.0", "0.0") for value in values], padding=6, fontsize=9)
    for bar, label, estimate in zip(bars, labels, estimates, strict=True):
        hover(bar, _("{share}: {change} points").format(share=label, change=estimate))
    axes.axhline(0, color=DARK, lw=0.8)
    axes.margins(y=0.22)
    title = _(
        "The correct token's probability moves by {rms} points (root mean square), {mean} on average"
    ).format(rms=f"{100 * change.rms.value:.1f}", mean=f"{100 * change.mean.value:+.2f}")
    return finish(
        figure,
        axes,
        title,
        _("share of positions with at most this change"),
        _("W8A8 less float,\npercentage points"),
        ", ".join(f"{label}: {value:+.2f}" for label, value in zip(labels, values, strict=True)),
    )


@mpl.rc_context(STYLE)
def by_position(record: PrecisionRecord) -> Chart:
    """Mean KL by position in the sequence: whether a longer context makes the loss grow."""
    figure, axes = new_axes(height=2.8)
    groups = record.divergence.by_position
    names, estimates = [group.name for group in groups], [group.kl_mean for group in groups]
    values = [estimate.value for estimate in estimates]
    drawn = axes.errorbar(
        names, values, yerr=error_bars(estimates), fmt="o-", color=COLORS["w8a8"], ecolor=DARK, capsize=4
    )
    hover(drawn.lines[0], [_nats(name, e) for name, e in zip(names, estimates, strict=True)])
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    first, last = groups[0].kl_mean, groups[-1].kl_mean
    apart = last.low > first.high or last.high < first.low
    message = (
        _("The divergence at positions {last} is not shown to differ from that at {first}")
        if not apart
        else _("At positions {last} the divergence is higher than at {first}")
        if last.value > first.value
        else _("At positions {last} the divergence is lower than at {first}")
    )
    title = message.format(last=names[-1], first=names[0])
    alt = ", ".join(f"{name}: {estimate}" for name, estimate in zip(names, estimates, strict=True))
    return finish(figure, axes, title, _("position in the sequence"), _("mean KL, nats"), alt)


@mpl.rc_context(STYLE)
def linear_sources(sources: Sources | None) -> Chart | None:
    """Signal-to-noise ratio of every int8 linear's output by block, those that cost most ringed and named."""
    if sources is None:
        return None
    figure, axes = new_axes(height=4.0)
    for read in block_inputs(linear.name for linear in sources.linears):
        points = [
            (*block_and_kind(linear.name), linear.output_snr)
            for linear in sources.linears
            if block_and_kind(linear.name)[1] in read.kinds and linear.output_snr is not None
        ]
        (marks,) = axes.plot(
            [x for x, _, _ in points],
            [y for _, _, y in points],
            read.marker,
            ms=4,
            color=read.color,
            label=read.label,
        )
        hover(marks, [f"{name} {block}: {snr:.1f} dB" for block, name, snr in points])
    integer_axis(axes)
    axes.margins(y=0.12)
    _ring_the_dearest(axes, sources)
    figure.legend(ncol=4, loc="outside lower center")
    dearest = sources.kept[0] if sources.kept else None
    title = (
        _("Output noise of every int8 linear: {linears} costs most ({share}, estimated)").format(
            linears=_short_names(dearest.names), share=f"{dearest.estimated_share:.0%}"
        )
        if dearest
        else _("Output noise of every int8 linear")
    )
    alt = "; ".join(f"{_short_names(k.names)} {k.estimated_share:.0%}" for k in sources.kept)
    return finish(
        figure, axes, title, _("block"), _("signal / noise of the output, dB\n(higher is better)"), alt
    )


def _ring_the_dearest(axes: Axes, sources: Sources) -> None:
    found = {linear.name: linear.output_snr for linear in sources.linears}
    points, texts = [], []
    for kept in sources.kept[:5]:
        snr = found[kept.names[0]]
        if snr is not None:
            points.append((block_and_kind(kept.names[0])[0], snr))
            texts.append(f"{_short_names(kept.names)}: {kept.estimated_share:.0%}")
    ring(axes, points)
    point_labels(axes, points, texts)


@mpl.rc_context(STYLE)
def residual_stream(sources: Sources | None) -> Chart | None:
    """How far the residual stream has moved after each block."""
    if sources is None:
        return None
    figure, axes = new_axes(height=2.8)
    blocks = [block.block for block in sources.blocks]
    estimates = [block.relative_error for block in sources.blocks]
    percent = [100 * estimate.value for estimate in estimates]
    axes.fill_between(
        blocks,
        [100 * e.low for e in estimates],
        [100 * e.high for e in estimates],
        color=COLORS["w8a8"],
        alpha=0.25,
        lw=0,
    )
    (marks,) = axes.plot(blocks, percent, "o-", ms=4, color=COLORS["w8a8"])
    hover(
        marks,
        [
            _("block {block}: {error} %").format(block=block, error=e.map(lambda x: 100 * x))
            for block, e in zip(blocks, estimates, strict=True)
        ],
    )
    steps = [after - before for before, after in zip([0.0, *percent], percent, strict=False)]
    jump = max(range(len(steps)), key=steps.__getitem__)
    point_labels(
        axes,
        [(blocks[jump], percent[jump])],
        [_("block {block}: {step}").format(block=jump, step=f"{steps[jump]:+.1f}")],
    )
    axes.set_ylim(bottom=0)
    integer_axis(axes)
    title = _("After the last block the residual stream is {error} % off; block {block} adds most").format(
        error=f"{percent[-1]:.1f}", block=jump
    )
    alt = ", ".join(f"{block}: {value:.2f} %" for block, value in zip(blocks, percent, strict=True))
    return finish(figure, axes, title, _("block"), _("|W8A8 - float| / |float|, %\n(root mean square)"), alt)


@mpl.rc_context(STYLE)
def kept_in_float(sources: Sources | None) -> Chart | None:
    """Mean KL with each of the dearest linears put back to float, beside that of the model as it is."""
    if sources is None or not sources.kept:
        return None
    rows = sources.kept[::-1]
    figure, axes = new_axes(height=1.6 + 0.36 * len(rows))
    names = [_short_names(row.names) for row in rows]
    estimates = [row.kl_change for row in rows]
    values = [estimate.value for estimate in estimates]
    bars = axes.barh(
        names,
        values,
        color=[COLORS["kept in float"] if v < 0 else COLORS["published"] for v in values],
        height=0.6,
    )
    for bar, name, estimate in zip(bars, names, estimates, strict=True):
        hover(bar, _nats(name, estimate))
    axes.errorbar(values, range(len(rows)), xerr=error_bars(estimates), fmt="none", ecolor=DARK, capsize=3)
    axes.axvline(0, color=DARK, lw=0.8)
    _vertical_grid(axes)
    best = min(sources.kept, key=lambda row: row.kl_change.value)
    share = -best.kl_change.value / sources.kl_mean.value if sources.kl_mean.value else 0.0
    title = _("{linears} in float would take {share} off the divergence (measured)").format(
        linears=_short_names(best.names), share=f"{share:.0%}"
    )
    x = _("change of mean KL, nats per token (it is {kl}); 95 % interval over {sequences} sequences").format(
        kl=f"{sources.kl_mean.value:.4f}", sequences=sources.sequences
    )
    alt = "; ".join(f"{name} {estimate}" for name, estimate in zip(names, estimates, strict=True))
    return finish(figure, axes, title, x, "", alt)


def _nats(name: str, estimate: Estimate) -> str:
    return _("{name}: {figure} nats").format(name=name, figure=estimate)


def _short_names(names: list[str]) -> str:
    """`query + key_value 7`: the linears of one input and their block."""
    parts = [block_and_kind(name) for name in names]
    return f"{' + '.join(kind for _, kind in parts)} {parts[0][0]}"


def _vertical_grid(axes: Axes) -> None:
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")

"""Charts of `03_precision`: what int8 costs, at which positions, and where in the network it comes from."""

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from telechat_kit.comparison.verdict import TextLoss, loss_said, losses
from telechat_kit.precision import PrecisionRecord, Sources
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.reports.charts import (
    COLORS,
    INPUTS,
    STYLE,
    Chart,
    block_and_kind,
    error_bars,
    finish,
    new_axes,
)

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
            axes.errorbar(estimate.value, row, xerr=bars, fmt="o", ms=6, color=color, ecolor=DARK, capsize=3)
    left.set_yticks(range(len(found)), [f"{loss.text}{_like(loss)}" for loss in found])
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set_xlabel("mean KL from float, nats per token")
    right.axvline(1, color=DARK, lw=0.8)
    right.set_xlabel("perplexity, W8A8 over float")
    for axes in (left, right):
        _vertical_grid(axes)
        axes.margins(y=0.15)
    title = f"W8A8 loses most on {found[0].text}: {loss_said(found[0])}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"], fontweight="bold", wrap=True)
    alt = "; ".join(f"{loss.text}: KL {loss.kl}, perplexity ratio {loss.perplexity_ratio}" for loss in found)
    return Chart(figure, f"{title}. {alt}")


def _like(loss: TextLoss) -> str:
    return "\n(like the calibration's)" if loss.like_calibration else ""


@mpl.rc_context(STYLE)
def divergence_quantiles(record: PrecisionRecord) -> Chart:
    """KL divergence at the quantiles of the positions: how bad the worst tokens are."""
    figure, axes = new_axes(height=3.0)
    quantiles = record.divergence.kl_quantiles
    labels, estimates = [f"{share} %" for share in quantiles], list(quantiles.values())
    values = [estimate.value for estimate in estimates]
    axes.errorbar(
        labels, values, yerr=error_bars(estimates), fmt="o-", color=COLORS["w8a8"], ecolor=DARK, capsize=3
    )
    for label, value in zip(labels, values, strict=True):
        axes.annotate(
            f"{value:.3g}",
            (label, value),
            (8, -3),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=9,
        )
    if min(values) > 0:
        axes.set_yscale("log")
    axes.margins(y=0.2)
    mean = record.divergence.kl_mean
    title = f"KL divergence: mean {mean.value:.4f} nats per token, above {quantiles['99'].value:.3g} at 1 % of the positions"
    return finish(
        figure,
        axes,
        title,
        "share of positions with at most this divergence",
        "KL(float || W8A8), nats",
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
    axes.axhline(0, color=DARK, lw=0.8)
    axes.margins(y=0.22)
    title = (
        f"The correct token's probability moves by {100 * change.rms.value:.1f} points (root mean square), "
        f"{100 * change.mean.value:+.2f} on average"
    )
    return finish(
        figure,
        axes,
        title,
        "share of positions with at most this change",
        "W8A8 less float,\npercentage points",
        ", ".join(f"{label}: {value:+.2f}" for label, value in zip(labels, values, strict=True)),
    )


@mpl.rc_context(STYLE)
def by_position(record: PrecisionRecord) -> Chart:
    """Mean KL by position in the sequence: whether a longer context makes the loss grow."""
    figure, axes = new_axes(height=2.8)
    groups = record.divergence.by_position
    names, estimates = [group.name for group in groups], [group.kl_mean for group in groups]
    values = [estimate.value for estimate in estimates]
    axes.errorbar(
        names, values, yerr=error_bars(estimates), fmt="o-", color=COLORS["w8a8"], ecolor=DARK, capsize=4
    )
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    first, last = groups[0].kl_mean, groups[-1].kl_mean
    apart = last.low > first.high or last.high < first.low
    relation = "higher" if last.value > first.value else "lower"
    title = (
        f"At positions {names[-1]} the divergence is {relation} than at {names[0]}"
        if apart
        else f"The divergence at positions {names[-1]} is not shown to differ from that at {names[0]}"
    )
    alt = ", ".join(f"{name}: {estimate}" for name, estimate in zip(names, estimates, strict=True))
    return finish(figure, axes, title, "position in the sequence", "mean KL, nats", alt)


@mpl.rc_context(STYLE)
def linear_sources(sources: Sources | None) -> Chart | None:
    """Signal-to-noise ratio of every int8 linear's output by block, those that cost most ringed and named."""
    if sources is None:
        return None
    figure, axes = new_axes(height=4.0)
    known = {kind: (label, marker, color) for label, kind, marker, color in INPUTS}
    shared = {"key_value": "query", "up_proj": "gate_proj"}
    for kind, (label, marker, color) in known.items():
        points = [
            (block_and_kind(linear.name)[0], linear.output_snr)
            for linear in sources.linears
            if shared.get(block_and_kind(linear.name)[1], block_and_kind(linear.name)[1]) == kind
            and linear.output_snr is not None
        ]
        axes.plot([x for x, _ in points], [y for _, y in points], marker, ms=4, color=color, label=label)
    _ring_the_dearest(axes, sources)
    figure.legend(ncol=4, loc="outside lower center")
    dearest = sources.kept[0] if sources.kept else None
    title = "Output noise of every int8 linear" + (
        f": {_short_names(dearest.names)} costs most ({dearest.estimated_share:.0%}, estimated)"
        if dearest
        else ""
    )
    alt = "; ".join(f"{_short_names(k.names)} {k.estimated_share:.0%}" for k in sources.kept)
    return finish(figure, axes, title, "block", "signal / noise of the output, dB\n(higher is better)", alt)


def _ring_the_dearest(axes: Axes, sources: Sources) -> None:
    found = {linear.name: linear.output_snr for linear in sources.linears}
    last = max((block_and_kind(name)[0] for name in found), default=0)
    for number, kept in enumerate(sources.kept[:5]):
        name = kept.names[0]
        block, snr = block_and_kind(name)[0], found[name]
        if snr is None:
            continue
        left = block > 0.7 * last
        axes.plot(block, snr, "o", ms=11, mfc="none", mec=COLORS["kept in float"], mew=1.8)
        axes.annotate(
            f"{_short_names(kept.names)}: {kept.estimated_share:.0%}",
            (block, snr),
            (-9 if left else 9, -11 if number % 2 else 5),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=8.5,
        )


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
    axes.plot(blocks, percent, "o-", ms=4, color=COLORS["w8a8"])
    steps = [after - before for before, after in zip([0.0, *percent], percent, strict=False)]
    jump = max(range(len(steps)), key=steps.__getitem__)
    axes.annotate(
        f"block {jump}: {steps[jump]:+.1f}",
        (blocks[jump], percent[jump]),
        (8, -12),
        textcoords="offset points",
        fontsize=8.5,
    )
    axes.set_ylim(bottom=0)
    title = f"After the last block the residual stream is {percent[-1]:.1f} % off; block {jump} adds most"
    alt = ", ".join(f"{block}: {value:.2f} %" for block, value in zip(blocks, percent, strict=True))
    return finish(figure, axes, title, "block", "|W8A8 - float| / |float|, %\n(root mean square)", alt)


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
    axes.barh(
        names,
        values,
        color=[COLORS["kept in float"] if v < 0 else COLORS["published"] for v in values],
        height=0.6,
    )
    axes.errorbar(values, range(len(rows)), xerr=error_bars(estimates), fmt="none", ecolor=DARK, capsize=3)
    axes.axvline(0, color=DARK, lw=0.8)
    _vertical_grid(axes)
    best = min(sources.kept, key=lambda row: row.kl_change.value)
    share = -best.kl_change.value / sources.kl_mean.value if sources.kl_mean.value else 0.0
    title = f"{_short_names(best.names)} in float would take {share:.0%} off the divergence (measured)"
    x = f"change of mean KL, nats per token (it is {sources.kl_mean.value:.4f}); 95 % interval over {sources.sequences} sequences"
    alt = "; ".join(f"{name} {estimate}" for name, estimate in zip(names, estimates, strict=True))
    return finish(figure, axes, title, x, "", alt)


def _short_names(names: list[str]) -> str:
    """`query + key_value 7`: the linears of one input and their block."""
    parts = [block_and_kind(name) for name in names]
    return f"{' + '.join(kind for _, kind in parts)} {parts[0][0]}"


def _vertical_grid(axes: Axes) -> None:
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")

"""The verdict on a run: what int8 costs and brings, computed once from its records. Every page says it from here.

It takes the worst text first, says "no difference shown" where an interval holds none, leaves cases that vary out of
the speed, and names both engines. `said` gives whole sentences; how they look is up to the pages.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import floor, log10
from statistics import geometric_mean

from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.performance.timed_samples import CaseResult
from telechat_kit.precision import Divergence, Group, PrecisionRecord
from telechat_kit.precision.kinds import like_calibration
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.statistics import Estimate

#: What the kit's kinds of text are called; other texts by their own names
KIND_NAMES = {"zh": "Chinese", "en": "English", "docs": "documentation"}


@dataclass(frozen=True)
class TextLoss:
    """What int8 costs on one text, W8A8 against float on the same tokens.

    `like_calibration`: calibration read of the same text, or of one of the same kind; None: what it read is not known.
    """

    text: str
    tokens: int
    perplexity_float: float
    perplexity_ratio: Estimate
    kl: Estimate  # nats per token
    same_token: Estimate  # share of positions with the same most likely token
    like_calibration: bool | None = None


@dataclass(frozen=True)
class SpeedGain:
    """Tokens per second of W8A8 over those of float, geometric mean over the cases that are stable in both.

    `ratio` is None where no case is. Its interval is made of the cases' own ends and covers at least what theirs do.
    """

    ratio: Estimate | None
    cases: int
    unstable: int
    engines: dict[str, str] = field(
        default_factory=dict
    )  # "float", "w8a8" -> what ran it; empty: not recorded


@dataclass(frozen=True)
class Verdict:
    """What a run found, the worst text first."""

    losses: list[TextLoss]
    answers_equal: int
    answers: int
    level: str | None = None  # None: the weights were given, or are not known here
    given: bool = False
    size_ratio: float | None = None  # of the weight files
    speed: SpeedGain | None = None
    engine: SpeedGain | None = None  # float in the engine over transformers' own loop; None: not timed
    device: str = ""
    #: what is not told, because its record is of other W8A8 weights than the precision record
    left_out: list[str] = field(default_factory=list)

    @property
    def worst(self) -> TextLoss:
        """The kind of text with the largest mean KL."""
        return self.losses[0]


def verdict(
    precision: PrecisionRecord,
    quantized: QuantizeRecord | None = None,
    performance: PerformanceRecord | None = None,
) -> Verdict:
    """The verdict on what is there: 03_precision alone, or the whole run. Records of other weights say nothing of it."""
    left_out = []
    if quantized is not None and _other_weights(precision, quantized):
        quantized = None
        left_out.append("level and size")
    if performance is not None and _other_weights(precision, performance):
        performance = None
        left_out.append("speed")
    return Verdict(
        losses=losses(precision, quantized),
        answers_equal=sum(a.float_differs is None and a.w8a8_differs is None for a in precision.answers),
        answers=len(precision.answers),
        level=quantized.recipe.level if quantized and quantized.recipe else None,
        given=quantized is not None and quantized.recipe is None,
        size_ratio=quantized.w8a8_bytes / quantized.float_bytes if quantized else None,
        speed=speed_gain(performance) if performance else None,
        engine=engine_gain(performance) if performance else None,
        device=(performance or precision).conditions.device_name,
        left_out=left_out,
    )


def _other_weights(precision: PrecisionRecord, record: QuantizeRecord | PerformanceRecord) -> bool:
    found = (
        precision.conditions.hashes.get("w8a8_weights"),
        record.conditions.hashes.get("w8a8_weights"),
    )
    return all(found) and found[0] != found[1]


def losses(precision: PrecisionRecord, quantized: QuantizeRecord | None = None) -> list[TextLoss]:
    """The loss by text, largest mean KL first: that of `text_path`, those by kind, those by language."""
    groups: list[tuple[str, Divergence | Group]] = [(precision.text_source, precision.divergence)]
    groups += [(loss.kind, loss.figures) for loss in precision.kinds]
    groups += [(f"{group.name} lines", group) for group in precision.languages]
    like = _like_calibration(precision, quantized)
    found = [
        TextLoss(
            KIND_NAMES.get(name, name),
            figures.tokens,
            figures.perplexity_float.value,
            figures.perplexity_ratio,
            figures.kl_mean,
            figures.top1_agreement,
            None if like is None else name in like,
        )
        for name, figures in groups
    ]
    return sorted(found, key=lambda loss: -loss.kl.value)


def _like_calibration(precision: PrecisionRecord, quantized: QuantizeRecord | None) -> list[str] | None:
    """The texts that are like the calibration's; of a record from before it told, by what 02_quantize says."""
    if precision.like_calibration is not None or quantized is None or quantized.recipe is None:
        return precision.like_calibration
    return like_calibration({precision.text_source: precision.text_sha256}, asdict(quantized.recipe))


def speed_gain(record: PerformanceRecord) -> SpeedGain:
    """How many times the tokens per second of float W8A8 generates in the cases of the grid."""
    return _speed(_of(record, "w8a8"), _of(record, "float"), record.engines)


def first_token_gain(record: PerformanceRecord) -> SpeedGain:
    """How many times as soon as float W8A8 has the first token."""
    stable, unstable = _stable(_of(record, "w8a8"), _of(record, "float"))
    times = [(base.time_to_first_token, own.time_to_first_token) for own, base in stable]
    return SpeedGain(_mean_ratio(times), len(stable), unstable, record.engines)


def engine_gain(record: PerformanceRecord) -> SpeedGain | None:
    """How many times the tokens per second of transformers' own loop float has in its engine; None: not timed."""
    if not record.transformers:
        return None
    return _speed(_of(record, "float"), record.transformers, {"float": record.engines["float"]})


def _of(record: PerformanceRecord, precision: str) -> list[CaseResult]:
    return [case for case in record.grid_cases if case.precision == precision]


def _speed(own: Sequence[CaseResult], base: Sequence[CaseResult], engines: dict[str, str]) -> SpeedGain:
    stable, unstable = _stable(own, base)
    speeds = [(one.tokens_per_second, other.tokens_per_second) for one, other in stable]
    return SpeedGain(_mean_ratio(speeds), len(stable), unstable, engines)


def _stable(
    own: Sequence[CaseResult], base: Sequence[CaseResult]
) -> tuple[list[tuple[CaseResult, CaseResult]], int]:
    """The results of each case that both have, where the runs of both agree, and the number of other such cases."""
    others = {case.case: case for case in base}
    pairs = [(case, others[case.case]) for case in own if case.case in others]
    stable = [(one, other) for one, other in pairs if not one.unstable and not other.unstable]
    return stable, len(pairs) - len(stable)


def _mean_ratio(pairs: Sequence[tuple[Estimate, Estimate]]) -> Estimate | None:
    """Geometric mean of first over second, with the widest interval that theirs allow; None of no pairs."""
    if not pairs:
        return None
    return Estimate(
        geometric_mean(a.value / b.value for a, b in pairs),
        geometric_mean(a.low / b.high for a, b in pairs),
        geometric_mean(a.high / b.low for a, b in pairs),
        min(min(a.coverage, b.coverage) for a, b in pairs),
    )


def said(found: Verdict) -> list[str]:
    """The verdict in sentences: the worst text, text like the calibration's against other, answers, what int8 brings."""
    level = f"W8A8 at level {found.level}" if found.level else "W8A8 as given" if found.given else "W8A8"
    worst = found.worst
    lines = [f"{level}, on {worst.text} ({worst.tokens:,} tokens): {loss_said(worst)}.", against_said(found)]
    if found.answers:
        lines.append(f"{found.answers_equal} of {found.answers} answers are the same to the last token.")
    if found.size_ratio is not None:
        lines.append(f"The weight files take {found.size_ratio:.0%} of the size of float.")
    if found.speed is not None:
        lines.append(speed_said(found.speed, found.device))
    if found.engine is not None:
        lines.append(engine_said(found.engine))
    if found.left_out:
        lines.append(
            f"Not told, because the record is of other W8A8 weights: {' and '.join(found.left_out)}."
        )
    return lines


def against_said(found: Verdict) -> str:
    """The worst of the texts that are like the calibration's, against the worst of the others."""
    like = next((loss for loss in found.losses if loss.like_calibration), None)
    other = next((loss for loss in found.losses if loss.like_calibration is False), None)
    if like and other:
        return (
            f"Mean KL from float, nats per token, at the worst: {shown(like.kl)} on text like the calibration's "
            f"({like.text}), {shown(other.kl)} on other text ({other.text})."
        )
    worst = found.worst
    kl = f"Mean KL from float, nats per token, at the worst: {shown(worst.kl)} ({worst.text})."
    if like:
        return f"{kl} All texts are like the calibration's: what other text costs was not measured."
    return (
        f"{kl} No text is like the calibration's." if other else f"{kl} What was calibrated on is not known."
    )


def loss_said(loss: TextLoss) -> str:
    """Perplexity and the choice of tokens on one text, as far as their intervals allow."""
    same = loss.same_token.map(lambda share: 100 * share)
    return f"{perplexity_said(loss.perplexity_ratio)}, the next token is float's at {shown(same)} % of the positions"


def perplexity_said(ratio: Estimate) -> str:
    """What int8 does to perplexity: raises or lowers it, or nothing that the interval shows."""
    change = ratio.map(lambda x: 100 * (x - 1))
    if not ratio.coverage:
        return f"perplexity changes by {change.value:+.1f} % (one sequence: no interval)"
    if ratio.low <= 1 <= ratio.high:
        return f"no difference of perplexity is shown (change {interval_of(change, signed=True)} %)"
    if change.value < 0:
        return f"perplexity falls by {shown(Estimate(-change.value, -change.high, -change.low, change.coverage))} %"
    return f"perplexity rises by {shown(change)} %"


def speed_said(found: SpeedGain, device: str) -> str:
    """What int8 brings in speed, with both engines; no figure where none is stable."""
    where = f" on {device}" if device else ""
    left = f"; {found.unstable} left out, their runs vary too much" if found.unstable else ""
    if found.ratio is None:
        return f"How much faster W8A8 generates{where} is not shown: the runs of all {found.unstable} cases vary too much."
    cases = f"{found.cases} case{'s' if found.cases > 1 else ''}{left}"
    engines = engines_said(found.engines)
    if found.ratio.low <= 1 <= found.ratio.high:
        return f"No difference of speed is shown{where}: tokens per second {interval_of(found.ratio)} times those of float ({cases}{engines})."
    return (
        f"W8A8 generates {shown(found.ratio)} times the tokens per second of float{where} ({cases}{engines})."
    )


def engine_said(found: SpeedGain) -> str:
    """What the engine brings by itself, int8 or not."""
    beside = "transformers' generate() on the same float weights"
    if found.ratio is None:
        return f"What the engine brings over {beside} is not shown: the runs of all {found.unstable} cases vary too much."
    left = f"; {found.unstable} left out, their runs vary too much" if found.unstable else ""
    cases = f"{found.cases} case{'s' if found.cases > 1 else ''}{left}"
    if found.ratio.low <= 1 <= found.ratio.high:
        return f"The {found.engines['float']} shows no difference from {beside}: tokens per second {interval_of(found.ratio)} times ({cases})."
    return f"The {found.engines['float']} by itself brings {shown(found.ratio)} times the tokens per second of {beside} ({cases})."


def gain_title(found: SpeedGain, what: str) -> str:
    """A chart's title: `what` with the ratio, or that none is shown. `{}` in it stands for the ratio."""
    if found.ratio is None:
        return "No ratio is shown: the runs of all cases vary too much"
    if found.ratio.low <= 1 <= found.ratio.high:
        return f"No difference of speed is shown: {interval_of(found.ratio)} times float"
    apart = ", in different engines" if len(set(found.engines.values())) > 1 else ""
    return what.format(shown(found.ratio)) + apart


def engines_said(engines: dict[str, str]) -> str:
    """What ran each precision, where they differ: then the ratio is not that of int8 alone."""
    if not engines:
        return ""
    if len(set(engines.values())) == 1:
        return f"; both in the {engines['w8a8']}"
    return f"; float in the {engines['float']}, W8A8 in the {engines['w8a8']}: a part of it is the engine's, not int8's"


def shown(estimate: Estimate) -> str:
    """The figure and its interval, no digit finer than the interval allows: `13 [8, 18]`."""
    if not estimate.coverage:
        return f"{estimate.value:.2g} (no interval)"
    return f"{_rounded(estimate.value, estimate)} {interval_of(estimate)}"


def interval_of(estimate: Estimate, signed: bool = False) -> str:
    """The interval in brackets, rounded as `shown` does."""
    low, high = (_rounded(end, estimate, signed) for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def _rounded(value: float, estimate: Estimate, signed: bool = False) -> str:
    """`value` to the first digit of the interval's half width; a digit more where that one is a 1."""
    half = (estimate.high - estimate.low) / 2
    if not half > 0:
        return f"{value:{'+' if signed else ''}.4g}"
    decimals = -floor(log10(half)) + (half / 10 ** floor(log10(half)) < 2)
    text = f"{round(value, decimals):{'+' if signed else ''}.{max(decimals, 0)}f}"
    return text.replace("-0", "0", 1) if float(text) == 0 else text

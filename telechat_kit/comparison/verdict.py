"""The verdict on a run: what int8 costs and brings, computed once from its records. Every page says it from here.

It takes the worst text first, says "no difference shown" where an interval holds none, leaves cases that vary out of
the speed, and names both engines. `said` gives whole sentences; how they look is up to the pages.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import floor, log10
from statistics import geometric_mean

from telechat_kit.messages import closed_up, marked, ngettext
from telechat_kit.messages import gettext as _
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.performance.timed_samples import CaseResult
from telechat_kit.precision import Divergence, Group, PrecisionRecord
from telechat_kit.precision.kinds import like_calibration
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.statistics import Estimate

#: What the kit's kinds of text are called; other texts by their own names
KIND_NAMES = {
    "zh": marked("Chinese"),
    "en": marked("English"),
    "docs": marked("documentation"),
    "chat": marked("chat"),
    "code": marked("code"),
    "Chinese lines": marked("Chinese lines"),
    "English lines": marked("English lines"),
}

_THREADS = re.compile(r"(.*) \((\d+) threads?\)")


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
        left_out.append(marked("level and size"))
    if performance is not None and _other_weights(precision, performance):
        performance = None
        left_out.append(marked("speed"))
    return Verdict(
        losses=losses(precision, quantized),
        answers_equal=sum(answer.equal for answer in precision.answers),
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
            kind_name(name),
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


def kind_name(kind: str) -> str:
    """What a kind of text is called in the language in force; other texts by their own names."""
    name = KIND_NAMES.get(kind, kind)
    return _(name) if name in KIND_NAMES.values() else name


def device_said(name: str) -> str:
    """The name of a device as records hold it, in the language in force: that of a CPU ends with its threads."""
    found = _THREADS.fullmatch(name)
    if found is None:
        return name
    count = int(found[2])
    return ngettext("{processor} ({count} thread)", "{processor} ({count} threads)", count).format(
        processor=found[1], count=count
    )


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
    worst = found.worst
    message = (
        _("W8A8 at level {level}, on {text} ({tokens} tokens): {loss}.")
        if found.level
        else _("W8A8 as given, on {text} ({tokens} tokens): {loss}.")
        if found.given
        else _("W8A8, on {text} ({tokens} tokens): {loss}.")
    )
    first = message.format(
        level=found.level, text=worst.text, tokens=f"{worst.tokens:,}", loss=loss_said(worst)
    )
    lines = [first, against_said(found)]
    if found.answers:
        answers = ngettext(
            "{equal} of {count} answer is the same to the last token.",
            "{equal} of {count} answers are the same to the last token.",
            found.answers,
        )
        lines.append(answers.format(equal=found.answers_equal, count=found.answers))
    if found.size_ratio is not None:
        lines.append(
            _("The weight files take {share} of the size of float.").format(share=f"{found.size_ratio:.0%}")
        )
    if found.speed is not None:
        lines.append(speed_said(found.speed, found.device))
    if found.engine is not None:
        lines.append(engine_said(found.engine))
    if found.left_out:
        what = _(" and ").join(map(_, found.left_out))
        lines.append(_("Not told, because the record is of other W8A8 weights: {what}.").format(what=what))
    return [closed_up(line) for line in lines]


def against_said(found: Verdict) -> str:
    """The worst of the texts that are like the calibration's, against the worst of the others."""
    like = next((loss for loss in found.losses if loss.like_calibration), None)
    other = next((loss for loss in found.losses if loss.like_calibration is False), None)
    if like and other:
        return _(
            "Mean KL from float, nats per token, at the worst: {kl} on text like the calibration's ({text}), "
            "{other_kl} on other text ({other_text})."
        ).format(kl=shown(like.kl), text=like.text, other_kl=shown(other.kl), other_text=other.text)
    message = (
        _(
            "Mean KL from float, nats per token, at the worst: {kl} ({text}). All texts are like the calibration's: "
            "what other text costs was not measured."
        )
        if like
        else _(
            "Mean KL from float, nats per token, at the worst: {kl} ({text}). No text is like the calibration's."
        )
        if other
        else _(
            "Mean KL from float, nats per token, at the worst: {kl} ({text}). What was calibrated on is not known."
        )
    )
    return message.format(kl=shown(found.worst.kl), text=found.worst.text)


def loss_said(loss: TextLoss) -> str:
    """Perplexity and the choice of tokens on one text, as far as their intervals allow."""
    return _("{change}, the next token is float's at {same} % of the positions").format(
        change=perplexity_said(loss.perplexity_ratio),
        same=shown(loss.same_token.map(lambda share: 100 * share)),
    )


def perplexity_said(ratio: Estimate) -> str:
    """What int8 does to perplexity: raises or lowers it, or nothing that the interval shows."""
    change = ratio.map(lambda x: 100 * (x - 1))
    if not ratio.coverage:
        return _("perplexity changes by {change} % (one sequence: no interval)").format(
            change=f"{change.value:+.1f}"
        )
    if ratio.low <= 1 <= ratio.high:
        return _("no difference of perplexity is shown (change {interval} %)").format(
            interval=interval_of(change, signed=True)
        )
    if change.value < 0:
        fall = Estimate(-change.value, -change.high, -change.low, change.coverage)
        return _("perplexity falls by {change} %").format(change=shown(fall))
    return _("perplexity rises by {change} %").format(change=shown(change))


def speed_said(found: SpeedGain, device: str) -> str:
    """What int8 brings in speed, with both engines; no figure where none is stable."""
    where = device_said(device) if device else _("this device")
    if found.ratio is None:
        return ngettext(
            "How much faster W8A8 generates on {device} is not shown: the runs of the only case vary too much.",
            "How much faster W8A8 generates on {device} is not shown: the runs of all {count} cases vary too much.",
            found.unstable,
        ).format(device=where, count=found.unstable)
    basis = _("; ").join([*_cases_said(found), *engines_said(found.engines)])
    if found.ratio.low <= 1 <= found.ratio.high:
        return _(
            "No difference of speed is shown on {device}: tokens per second {interval} times those of float ({basis})."
        ).format(device=where, interval=interval_of(found.ratio), basis=basis)
    return _("W8A8 generates {ratio} times the tokens per second of float on {device} ({basis}).").format(
        ratio=shown(found.ratio), device=where, basis=basis
    )


def _cases_said(found: SpeedGain) -> list[str]:
    """The cases that a ratio is the mean of, and how many are not among them."""
    parts = [ngettext("{count} case", "{count} cases", found.cases).format(count=found.cases)]
    if found.unstable:
        left = ngettext(
            "{count} left out, its runs vary too much",
            "{count} left out, their runs vary too much",
            found.unstable,
        )
        parts.append(left.format(count=found.unstable))
    return parts


def engine_said(found: SpeedGain) -> str:
    """What the engine brings by itself, int8 or not."""
    if found.ratio is None:
        return ngettext(
            "What the engine brings over transformers' generate() on the same float weights is not shown: the runs of "
            "the only case vary too much.",
            "What the engine brings over transformers' generate() on the same float weights is not shown: the runs of "
            "all {count} cases vary too much.",
            found.unstable,
        ).format(count=found.unstable)
    cases = _("; ").join(_cases_said(found))
    (engine,) = map(_, found.engines.values())
    if found.ratio.low <= 1 <= found.ratio.high:
        return _(
            "The {engine} shows no difference from transformers' generate() on the same float weights: tokens per second "
            "{interval} times ({cases})."
        ).format(engine=engine, interval=interval_of(found.ratio), cases=cases)
    return _(
        "The {engine} by itself brings {ratio} times the tokens per second of transformers' generate() on the same float "
        "weights ({cases})."
    ).format(engine=engine, ratio=shown(found.ratio), cases=cases)


def gain_title(found: SpeedGain, what: str) -> str:
    """A chart's title: `what` with the ratio, or that none is shown. `{ratio}` in it stands for the ratio."""
    if found.ratio is None:
        return _("No ratio is shown: the runs of all cases vary too much")
    if found.ratio.low <= 1 <= found.ratio.high:
        return _("No difference of speed is shown: {interval} times float").format(
            interval=interval_of(found.ratio)
        )
    title = what.format(ratio=shown(found.ratio))
    if len(set(found.engines.values())) > 1:
        return _("{title}, in different engines").format(title=title)
    return title


def engines_said(engines: dict[str, str]) -> list[str]:
    """What ran each precision; where they differ the ratio is not that of int8 alone."""
    if not engines:
        return []
    names = {precision: _(engine) for precision, engine in engines.items()}
    if len(set(engines.values())) == 1:
        return [_("both in the {w8a8}").format(**names)]
    told = _("float in the {float}, W8A8 in the {w8a8}: a part of it is the engine's, not int8's")
    return [told.format(**names)]


def shown(estimate: Estimate) -> str:
    """The figure and its interval, no digit finer than the interval allows: `13 [8, 18]`."""
    if not estimate.coverage:
        return _("{value} (no interval)").format(value=f"{estimate.value:.2g}")
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

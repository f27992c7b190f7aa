"""The figures of a run by name, and how much one of them changed between two runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, log

import numpy as np

from telechat_kit.comparison.comparable import impossible, same_float, text_of, why_not
from telechat_kit.comparison.run_data import RunData
from telechat_kit.comparison.speeds import by_case, mean_speed, over_float, paired_over_float, paired_speed
from telechat_kit.comparison.verdict import kind_name
from telechat_kit.errors import DataError
from telechat_kit.messages import Message, marked
from telechat_kit.performance.measurement import CaseResult
from telechat_kit.precision.positions import FIGURES
from telechat_kit.statistics import Estimate, bootstrap, mean_over_sequences, share

#: Mean KL on `text_path`; `kl_mean[KIND]` on a kind of text
LOSS = "kl_mean"
#: W8A8's speed over float's, both of one run
OVER_FLOAT = "speed_over_float"

_PAIRED_SPEEDS: dict[str, Callable[[RunData, RunData], tuple[Estimate, str] | None]] = {
    "tokens_per_second": partial(paired_speed, precision="w8a8"),
    "tokens_per_second_float": partial(paired_speed, precision="float"),
    OVER_FLOAT: paired_over_float,
}

#: Figures that are means over sequences -> the mean of each, from `by_sequence`
_OF_SEQUENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "perplexity_float": lambda rows: rows[:, FIGURES.index("float_loss")],
    "perplexity_w8a8": lambda rows: rows[:, FIGURES.index("w8a8_loss")],
    "perplexity_ratio": lambda rows: (
        rows[:, FIGURES.index("w8a8_loss")] - rows[:, FIGURES.index("float_loss")]
    ),
    "kl_mean": lambda rows: rows[:, FIGURES.index("kl")],
    "top1_agreement": lambda rows: rows[:, FIGURES.index("top1")],
}


@dataclass(frozen=True)
class Figure:
    """A figure as a reader sees it. `timed`: it is a time or a speed, and differs from run to run."""

    label: str
    unit: str
    estimate: Estimate
    timed: bool = False

    @property
    def exact(self) -> bool:
        """Whether it is a count or a size, without an interval."""
        return self.estimate.coverage == 0


@dataclass(frozen=True)
class Change:
    """A figure of one run over that of another, and on what its interval rests.

    `by_machine`: it is a speed, and float, the same weights by the same code on the same device, had another speed too.
    """

    ratio: Estimate
    basis: str
    by_machine: bool = False

    @property
    def differs(self) -> bool:
        """Whether a 95 % interval leaves out "no change"; three repeats of one case give none."""
        return self.ratio.coverage >= 0.95 and not self.ratio.low <= 1 <= self.ratio.high

    @property
    def seen(self) -> bool:
        """Whether the runs differ, and not only the machine's state."""
        return self.differs and not self.by_machine


@dataclass(frozen=True)
class Withheld:
    """Why a figure of two runs is not compared."""

    reason: str


def exact(value: float) -> Estimate:
    """A figure without an interval."""
    return Estimate(value, value, value, 0.0)


def figures(run: RunData) -> dict[str, Figure]:
    """All figures of a run, by the names that conditions and tables use."""
    return {**_precision(run), **_sizes(run), **_speeds(run)}


def worst_loss(runs: Sequence[Mapping[str, Figure]]) -> str:
    """The mean KL, of those that all runs with a loss have, that is largest over them."""
    told = [run for run in runs if LOSS in run]
    names = [name for name in (told[0] if told else {}) if name.split("[")[0] == LOSS]
    common = [name for name in names if all(name in run for run in told)]
    return max(common, key=lambda name: sum(run[name].estimate.value for run in told), default=LOSS)


def _precision(run: RunData) -> dict[str, Figure]:
    if run.precision is None:
        return {}
    found, answers = run.precision.divergence, run.precision.answers
    rows = {
        "perplexity_float": Figure(marked("perplexity, float"), "", found.perplexity_float),
        "perplexity_w8a8": Figure(marked("perplexity, W8A8"), "", found.perplexity_w8a8),
        "perplexity_ratio": Figure(marked("perplexity, W8A8 / float"), "", found.perplexity_ratio),
        "kl_mean": Figure(marked("KL(float || W8A8), mean"), marked("nats per token"), found.kl_mean),
        "top1_agreement": Figure(marked("same most likely token"), marked("share"), found.top1_agreement),
    }
    for loss in run.precision.kinds:
        name, group = kind_name(loss.kind), loss.figures
        rows |= {
            f"perplexity_ratio[{loss.kind}]": Figure(
                Message("perplexity, W8A8 / float, {name}", name=name), "", group.perplexity_ratio
            ),
            f"kl_mean[{loss.kind}]": Figure(
                Message("mean KL, {name}", name=name), marked("nats per token"), group.kl_mean
            ),
            f"top1_agreement[{loss.kind}]": Figure(
                Message("same most likely token, {name}", name=name), marked("share"), group.top1_agreement
            ),
        }
    if answers:
        alike = mean_over_sequences(np.array([[answer.similarity] for answer in answers]))
        rows["answer_similarity"] = Figure(
            marked("answers, W8A8 like float"), marked("share"), alike.clip(0, 1)
        )
        same = sum(answer.equal for answer in answers)
        rows["equal_answers"] = Figure(
            marked("answers equal to the last token"), marked("share"), share(same, len(answers))
        )
    return rows


def _sizes(run: RunData) -> dict[str, Figure]:
    rows = {}
    if run.quantize is not None:
        used = run.quantize
        rows["float_bytes"] = Figure(marked("weight files, float"), marked("bytes"), exact(used.float_bytes))
        rows["w8a8_bytes"] = Figure(marked("weight files, W8A8"), marked("bytes"), exact(used.w8a8_bytes))
        rows["quantize_seconds"] = Figure(
            marked("time to quantize"), marked("s"), exact(used.seconds), timed=True
        )
    if run.performance is not None:
        peak = exact(run.performance.peak_memory_bytes)
        rows["peak_memory_bytes"] = Figure(
            marked("peak memory, both models"), marked("bytes"), peak, timed=True
        )
    return rows


def _speeds(run: RunData) -> dict[str, Figure]:
    """Geometric means over the cases of batch 1, then every one of them by itself."""
    if run.performance is None:
        return {}
    cases = {(c.precision, c.input_tokens, c.output_tokens): c for c in run.performance.cases if c.batch == 1}
    samples = by_case(run)
    if slow := [case for case in cases.values() if not case.tokens_per_second.value > 0]:
        raise DataError(
            "{name}: performance.json holds a speed of {value:g} tokens/s, which nothing measures. Run "
            "04_performance again.",
            name=run.name,
            value=slow[0].tokens_per_second.value,
        )
    rows = {}
    for precision, suffix, label in (("w8a8", "", "W8A8"), ("float", "_float", Message("float"))):
        own = {case: result for case, result in cases.items() if case[0] == precision}
        if own:
            name = f"tokens_per_second{suffix}"
            mean = mean_speed(own, samples)
            rows[name] = Figure(
                Message("{label}, geometric mean of the cases", label=label), "tokens/s", mean, timed=True
            )
            rows |= {f"{name}[{i}/{o}]": _case(label, result) for (_, i, o), result in own.items()}
    ratio = over_float(cases, samples)
    if ratio is not None:
        rows[OVER_FLOAT] = Figure(
            marked("W8A8 over float, geometric mean of the cases"), marked("times"), ratio, timed=True
        )
    return rows


def _case(label: str, result: CaseResult) -> Figure:
    case = Message(
        "{label}, {input_tokens} / {output_tokens} tokens",
        label=label,
        input_tokens=result.input_tokens,
        output_tokens=result.output_tokens,
    )
    return Figure(case, "tokens/s", result.tokens_per_second, timed=True)


def change(
    name: str, first: Figure | None, second: Figure | None, runs: tuple[RunData, RunData] | None
) -> Change | Withheld | None:
    """The figure `name` of the second run over the first's; None where one of them lacks it.

    Paired wherever both runs read the same sequences or timed the same cases; withheld where they did not measure
    the same thing, or one of the figures cannot be true.
    """
    if first is None or second is None:
        return None
    wrong = impossible(name, first.estimate) or impossible(name, second.estimate)
    if reason := wrong or (why_not(name, *runs) if runs is not None else ""):
        return Withheld(reason)
    if runs is not None and name in _PAIRED_SPEEDS:
        paired_cases = _PAIRED_SPEEDS[name](*runs)
        found = Change(*paired_cases) if paired_cases else Withheld(marked("no raw samples of common cases"))
    elif first.estimate == second.estimate:
        return Change(exact(1.0), "identical")
    else:
        paired = _paired_precision(name, *runs) if runs is not None else None
        found = paired or _separate(first, second)
    if runs is not None and name.startswith("tokens_per_second") and isinstance(found, Change):
        return replace(found, by_machine=found.differs and _machine_differs(*runs))
    return found


def _machine_differs(first: RunData, second: RunData) -> bool:
    """Whether float ran at another speed although all that decides it was the same: the machine was in another state."""
    a, b = first.performance, second.performance
    if a is None or b is None or not same_float(a.conditions, b.conditions):
        return False
    of_float = paired_speed(first, second, "float")
    return of_float is not None and Change(*of_float).differs


def _separate(first: Figure, second: Figure) -> Change | Withheld:
    """The ratio of two figures by their own intervals, if they have any."""
    a, b = first.estimate, second.estimate
    if min(a.value, b.value) <= 0:
        return Withheld(marked("one of them is 0"))
    if first.exact or second.exact or min(a.low, b.low) <= 0:
        return Change(exact(b.value / a.value), marked("no interval"))
    spread = ((log(a.high / a.low) ** 2 + log(b.high / b.low) ** 2) ** 0.5) / 2
    ratio, coverage = b.value / a.value, min(a.coverage, b.coverage)
    return Change(
        Estimate(ratio, ratio * exp(-spread), ratio * exp(spread), coverage), marked("two separate intervals")
    )


def _paired_precision(name: str, first: RunData, second: RunData) -> Change | None:
    """A precision figure over the sequences that both runs read; None where they read other ones."""
    a, b, of_sequences = (
        text_of(name, first),
        text_of(name, second),
        _OF_SEQUENCES.get(name.split("[", maxsplit=1)[0]),
    )
    if of_sequences is None or a is None or b is None or a[:2] != b[:2]:
        return None
    rows, others = np.array(a[2]), np.array(b[2])
    if len(rows) < 2 or rows.shape != others.shape:
        return None
    before, after = (of_sequences(found) for found in (rows, others))
    if name.startswith("perplexity"):  # losses: their difference is the logarithm of the ratio
        ratio = mean_over_sequences((after - before)[:, None]).map(exp)
    else:  # by its logarithm: no end of the interval of a ratio lies below 0
        with np.errstate(divide="ignore", invalid="ignore"):
            pairs = np.stack([before, after], axis=1)
            ratio = bootstrap(pairs, lambda mean: np.log(mean[..., 1] / mean[..., 0])).map(exp)
        if not np.isfinite([ratio.value, ratio.low, ratio.high]).all():
            return None
    return Change(ratio, Message("{count} sequences in pairs", count=len(rows)))

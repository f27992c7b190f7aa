"""The figures of a run by name, and how much one of them changed between two runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import geometric_mean

import numpy as np

from telechat_kit.comparison.comparable import impossible, text_of, why_not
from telechat_kit.comparison.run_data import RunData
from telechat_kit.comparison.verdict import kind_name
from telechat_kit.errors import DataError
from telechat_kit.performance.measurement import CaseResult, Sample
from telechat_kit.precision.positions import FIGURES
from telechat_kit.statistics import Estimate, bootstrap

Case = tuple[str, int, int]
DRAWS = 4000

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
    """A figure of one run over that of another, and on what its interval rests."""

    ratio: Estimate
    basis: str

    @property
    def seen(self) -> bool:
        """Whether a 95 % interval leaves out "no change"; three repeats of one case give none."""
        return self.ratio.coverage >= 0.95 and not self.ratio.low <= 1 <= self.ratio.high


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


def _precision(run: RunData) -> dict[str, Figure]:
    if run.precision is None:
        return {}
    found, answers = run.precision.divergence, run.precision.answers
    rows = {
        "perplexity_float": Figure("perplexity, float", "", found.perplexity_float),
        "perplexity_w8a8": Figure("perplexity, W8A8", "", found.perplexity_w8a8),
        "perplexity_ratio": Figure("perplexity, W8A8 / float", "", found.perplexity_ratio),
        "kl_mean": Figure("KL(float || W8A8), mean", "nats per token", found.kl_mean),
        "top1_agreement": Figure("same most likely token", "share", found.top1_agreement),
    }
    for loss in run.precision.kinds:
        name, group = kind_name(loss.kind), loss.figures
        rows |= {
            f"perplexity_ratio[{loss.kind}]": Figure(
                f"perplexity, W8A8 / float, {name}", "", group.perplexity_ratio
            ),
            f"kl_mean[{loss.kind}]": Figure(f"mean KL, {name}", "nats per token", group.kl_mean),
            f"top1_agreement[{loss.kind}]": Figure(
                f"same most likely token, {name}", "share", group.top1_agreement
            ),
        }
    if answers:
        mean = sum(answer.similarity for answer in answers) / len(answers)
        rows["answer_similarity"] = Figure("answers, W8A8 like float", "share", exact(mean))
        same = sum(answer.float_differs is None and answer.w8a8_differs is None for answer in answers)
        rows["equal_answers"] = Figure("answers equal to the last token", "share", exact(same / len(answers)))
    return rows


def _sizes(run: RunData) -> dict[str, Figure]:
    rows = {}
    if run.quantize is not None:
        used = run.quantize
        rows["float_bytes"] = Figure("weight files, float", "bytes", exact(used.float_bytes))
        rows["w8a8_bytes"] = Figure("weight files, W8A8", "bytes", exact(used.w8a8_bytes))
        rows["quantize_seconds"] = Figure("time to quantize", "s", exact(used.seconds), timed=True)
    if run.performance is not None:
        peak = exact(run.performance.peak_memory_bytes)
        rows["peak_memory_bytes"] = Figure("peak memory, both models", "bytes", peak, timed=True)
    return rows


def _speeds(run: RunData) -> dict[str, Figure]:
    """Geometric means over the cases of batch 1, then every one of them by itself."""
    if run.performance is None:
        return {}
    cases, samples = (
        {(c.precision, c.input_tokens, c.output_tokens): c for c in run.performance.cases if c.batch == 1},
        by_case(run),
    )
    if slow := [case for case in cases.values() if not case.tokens_per_second.value > 0]:
        raise DataError(
            f"{run.name}: performance.json holds a speed of {slow[0].tokens_per_second.value:g} tokens/s, which "
            "nothing measures. Run 04_performance again."
        )
    rows = {}
    for precision, suffix, label in (("w8a8", "", "W8A8"), ("float", "_float", "float")):
        own = {case: result for case, result in cases.items() if case[0] == precision}
        if own:
            name = f"tokens_per_second{suffix}"
            mean = mean_speed(own, {case: samples.get(case, []) for case in own})
            rows[name] = Figure(f"{label}, geometric mean of the cases", "tokens/s", mean, timed=True)
            rows |= {f"{name}[{i}/{o}]": _case(label, result) for (_, i, o), result in own.items()}
    return rows


def _case(label: str, result: CaseResult) -> Figure:
    case = f"{label}, {result.input_tokens} / {result.output_tokens} tokens"
    return Figure(case, "tokens/s", result.tokens_per_second, timed=True)


def by_case(run: RunData) -> dict[Case, list[Sample]]:
    """The raw samples of every case of batch 1, at the threads of the run."""
    groups: dict[Case, list[Sample]] = {}
    for sample in (sample for sample in run.samples if sample.batch == 1 and sample.threads is None):
        groups.setdefault((sample.precision, sample.input_tokens, sample.output_tokens), []).append(sample)
    return groups


def mean_speed(cases: Mapping[Case, CaseResult], samples: Mapping[Case, Sequence[Sample]]) -> Estimate:
    """Geometric mean of the medians; its interval from repeats drawn with replacement, where raw samples are there."""
    value = geometric_mean(result.tokens_per_second.value for result in cases.values())
    if any(len(samples[case]) < 2 for case in cases):
        return exact(value)
    drawn = np.exp(np.mean([_log_medians(samples[case], seed) for seed, case in enumerate(cases)], axis=0))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), 0.95)


def _log_medians(samples: Sequence[Sample], seed: int) -> np.ndarray:
    """Logarithm of the median speed of `DRAWS` draws of the repeats `[DRAWS]`."""
    speeds = np.array([sample.tokens_per_second for sample in samples])
    chosen = np.random.default_rng(seed).integers(0, len(speeds), size=(DRAWS, len(speeds)))
    return np.asarray(np.log(np.median(speeds[chosen], axis=1)))


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
    if runs is not None and name in ("tokens_per_second", "tokens_per_second_float"):
        paired = _paired_speed(*runs, precision="float" if name.endswith("float") else "w8a8")
        return paired or Withheld("no raw samples of common cases")
    if first.estimate == second.estimate:
        return Change(exact(1.0), "identical")
    paired = _paired_precision(name, *runs) if runs is not None else None
    return paired or _separate(first, second)


def _separate(first: Figure, second: Figure) -> Change | Withheld:
    """The ratio of two figures by their own intervals, if they have any."""
    a, b = first.estimate, second.estimate
    if min(a.value, b.value) <= 0:
        return Withheld("one of them is 0")
    if first.exact or second.exact or min(a.low, b.low) <= 0:
        return Change(exact(b.value / a.value), "no interval")
    spread = ((log(a.high / a.low) ** 2 + log(b.high / b.low) ** 2) ** 0.5) / 2
    ratio, coverage = b.value / a.value, min(a.coverage, b.coverage)
    return Change(
        Estimate(ratio, ratio * exp(-spread), ratio * exp(spread), coverage), "two separate intervals"
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
        ratio = bootstrap((after - before)[:, None], lambda mean: mean[..., 0]).map(exp)
    else:  # by its logarithm: no end of the interval of a ratio lies below 0
        with np.errstate(divide="ignore", invalid="ignore"):
            pairs = np.stack([before, after], axis=1)
            ratio = bootstrap(pairs, lambda mean: np.log(mean[..., 1] / mean[..., 0])).map(exp)
        if not np.isfinite([ratio.value, ratio.low, ratio.high]).all():
            return None
    return Change(ratio, f"{len(rows)} sequences in pairs")


def _paired_speed(first: RunData, second: RunData, precision: str) -> Change | None:
    """Geometric mean over the cases that both runs timed, repeats drawn anew in both."""
    a, b = by_case(first), by_case(second)
    cases = [case for case in a if case[0] == precision and case in b]
    if not cases or any(min(len(a[case]), len(b[case])) < 2 for case in cases):
        return None
    logs = [_log_medians(b[case], 2 * i + 1) - _log_medians(a[case], 2 * i) for i, case in enumerate(cases)]
    medians = [log(_median_speed(b[case]) / _median_speed(a[case])) for case in cases]
    low, high = np.exp(np.quantile(np.mean(logs, axis=0), [0.025, 0.975]))
    ratio = Estimate(exp(sum(medians) / len(medians)), float(low), float(high), 0.95)
    measured = len({case for case in (*a, *b) if case[0] == precision})
    of = f" of {measured}" if measured > len(cases) else ""
    return Change(ratio, f"{len(cases)}{of} cases in pairs, repeats drawn anew")


def _median_speed(samples: Sequence[Sample]) -> float:
    return float(np.median([sample.tokens_per_second for sample in samples]))

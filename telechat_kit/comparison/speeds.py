"""Speeds over many cases: their geometric means and ratios, with intervals from the raw repeats.

Repeats are drawn anew with replacement, in every case by itself.
"""

from collections.abc import Mapping, Sequence
from math import exp, log
from statistics import geometric_mean

import numpy as np

from telechat_kit.comparison.run_data import RunData
from telechat_kit.performance.measurement import CaseResult, Sample
from telechat_kit.statistics import Estimate

#: Precision, tokens read, tokens generated
Case = tuple[str, int, int]
Samples = Mapping[Case, Sequence[Sample]]
DRAWS = 4000
W8A8, FLOAT = "w8a8", "float"


def by_case(run: RunData) -> dict[Case, list[Sample]]:
    """The raw samples of every case of batch 1, at the threads of the run."""
    groups: dict[Case, list[Sample]] = {}
    for sample in (sample for sample in run.samples if sample.batch == 1 and sample.threads is None):
        groups.setdefault((sample.precision, sample.input_tokens, sample.output_tokens), []).append(sample)
    return groups


def mean_speed(cases: Mapping[Case, CaseResult], samples: Samples) -> Estimate:
    """Geometric mean of the medians."""
    return _with_draws(
        geometric_mean(result.tokens_per_second.value for result in cases.values()),
        [(1, samples, list(cases))],
    )


def over_float(cases: Mapping[Case, CaseResult], samples: Samples) -> Estimate | None:
    """Geometric mean of W8A8's speeds over float's. Both were timed in one run: its machine's state cancels out."""
    ours, floats = _sides([cases])
    if not ours:
        return None
    ratios = [
        cases[a].tokens_per_second.value / cases[b].tokens_per_second.value
        for a, b in zip(ours, floats, strict=True)
    ]
    return _with_draws(geometric_mean(ratios), [(1, samples, ours), (-1, samples, floats)])


def paired_speed(first: RunData, second: RunData, precision: str) -> tuple[Estimate, str] | None:
    """The second run's speed over the first's in the cases that both timed, and how many those are."""
    a, b = by_case(first), by_case(second)
    cases = [case for case in a if case[0] == precision and case in b]
    measured = len({case for case in (*a, *b) if case[0] == precision})
    return _paired([(1, b, cases), (-1, a, cases)], measured)


def paired_over_float(first: RunData, second: RunData) -> tuple[Estimate, str] | None:
    """The second run's W8A8 over float, over the first's, in the cases that both timed in both precisions."""
    a, b = by_case(first), by_case(second)
    ours, floats = _sides([a, b])
    measured = len({case for case in (*a, *b) if case[0] == W8A8})
    return _paired([(1, b, ours), (-1, b, floats), (-1, a, ours), (1, a, floats)], measured)


def _sides(runs: Sequence[Mapping[Case, object]]) -> tuple[list[Case], list[Case]]:
    """The cases of W8A8 and those of float that stand beside them, where every one of `runs` has both."""
    pairs = [case[1:] for case in runs[0] if case[0] == W8A8]
    common = [pair for pair in pairs if all((p, *pair) in run for p in (W8A8, FLOAT) for run in runs)]
    return [(W8A8, *pair) for pair in common], [(FLOAT, *pair) for pair in common]


#: A factor of a ratio: its exponent, 1 or -1, and the cases of a run whose geometric mean it is
_Factor = tuple[int, Samples, list[Case]]


def _paired(factors: Sequence[_Factor], measured: int) -> tuple[Estimate, str] | None:
    cases = len(factors[0][2])
    if not cases or not _repeated(factors):
        return None
    value = sum(
        sign * log(_median_speed(samples[case])) for sign, samples, cases in factors for case in cases
    )
    of = f" of {measured}" if measured > cases else ""
    return _with_draws(exp(value / cases), factors), f"{cases}{of} cases in pairs, repeats drawn anew"


def _with_draws(value: float, factors: Sequence[_Factor]) -> Estimate:
    """`value` with the interval of the product of the factors; without one where a case was timed once."""
    if not _repeated(factors):
        return Estimate(value, value, value, 0.0)
    logs = np.zeros(DRAWS)
    for number, (sign, samples, cases) in enumerate(factors):
        drawn = [_log_medians(samples[case], (number, i)) for i, case in enumerate(cases)]
        logs += sign * np.mean(drawn, axis=0)
    low, high = np.exp(np.quantile(logs, [0.025, 0.975]))
    return Estimate(value, float(low), float(high), 0.95)


def _repeated(factors: Sequence[_Factor]) -> bool:
    return all(len(samples.get(case, ())) > 1 for _, samples, cases in factors for case in cases)


def _log_medians(samples: Sequence[Sample], seed: tuple[int, int]) -> np.ndarray:
    """Logarithm of the median speed of `DRAWS` draws of the repeats `[DRAWS]`."""
    speeds = np.array([sample.tokens_per_second for sample in samples])
    chosen = np.random.default_rng(seed).integers(0, len(speeds), size=(DRAWS, len(speeds)))
    return np.asarray(np.log(np.median(speeds[chosen], axis=1)))


def _median_speed(samples: Sequence[Sample]) -> float:
    return float(np.median([sample.tokens_per_second for sample in samples]))

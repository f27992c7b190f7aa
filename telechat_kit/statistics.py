"""Estimates with their intervals: medians of repeats, figures over sequences, shares of questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, lgamma, sqrt

import numpy as np

from telechat_kit.errors import DataError

LEVEL = 0.95
Z = 1.959963984540054  # the normal law's quantile at 97.5 %
#: A quantile needs this many positions beyond it to get an interval
MIN_BEYOND = 50
#: With fewer sequences than this, intervals are Student's
FEW = 8


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval and the probability that the interval covers the truth; 0: there is no interval."""

    value: float
    low: float
    high: float
    coverage: float

    def __str__(self) -> str:
        return f"{self:.4g}"

    def __format__(self, spec: str) -> str:
        """The figure and its interval, each number as `spec` says; `str` without one."""
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]" if spec else str(self)

    def map(self, increasing: Callable[[float], float]) -> "Estimate":
        """The estimate of an increasing function of the figure."""
        return Estimate(
            float(increasing(self.value)),
            float(increasing(self.low)),
            float(increasing(self.high)),
            self.coverage,
        )

    def clip(self, low: float = -np.inf, high: float = np.inf) -> "Estimate":
        """The same figure, its interval cut to what the figure can be."""
        return Estimate(self.value, max(self.low, low), min(self.high, high), self.coverage)


def median(samples: Sequence[float]) -> Estimate:
    """Median and the narrowest symmetric pair of order statistics that covers it with at least 95 %.

    Distribution-free (binomial). Under six samples no pair reaches 95 %: the interval is then the range, and
    `coverage` says what it covers (75 % for three samples).
    """
    if not samples:
        raise DataError("no samples, so no median. Ask for at least one repeat.")
    ordered, n = sorted(samples), len(samples)
    coverage = [1 - 2 * sum(comb(n, i) for i in range(skip + 1)) / 2**n for skip in range((n + 1) // 2)]
    skip = max((skip for skip, share in enumerate(coverage) if share >= LEVEL), default=0)
    return Estimate(float(np.median(ordered)), ordered[skip], ordered[n - 1 - skip], coverage[skip])


def bootstrap(
    rows: np.ndarray, figure: Callable[[np.ndarray], np.ndarray], draws: int = 2000, seed: int = 0
) -> Estimate:
    """95 % interval of `figure` over sequences drawn with replacement (block bootstrap, studentized).

    With the 16 sequences of an evaluation the percentile interval covers too little, more so for skewed rows
    such as divergences. Here each draw is divided by its own jackknife error (bootstrap-t: Efron and
    Tibshirani 1993, chapter 12). Where a single row stands out that alone gives too little on the
    far side, so the interval holds the percentile interval as well. Both models' figures of a sequence stand in
    one row, so they are drawn together. Under eight sequences draws tell little: Student's interval with the
    jackknife error then.

    Args:
        rows: `[sequences, columns]`, means over each sequence.
        figure: from means over sequences `[..., columns]` to the figure `[...]`.

    Returns:
        The figure of all rows; of a single row without an interval.
    """
    value, error = figure(rows.mean(axis=0)), _jackknife_error(rows[None], figure)[0]
    if len(rows) < 2 or not error > 0:
        return Estimate(float(value), float(value), float(value), LEVEL if len(rows) > 1 else 0.0)
    if len(rows) < FEW:
        half = student_quantile(len(rows) - 1) * error
        return Estimate(float(value), float(value - half), float(value + half), LEVEL)
    drawn = rows[_draws(len(rows), draws, seed)]
    figures, errors = figure(drawn.mean(axis=1)), _jackknife_error(drawn, figure)
    usable = errors > 1e-9 * error  # a draw of one row only has no error of its own
    levels = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    below, above = np.quantile((figures - value)[usable] / errors[usable], levels)
    low, high = np.quantile(figures, levels)
    return Estimate(
        float(value), min(float(value - above * error), low), max(float(value - below * error), high), LEVEL
    )


def mean_over_sequences(rows: np.ndarray) -> Estimate:
    """Mean of `rows [sequences, 1]` with the interval of `bootstrap`."""
    return bootstrap(rows, lambda mean: mean[..., 0])


def _jackknife_error(samples: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Standard error `[draws]` of `figure` for each sample of rows `[draws, n, columns]`."""
    n = samples.shape[1]
    if n < 2:
        return np.zeros(len(samples))
    without = figure((samples.sum(axis=1, keepdims=True) - samples) / (n - 1))
    return np.sqrt((n - 1) * without.var(axis=1))


def quantile(groups: Sequence[np.ndarray], share: float, *, log: bool = False, draws: int = 1000) -> Estimate:
    """The quantile `share` (0 to 1) of all positions, with the interval over their sequences `groups`.

    Student's interval with the bootstrap error over whole sequences; on the logarithm where values are positive
    and spread over decades. A quantile with fewer than 50 positions beyond it gets no interval: no method covers
    it as often as it says.
    """
    values = np.concatenate(groups)
    found, beyond = float(np.quantile(values, share)), min(share, 1 - share) * len(values)
    if len(groups) < 2 or beyond < MIN_BEYOND:
        return Estimate(found, found, found, 0.0)
    scale: Callable[[float], float] = _log if log else float
    error = np.std([scale(figure) for figure in _drawn_quantiles(groups, share, draws)])
    half = student_quantile(len(groups) - 1) * float(error) * sqrt(len(groups) / (len(groups) - 1))
    interval = Estimate(scale(found), scale(found) - half, scale(found) + half, LEVEL)
    return interval.map(np.exp) if log else interval


def _drawn_quantiles(groups: Sequence[np.ndarray], share: float, draws: int) -> list[float]:
    """The quantile in each draw of whole groups: positions are sorted once, a draw only weighs them."""
    values, sizes = np.concatenate(groups), [len(group) for group in groups]
    order = np.argsort(values)
    owner, ordered = np.repeat(np.arange(len(groups)), sizes)[order], values[order]
    figures = []
    for chosen in _draws(len(groups), draws, seed=0):
        weights = np.bincount(chosen, minlength=len(groups))[owner].cumsum()
        figures.append(float(ordered[np.searchsorted(weights, share * weights[-1])]))
    return figures


def _log(value: float) -> float:
    return float(np.log(max(value, 1e-30)))


def share(successes: int, count: int) -> Estimate:
    """A share of questions with Wilson's score interval (1927)."""
    p, spread = successes / count, Z * Z / count
    middle = (p + spread / 2) / (1 + spread)
    half = Z * sqrt(p * (1 - p) / count + spread / (4 * count)) / (1 + spread)
    return Estimate(p, max(0.0, middle - half), min(1.0, middle + half), LEVEL)


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Estimate:
    """Share of `second` minus share of `first` on the same questions, with Tango's score interval (1998).

    It stays honest where few answers or none differ, where a bootstrap would give an interval of no width.
    """
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    n, value = len(first), (gained - lost) / len(first)
    low = _bisect(lambda d: _tango(gained, lost, n, d) - Z, -1.0, value)
    high = _bisect(lambda d: _tango(gained, lost, n, d) + Z, value, 1.0)
    return Estimate(value, low, high, LEVEL)


def _tango(gained: int, lost: int, n: int, difference: float) -> float:
    """Score statistic of the paired `difference`: falls from above Z at -1 to below -Z at 1."""
    b = (2 * n - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    nuisance = (sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * nuisance + difference * (1 - difference))
    distance = gained - lost - n * difference
    return distance / sqrt(variance) if variance > 1e-12 else float(np.copysign(1e9, distance))


def _bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _draws(count: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, size=(draws, count))


@cache
def student_quantile(degrees: int) -> float:
    """Quantile of Student's law at 97.5 %, to four digits, from its density summed in steps."""
    x = (np.arange(1_000_000) + 0.5) * 2e-5  # to 20: beyond the quantile of every law
    constant = lgamma((degrees + 1) / 2) - lgamma(degrees / 2) - np.log(degrees * np.pi) / 2
    density = np.exp(constant - (degrees + 1) / 2 * np.log1p(x * x / degrees))
    return float(x[np.searchsorted(density.cumsum() * 2e-5, LEVEL / 2)])

"""Estimates with their intervals: medians of repeats, means over sequences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from telechat_kit.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval and the probability that the interval covers the truth."""

    value: float
    low: float
    high: float
    coverage: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def median(samples: Sequence[float]) -> Estimate:
    """Median and the narrowest symmetric pair of order statistics that covers it with at least 95 %.

    Distribution-free (binomial). Under six samples no pair reaches 95 %: the interval is then the range, and
    `coverage` says what it covers (75 % for three samples).
    """
    if not samples:
        raise DataError("no samples, so no median. Ask for at least one repeat.")
    ordered, n = sorted(samples), len(samples)
    coverage = [1 - 2 * sum(comb(n, i) for i in range(skip + 1)) / 2**n for skip in range((n + 1) // 2)]
    skip = max((skip for skip, share in enumerate(coverage) if share >= 0.95), default=0)
    return Estimate(float(np.median(ordered)), ordered[skip], ordered[n - 1 - skip], coverage[skip])


def bootstrap(
    rows: np.ndarray, figure: Callable[[np.ndarray], np.ndarray], draws: int = 4000, seed: int = 0
) -> Estimate:
    """95 % percentile interval of `figure` over sequences drawn with replacement (block bootstrap).

    Args:
        rows: `[sequences, columns]`, sums over each sequence.
        figure: from means over sequences `[..., columns]` to the figure `[...]`.
    """
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, len(rows), size=(draws, len(rows)))
    low, high = np.quantile(figure(rows[chosen].mean(axis=1)), [0.025, 0.975])
    return Estimate(float(figure(rows.mean(axis=0))), float(low), float(high), 0.95)

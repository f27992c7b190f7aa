"""Intervals against tables, order statistics counted by hand, and simulation."""

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from telechat_kit.errors import DataError
from telechat_kit.statistics import (
    Estimate,
    bootstrap,
    median,
    paired_difference,
    quantile,
    share,
    student_quantile,
)


# Ranks and coverages as in tables of the sign test (Conover 1999, table A3), 95 % or the next above
@pytest.mark.parametrize(
    ("count", "low_rank", "high_rank", "coverage"),
    [
        (1, 1, 1, 0.0),
        (2, 1, 2, 0.5),
        (3, 1, 3, 0.75),
        (5, 1, 5, 0.9375),
        (6, 1, 6, 0.96875),
        (8, 1, 8, 0.9921875),
        (9, 2, 8, 0.9609375),
        (10, 2, 9, 0.978515625),
        (20, 6, 15, 0.9586),
        (30, 10, 21, 0.9572),
    ],
)
def test_the_median_lies_between_the_order_statistics_of_the_sign_test(
    count: int, low_rank: int, high_rank: int, coverage: float
) -> None:
    samples = [float(rank) for rank in range(1, count + 1)]
    np.random.default_rng(count).shuffle(samples)
    estimate = median(samples)
    assert (estimate.low, estimate.high) == (low_rank, high_rank)
    assert estimate.coverage == pytest.approx(coverage, abs=5e-5)
    assert estimate.value == (count + 1) / 2


@pytest.mark.parametrize("count", [3, 6, 9, 12])
def test_the_coverage_is_the_share_of_all_sign_patterns(count: int) -> None:
    """The median is covered unless too many samples fall on one side: every pattern of sides is counted."""
    estimate = median([float(rank) for rank in range(1, count + 1)])
    covered = sum(
        estimate.low <= sum(below) and sum(below) < estimate.high for below in product((0, 1), repeat=count)
    )
    assert estimate.coverage == pytest.approx(float(Fraction(covered, 2**count)), abs=1e-12)


@pytest.mark.parametrize("count", [3, 7, 15])
def test_the_coverage_holds_in_simulation(count: int) -> None:
    generator = np.random.default_rng(count)
    truth = np.log(2.0)  # median of the exponential distribution, which is far from symmetric
    estimates = [median(row.tolist()) for row in generator.exponential(size=(40_000, count))]
    share = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
    assert share == pytest.approx(estimates[0].coverage, abs=0.009)  # 4 standard errors at worst


def test_the_order_of_the_samples_does_not_matter() -> None:
    assert median([3.0, 1.0, 2.0]) == median([1.0, 2.0, 3.0]) == Estimate(2.0, 1.0, 3.0, 0.75)


def test_an_even_number_of_samples_has_the_mean_of_the_middle_ones() -> None:
    assert median([4.0, 1.0, 3.0, 100.0]).value == 3.5


def test_no_samples_have_no_median() -> None:
    with pytest.raises(DataError, match="no samples"):
        median([])


def test_the_bootstrap_figure_is_that_of_all_rows() -> None:
    rows = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 50.0]])
    assert bootstrap(rows, lambda mean: mean[..., 1] / mean[..., 0]).value == pytest.approx(90 / 12)


def test_the_bootstrap_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    rows = np.random.default_rng(5).normal(2.0, 3.0, size=(400, 1))
    estimate = bootstrap(rows, lambda mean: mean[..., 0])
    half_width = 1.96 * rows.std() / 20
    assert estimate.value == pytest.approx(rows.mean())
    assert estimate.low == pytest.approx(rows.mean() - half_width, abs=0.03)
    assert estimate.high == pytest.approx(rows.mean() + half_width, abs=0.03)
    assert estimate.coverage == 0.95


def positive(generator: np.random.Generator) -> np.ndarray:
    """Mean divergences of 16 sequences: positive and skewed."""
    return generator.lognormal(0.0, 0.3, size=(16, 1))


def losses(generator: np.random.Generator) -> np.ndarray:
    """Mean losses of two models over 16 sequences: far apart between sequences, near each other within one."""
    first = generator.normal(2.8, 0.35, size=16)
    return np.stack([first, first + generator.gamma(2, 0.01, size=16)], axis=1)


def shares(generator: np.random.Generator) -> np.ndarray:
    """Shares of 511 positions in 16 sequences."""
    return (generator.binomial(511, generator.beta(90, 10, size=16)) / 511)[:, None]


@pytest.mark.parametrize(
    ("sample", "figure", "truth"),
    [
        (positive, lambda mean: mean[..., 0], np.exp(0.045)),
        (losses, lambda mean: mean[..., 0], 2.8),
        (losses, lambda mean: mean[..., 1] - mean[..., 0], 0.02),
        (shares, lambda mean: mean[..., 0], 0.9),
    ],
)
def test_the_bootstrap_interval_covers_the_truth_in_93_to_97_of_100_evaluations(
    sample: Callable[[np.random.Generator], np.ndarray],
    figure: Callable[[np.ndarray], np.ndarray],
    truth: float,
) -> None:
    """500 evaluations of 16 sequences; the plain percentile interval covers 90 to 92 of 100."""
    generator = np.random.default_rng(11)
    estimates = [bootstrap(sample(generator), figure, draws=400, seed=i) for i in range(500)]
    assert 0.93 <= np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]) <= 0.97


def grouped(generator: np.random.Generator) -> list[np.ndarray]:
    """Divergences of 16 sequences of 511 positions; the scale differs from sequence to sequence."""
    return [generator.exponential(generator.lognormal(0, 0.2), size=511) ** 1.5 for _ in range(16)]


def test_the_interval_of_a_quantile_covers_the_truth() -> None:
    generator = np.random.default_rng(3)
    truth = np.quantile(np.concatenate([np.concatenate(grouped(generator)) for _ in range(500)]), 0.9)
    estimates = [quantile(grouped(generator), 0.9, log=True, draws=100) for _ in range(200)]
    assert 0.91 <= np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]) <= 0.99


def test_a_quantile_is_that_of_all_positions_and_known_only_with_enough_of_them_beyond() -> None:
    groups = grouped(np.random.default_rng(0))
    values = np.concatenate(groups)
    known, unknown = quantile(groups, 0.99), quantile(groups, 0.999)
    assert known.value == np.quantile(values, 0.99)
    assert known.low < known.value < known.high
    assert known.coverage == 0.95
    assert (unknown.low, unknown.high, unknown.coverage) == (unknown.value, unknown.value, 0.0)


def test_one_sequence_gives_no_interval() -> None:
    assert bootstrap(np.array([[3.0]]), lambda mean: mean[..., 0]) == Estimate(3.0, 3.0, 3.0, 0.0)
    assert quantile([np.arange(1000.0)], 0.5).coverage == 0.0


def test_a_single_row_that_stands_out_makes_the_interval_wide_on_its_side() -> None:
    found = bootstrap(np.array([[0.0]] * 7 + [[1.0]]), lambda mean: mean[..., 0])
    assert found.low <= 0.0 < found.value < 2 * found.value < found.high


# table I of Wilson's interval in Newcombe 1998 (two-sided 95 %)
@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_share_has_wilsons_interval(successes: int, count: int, low: float, high: float) -> None:
    estimate = share(successes, count)
    assert estimate.value == successes / count
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


def test_the_paired_difference_covers_the_truth() -> None:
    """Both models fail or succeed together on most questions: that is what pairing is for."""
    generator, hits, widths = np.random.default_rng(5), 0, []
    for _ in range(500):
        first = generator.random(200) < 0.4
        second = np.where(generator.random(200) < 0.1, generator.random(200) < 0.2, first)
        estimate = paired_difference(first.tolist(), second.tolist())
        hits += estimate.low <= -0.02 <= estimate.high
        widths.append(estimate.high - estimate.low)
    assert 0.93 <= hits / 500 <= 0.99
    assert np.median(widths) < 0.12  # of two samples of their own it would be 0.19


def test_equal_answers_do_not_prove_equal_models() -> None:
    """With no answer changed, the score interval is +- z^2 / (n + z^2) (Tango 1998)."""
    estimate = paired_difference([True, False] * 20, [True, False] * 20)
    limit = 1.96**2 / (40 + 1.96**2)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((-limit, 0.0, limit), abs=1e-4)
    assert paired_difference([True] * 3, [False] * 3).value == -1.0


@pytest.mark.parametrize(("degrees", "quantile_97_5"), [(1, 12.706), (3, 3.182), (15, 2.131), (120, 1.980)])
def test_students_law_is_that_of_the_tables(degrees: int, quantile_97_5: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile_97_5, abs=6e-4)


def test_the_bootstrap_draws_whole_rows() -> None:
    """Columns that rise together give a constant ratio: no draw of rows can change it."""
    rows = np.random.default_rng(0).uniform(1, 2, size=(20, 1)) * np.array([[1.0, 3.0]])
    estimate = bootstrap(rows, lambda mean: mean[..., 1] / mean[..., 0])
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((3.0, 3.0, 3.0))


def test_the_bootstrap_repeats_with_its_seed() -> None:
    rows = np.random.default_rng(1).normal(size=(30, 1))

    def interval(seed: int) -> Estimate:
        return bootstrap(rows, lambda mean: mean[..., 0], seed=seed)

    assert interval(3) == interval(3)
    assert interval(3) != interval(4)


def test_an_estimate_prints_its_interval() -> None:
    assert str(Estimate(12.3456, 11.0, 14.25, 0.95)) == "12.35 [11, 14.25]"
    assert f"{Estimate(12.3456, 11.0, 14.25, 0.95)}" == "12.35 [11, 14.25]"
    assert f"{Estimate(12.3456, 11.0, 14.25, 0.95):.1f}" == "12.3 [11.0, 14.2]"

"""Intervals against tables, order statistics counted by hand, and simulation."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from telechat_kit.errors import DataError
from telechat_kit.statistics import Estimate, bootstrap, median


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
    assert estimate.low == pytest.approx(rows.mean() - half_width, abs=0.02)
    assert estimate.high == pytest.approx(rows.mean() + half_width, abs=0.02)
    assert estimate.coverage == 0.95


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    samples = generator.normal(1.0, 0.2, size=(300, 40, 1))
    truth = np.e
    estimates = [bootstrap(rows, lambda mean: np.exp(mean[..., 0]), draws=400) for rows in samples]
    share = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
    assert 0.89 <= share <= 0.98


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

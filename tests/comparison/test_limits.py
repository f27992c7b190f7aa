"""May this be shipped: a light for each limit, from the interval of the figure; what was not measured is no pass."""

from dataclasses import replace
from pathlib import Path

import pytest

from telechat_kit.comparison.limits import FAIL, LOOK, PASS, answer, judge_limits, worst_state
from telechat_kit.comparison.rules import DEFAULT_LIMITS, MOST_LIMITS, parse_limits
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.performance.timed_samples import CaseResult
from telechat_kit.precision import KindLoss
from telechat_kit.statistics import Estimate


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> RunData:
    return read_run_data(tiny_run)


def with_kl(run: RunData, low: float, value: float, high: float, coverage: float = 0.95) -> RunData:
    """The run with that mean KL on Chinese, and a far smaller one on every other text."""
    assert run.precision is not None
    small = Estimate(1e-6, 1e-7, 2e-6, 0.95)

    def kind(loss: KindLoss) -> KindLoss:
        own = Estimate(value, low, high, coverage) if loss.kind == "zh" else small
        return replace(loss, figures=replace(loss.figures, kl_mean=own))

    record = run.precision
    divergence = replace(record.divergence, kl_mean=small)
    return replace(
        run, precision=replace(record, divergence=divergence, kinds=[kind(loss) for loss in record.kinds])
    )


@pytest.mark.parametrize(
    ("low", "value", "high", "state"),
    [
        (0.01, 0.02, 0.03, PASS),
        (0.02, 0.025, 0.04, LOOK),
        (0.02, 0.04, 0.05, LOOK),
        (0.031, 0.04, 0.05, FAIL),
    ],
)
def test_the_interval_decides_and_one_that_holds_the_limit_is_to_be_looked_at(
    run: RunData, low: float, value: float, high: float, state: str
) -> None:
    (light,) = judge_limits(with_kl(run, low, value, high), ["kl_mean <= 0.03"])
    assert (light.state, light.where) == (state, "Chinese")


def test_a_limit_counts_for_every_text_or_for_the_one_that_is_named(run: RunData) -> None:
    bad = with_kl(run, 0.4, 0.5, 0.6)
    whole, chinese, code = judge_limits(bad, ["kl_mean <= 0.03", "kl_mean[zh] <= 1", "kl_mean[code] <= 0.03"])
    assert [light.state for light in (whole, chinese, code)] == [FAIL, PASS, PASS]
    assert whole.asked == "mean KL from float, nats per token, on every text: <= 0.03"
    assert chinese.asked.endswith(", on Chinese: <= 1")
    (gone,) = judge_limits(bad, ["kl_mean[poems] <= 1"])
    assert gone.state == LOOK
    assert "no such text was read; there are" in gone.where


def test_no_interval_and_no_figure_are_no_pass(run: RunData) -> None:
    (single,) = judge_limits(with_kl(run, 0.01, 0.01, 0.01, coverage=0.0), ["kl_mean <= 0.03"])
    assert single.state == LOOK
    bare = replace(run, performance=None, quantize=None)
    speed, size = judge_limits(bare, ["tokens_per_second >= 1x float", "w8a8_bytes <= 0.9x float"])
    assert (speed.state, size.state) == (LOOK, LOOK)
    with pytest.raises(DataError, match=r"has no precision\.json"):
        judge_limits(replace(run, precision=None), DEFAULT_LIMITS)


def test_a_figure_that_cannot_be_true_fails(run: RunData) -> None:
    (light,) = judge_limits(with_kl(run, -9, -5, 9), ["kl_mean[zh] <= 0.03"])
    assert light.state == FAIL
    assert "outside 0 to inf" in light.where


def with_speed(run: RunData, w8a8: Estimate, unstable: bool = False) -> RunData:
    assert run.performance is not None

    def case(one: CaseResult) -> CaseResult:
        speed = w8a8 if one.precision == "w8a8" else Estimate(10, 9.9, 10.1, 0.75)
        return replace(one, tokens_per_second=speed, unstable=unstable)

    return replace(run, performance=replace(run.performance, cases=[case(c) for c in run.performance.cases]))


def test_speed_against_float(run: RunData) -> None:
    limits = ["tokens_per_second >= 1.5x float"]
    states = [
        judge_limits(with_speed(run, Estimate(value, value - 1, value + 1, 0.75)), limits)[0].state
        for value in (20.0, 15.2, 12.0)
    ]
    assert states == [PASS, LOOK, FAIL]
    (varied,) = judge_limits(with_speed(run, Estimate(20, 19, 21, 0.75), unstable=True), limits)
    assert (varied.state, varied.where) == (LOOK, "the runs of all 2 cases vary too much")


def test_speed_and_size_against_another_run(run: RunData, tiny_run: Path) -> None:
    equal, size, gone = judge_limits(
        run,
        [
            f"tokens_per_second >= 1e-6x {tiny_run}",
            f"w8a8_bytes <= 1x {tiny_run}",
            "tokens_per_second >= 1x results/nowhere",
        ],
    )
    assert (equal.state, size.state, gone.state) == (PASS, PASS, LOOK)
    assert "does not exist" in gone.where
    other = replace(run, performance=with_other_cases(run))
    (apart,) = judge_limits(other, [f"tokens_per_second >= 1e-6x {tiny_run}"])
    assert (apart.state, apart.where) == (LOOK, "no case in common")


def with_other_cases(run: RunData) -> PerformanceRecord:
    assert run.performance is not None
    cases = [replace(case, input_tokens=case.input_tokens + 1) for case in run.performance.cases]
    return replace(run.performance, cases=cases)


def test_answers_have_a_limit_of_their_own(run: RunData) -> None:
    assert run.precision is not None
    answers = [replace(one, float_differs=None, w8a8_differs=None) for one in run.precision.answers]
    answers[0] = replace(answers[0], float_differs=" Paris", w8a8_differs=" France")
    half = replace(run, precision=replace(run.precision, answers=answers))
    kept, missed = judge_limits(half, ["equal_answers >= 0.5", "equal_answers >= 0.9"])
    assert (kept.state, missed.state, kept.figure) == (PASS, FAIL, "50%")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ([], "Not judged: the profile sets no limits"),
        (["kl_mean[zh] <= 1"], "Yes: the one limit is kept"),
        (["kl_mean[zh] <= 1", "kl_mean[zh] <= 0.05"], "Look first: 1 of 2 limits are open"),
        (["kl_mean[zh] <= 0.05", "kl_mean[zh] <= 0.01"], "No: 1 of 2 limits are not kept, 1 are open"),
    ],
)
def test_the_answer_is_that_of_the_worst_light(run: RunData, limits: list[str], words: str) -> None:
    lights = judge_limits(with_kl(run, 0.04, 0.05, 0.06), limits)
    assert words in answer(lights)
    assert (worst_state(lights) == PASS) == ("Yes" in words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kl_mean = 0.03", "is no limit"),
        ("kl_mean <= nan", "is no limit"),
        ("kl_mean <= 1..2", "is no limit"),
        ("kl <= 0.03", 'no limit can be set on "kl"'),
        ("tokens_per_second[zh] >= 1x float", "is not by text"),
        ("tokens_per_second >= 12", 'write "tokens_per_second >= 12x float"'),
        ("kl_mean <= 2x float", 'write "kl_mean <= 2"'),
    ],
)
def test_what_is_no_limit_is_refused_with_an_example(text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_limits([text])


def test_a_limit_itself_is_kept_with_an_equal_sign_only(run: RunData) -> None:
    record = with_kl(run, 0.02, 0.025, 0.03)
    states = [judge_limits(record, [f"kl_mean {sign} 0.03"])[0].state for sign in ("<=", "<")]
    assert states == [PASS, LOOK]


def test_the_default_limits_can_be_read() -> None:
    assert [limit.figure for limit in parse_limits(DEFAULT_LIMITS)] == [
        "kl_mean",
        "perplexity_ratio",
        "top1_agreement",
        "tokens_per_second",
    ]


def test_more_limits_than_a_page_can_list_are_refused() -> None:
    assert len(parse_limits(["kl_mean < 0.03"] * MOST_LIMITS)) == MOST_LIMITS
    with pytest.raises(ParameterError, match=r"limits: 100000 of them, more than 100\. Take some away"):
        parse_limits(["kl_mean < 0.03"] * 100_000)

"""The verdict: the worst text first, no effect that an interval denies, no speed from cases that vary."""

from dataclasses import replace
from pathlib import Path

import pytest

from telechat_kit.backends.cpu_kernels import library
from telechat_kit.comparison.verdict import (
    SpeedGain,
    against_said,
    engine_gain,
    engine_said,
    gain_title,
    losses,
    perplexity_said,
    said,
    shown,
    speed_gain,
    speed_said,
    verdict,
)
from telechat_kit.performance.measurement import SCHEMA as PERFORMANCE
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.performance.timed_samples import CaseResult
from telechat_kit.precision import SCHEMA as PRECISION
from telechat_kit.precision import Group, KindLoss, PrecisionRecord
from telechat_kit.provenance import Conditions
from telechat_kit.quantization.pipeline import SCHEMA as QUANTIZE
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.records import read_record
from telechat_kit.statistics import Estimate


@pytest.fixture(scope="module")
def precision(tiny_run: Path) -> PrecisionRecord:
    return read_record(tiny_run, PrecisionRecord, PRECISION)


@pytest.fixture(scope="module")
def performance(tiny_run: Path) -> PerformanceRecord:
    return read_record(tiny_run, PerformanceRecord, PERFORMANCE)


@pytest.fixture(scope="module")
def quantized(tiny_run: Path) -> QuantizeRecord:
    return read_record(tiny_run, QuantizeRecord, QUANTIZE)


def estimate(value: float, half: float, coverage: float = 0.95) -> Estimate:
    return Estimate(value, value - half, value + half, coverage)


def with_kinds(record: PrecisionRecord, **kls: float) -> PrecisionRecord:
    """The record with only these kinds of text beside its own, W8A8 losing so many nats on each."""
    kinds = []
    for kind, kl in kls.items():
        ratio, same = Estimate(1.13, 1.08, 1.18, 0.95), estimate(0.75, 0.03)
        figures = Group(kind, 12, 1524, estimate(18, 1), ratio, estimate(kl, kl / 10), same)
        kinds.append(KindLoss(kind, f"{kind}.jsonl", "0" * 64, [], figures))
    return replace(record, kinds=kinds)


def test_the_worst_text_comes_first_whichever_it_is(precision: PrecisionRecord) -> None:
    worse, milder = with_kinds(precision, zh=9.0), with_kinds(precision, zh=1e-6)
    assert losses(worse)[0].text == "Chinese"
    assert losses(milder)[1].text == "Chinese"
    first = said(verdict(worse))[0]
    assert "on Chinese (1,524 tokens): perplexity rises by 13 [8, 18] %" in first
    assert "the next token is float's at 75 [72, 78] % of the positions" in first


def test_text_like_the_calibrations_is_set_against_the_worst_of_the_others(
    precision: PrecisionRecord,
) -> None:
    """The headline must not be that of the text that the weights were tuned on."""
    record = with_kinds(precision, zh=9.0, en=2.0, code=5.0)
    like = replace(record, like_calibration=["en", "code"])
    assert against_said(verdict(like)) == (
        "Mean KL from float, nats per token, at the worst: 5.0 [4.5, 5.5] on text like the calibration's (code), "
        "9.0 [8.1, 9.9] on other text (Chinese)."
    )
    every = replace(record, like_calibration=["en", "code", "zh", precision.text_source])
    assert against_said(verdict(every)).endswith("what other text costs was not measured.")
    assert against_said(verdict(replace(record, like_calibration=[]))).endswith(
        "No text is like the calibration's."
    )
    unknown = replace(record, like_calibration=None)
    assert against_said(verdict(unknown)).endswith("What was calibrated on is not known.")


def test_the_record_tells_which_text_is_like_the_calibrations(
    precision: PrecisionRecord, quantized: QuantizeRecord
) -> None:
    assert precision.like_calibration == [precision.text_source] == ["pydoc_data.topics"]
    assert {loss.text for loss in losses(precision) if loss.like_calibration} == {"pydoc_data.topics"}
    older = replace(precision, like_calibration=None)  # before the record told
    assert {loss.text for loss in losses(older, quantized) if loss.like_calibration} == {"pydoc_data.topics"}


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Estimate(0.994, 0.974, 1.014, 0.95), "no difference of perplexity is shown (change [-3, +1] %)"),
        (Estimate(1.011, 1.005, 1.016, 0.95), "perplexity rises by 1.1 [0.5, 1.6] %"),
        (Estimate(0.96, 0.95, 0.97, 0.95), "perplexity falls by 4.0 [3.0, 5.0] %"),
        (Estimate(1.02, 1.02, 1.02, 0.0), "perplexity changes by +2.0 % (one sequence: no interval)"),
    ],
)
def test_no_effect_is_claimed_that_the_interval_denies(ratio: Estimate, words: str) -> None:
    assert perplexity_said(ratio) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (estimate(12.93, 5.05), "13 [8, 18]"),
        (estimate(1234.5, 60), "1230 [1170, 1290]"),
        (estimate(0.01171, 0.0012), "0.0117 [0.0105, 0.0129]"),
        (estimate(10.84, 0.6), "10.8 [10.2, 11.4]"),
        (estimate(3.0, 1.0, 0.0), "3 (no interval)"),
    ],
)
def test_no_digit_is_finer_than_the_interval(value: Estimate, words: str) -> None:
    assert shown(value) == words


def steady(record: PerformanceRecord, **changes: object) -> PerformanceRecord:
    """The record with every case stable: float at 10 tokens/s, W8A8 at 40, each within a tenth."""
    speeds = {"float": estimate(10, 0.5), "w8a8": estimate(40, 2)}

    def case(one: CaseResult) -> CaseResult:
        return replace(one, unstable=False, tokens_per_second=speeds[one.precision])

    return replace(record, cases=[case(one) for one in record.cases], **changes)  # type: ignore[arg-type]


def test_unstable_cases_stay_out_of_the_speed(performance: PerformanceRecord) -> None:
    record = steady(performance)
    first = next(case for case in record.cases if case.precision == "w8a8")
    wild = replace(first, unstable=True, tokens_per_second=estimate(4000, 1))
    mixed = replace(record, cases=[wild if case is first else case for case in record.cases])
    found, whole = speed_gain(mixed), speed_gain(record)
    assert found.ratio is not None and whole.ratio is not None
    assert found.ratio.value == pytest.approx(whole.ratio.value) == pytest.approx(4)
    assert (found.unstable, whole.unstable) == (1, 0)
    assert "1 left out, its runs vary too much" in speed_said(found, "here")


def test_no_speed_is_told_where_every_case_varies(performance: PerformanceRecord) -> None:
    record = replace(performance, cases=[replace(case, unstable=True) for case in performance.cases])
    found = speed_gain(record)
    assert found.ratio is None
    assert speed_said(found, "here").startswith("How much faster W8A8 generates on here is not shown")
    assert gain_title(found, "{ratio} times") == "No ratio is shown: the runs of all cases vary too much"


def test_a_ratio_whose_interval_holds_one_is_no_difference() -> None:
    found = SpeedGain(Estimate(1.05, 0.98, 1.12, 0.95), 6, 0)
    assert speed_said(found, "x").startswith(
        "No difference of speed is shown on x: tokens per second [0.98, 1.12]"
    )
    assert gain_title(found, "{ratio} times") == "No difference of speed is shown: [0.98, 1.12] times float"


def test_both_engines_are_named_and_what_they_mean(performance: PerformanceRecord) -> None:
    apart = steady(performance, engines={"float": "torch modules", "w8a8": "compiled engine"})
    same = steady(performance, engines={"float": "compiled engine", "w8a8": "compiled engine"})
    assert (
        "float in the torch modules, W8A8 in the compiled engine: a part of it is the engine's"
        in speed_said(speed_gain(apart), "x")
    )
    assert "both in the compiled engine" in speed_said(speed_gain(same), "x")


def test_the_record_names_the_engine_of_each_precision(performance: PerformanceRecord) -> None:
    assert set(performance.engines) == {"float", "w8a8"}
    compiled = library.library() is not None
    assert set(performance.engines.values()) == {"compiled engine" if compiled else "torch modules"}


def test_what_the_engine_brings_stands_apart_from_what_int8_brings(performance: PerformanceRecord) -> None:
    engines = {"float": "compiled engine", "w8a8": "compiled engine"}
    record = steady(performance, engines=engines)
    slow = [
        replace(case, precision="transformers", tokens_per_second=estimate(2, 0.1))
        for case in record.cases
        if case.precision == "float"
    ]
    found = engine_gain(replace(record, transformers=slow))
    assert found is not None and found.ratio is not None
    assert found.ratio.value == pytest.approx(5)
    assert engine_said(found).startswith(
        "The compiled engine by itself brings 5.0 [4.5, 5.5] times the tokens per second of transformers' generate()"
    )
    equal = [replace(case, tokens_per_second=estimate(10, 0.5)) for case in slow]
    nothing = engine_gain(replace(record, transformers=equal))
    assert nothing is not None and "shows no difference" in engine_said(nothing)
    wild = engine_gain(replace(record, transformers=[replace(case, unstable=True) for case in slow]))
    assert wild is not None and "is not shown: the runs of all" in engine_said(wild)
    assert engine_gain(replace(record, transformers=[])) is None


def test_a_chart_of_two_engines_says_so(performance: PerformanceRecord) -> None:
    apart = steady(performance, engines={"float": "torch modules", "w8a8": "compiled engine"})
    same = steady(performance, engines={"float": "compiled engine", "w8a8": "compiled engine"})
    assert gain_title(speed_gain(apart), "{ratio} times").endswith("times, in different engines")
    assert gain_title(speed_gain(same), "{ratio} times").endswith("times")


def test_answers_that_differ_are_counted(precision: PrecisionRecord) -> None:
    answers = [replace(a, float_differs=None, w8a8_differs=None) for a in precision.answers]
    answers[0] = replace(answers[0], float_differs=" Paris", w8a8_differs=" France")
    found = said(verdict(replace(precision, answers=answers)))
    assert f"{len(answers) - 1} of {len(answers)} answers are the same to the last token." in found


def test_records_of_other_weights_are_not_joined_in_one_verdict(
    precision: PrecisionRecord, quantized: QuantizeRecord, performance: PerformanceRecord
) -> None:
    def of_others(record: QuantizeRecord | PerformanceRecord) -> Conditions:
        hashes = record.conditions.hashes | {"w8a8_weights": "0" * 64}
        return replace(record.conditions, hashes=hashes)

    whole = verdict(precision, quantized, performance)
    assert whole.left_out == []
    apart = verdict(
        precision,
        replace(quantized, conditions=of_others(quantized)),
        replace(performance, conditions=of_others(performance)),
    )
    assert (apart.level, apart.size_ratio, apart.speed) == (None, None, None)
    assert (
        said(apart)[-1] == "Not told, because the record is of other W8A8 weights: level and size and speed."
    )
    assert not any("weight files" in line or "tokens per second" in line for line in said(apart))

"""Samples and what they say: medians, drift, unstable cases, and that timing itself is right within 2 %."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from telechat_kit.inference import generation
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.performance.cases import Case
from telechat_kit.performance.energy import energy_reader
from telechat_kit.performance.roofline import ModelSize, Peaks, limit_tokens_per_second
from telechat_kit.performance.thread_scaling import ThreadPlan, summarize_threads
from telechat_kit.performance.timed_runs import Timing, time_cases
from telechat_kit.performance.timed_samples import Journal, Sample, drift, read_samples, sample_of, summarize

SIZES = [ModelSize("float", 4000, 2000, 100), ModelSize("w8a8", 1000, 500, 100)]
PEAKS = Peaks(1.0, "measured")
SMALL = TelechatConfig(vocab_size=16, hidden_size=32, n_layer=1, n_head=2, ffn_hidden_size=48)


def sample(repeat: int, seconds: float, precision: str = "float", outputs: int = 8) -> Sample:
    per_token = (seconds - 0.5) / (outputs - 1) if outputs > 1 else None
    return Sample(precision, 10, outputs, repeat, seconds, 0.5, per_token)


def test_medians_and_ranges_are_those_of_the_repeats() -> None:
    samples = [sample(0, 1.0), sample(1, 4.0), sample(2, 2.0)]
    (case,) = summarize(samples, SIZES, PEAKS)
    speed = case.tokens_per_second
    assert (speed.low, speed.value, speed.high, speed.coverage) == (2.0, 4.0, 8.0, 0.75)
    assert case.time_to_first_token.value == 0.5
    assert case.time_per_output_token is not None
    assert case.time_per_output_token.value == pytest.approx(1.5 / 7)


def test_an_answer_of_one_token_has_no_time_per_further_token() -> None:
    (case,) = summarize([sample(0, 0.5, outputs=1)], SIZES, PEAKS)
    assert case.time_per_output_token is None
    assert case.tokens_per_second.value == 2.0


def test_precisions_and_lengths_are_never_mixed() -> None:
    samples = [sample(0, 1.0), sample(0, 2.0, "w8a8"), sample(0, 3.0, outputs=4), sample(1, 1.0)]
    found = [(c.precision, c.output_tokens, c.repeats) for c in summarize(samples, SIZES, PEAKS)]
    assert found == [("float", 8, 2), ("w8a8", 8, 1), ("float", 4, 1)]


def test_batches_are_never_mixed_and_all_their_rows_count() -> None:
    samples = [sample(0, 2.0), replace(sample(0, 2.0), batch=4)]
    alone, four = summarize(samples, SIZES, PEAKS)
    assert (alone.batch, four.batch) == (1, 4)
    assert (alone.tokens_per_second.value, four.tokens_per_second.value) == (4.0, 16.0)
    assert four.limit_tokens_per_second == limit_tokens_per_second(SIZES[0], PEAKS, 10, 8, batch=4)


def test_quantiles_are_those_of_the_tokens_behind_the_first() -> None:
    run = generation.Generation(5, [1, 2, 3, 4, 5], [2.0, 3.0, 4.0, 5.0, 15.0])
    found = sample_of("float", 0, run)
    assert found.token_p50 == 1.0
    assert found.token_p95 == pytest.approx(1 + 9 * 0.85)  # between the third and the fourth of four times
    assert sample_of("float", 0, generation.Generation(5, [1], [2.0])).token_p95 is None


def test_a_case_whose_runs_differ_by_more_than_a_tenth_is_marked() -> None:
    steady = summarize([sample(0, 1.0), sample(1, 1.05), sample(2, 1.09)], SIZES, PEAKS)
    shaken = summarize([sample(0, 1.0), sample(1, 1.05), sample(2, 1.2)], SIZES, PEAKS)
    assert (steady[0].unstable, shaken[0].unstable) == (False, True)


def test_a_device_that_slows_down_shows_as_drift_and_one_slow_run_does_not() -> None:
    throttled = [sample(r, 1.0 + 0.1 * r, outputs=o) for r in range(4) for o in (4, 8, 16)]
    assert drift(throttled) == pytest.approx((1.25 / 1.05) - 1)
    one_slow = [sample(r, 3.0 if (r, o) == (3, 4) else 1.0, outputs=o) for r in range(4) for o in (4, 8, 16)]
    assert drift(one_slow) == 0
    assert drift([sample(0, 1.0)]) is None


class TakesKnownTime(TelechatForCausalLM):
    """A model that takes a known time for each call, and for each token in it."""

    per_call, per_token = 0.010, 0.002

    def pass_time(self, seconds: float) -> None:
        raise NotImplementedError

    def forward(self, ids: torch.Tensor, **_: Any) -> Any:
        self.pass_time(self.per_call + self.per_token * ids.shape[1])
        return SimpleNamespace(logits=torch.zeros(len(ids), 1, self.config.vocab_size))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], TakesKnownTime]:
    """Models by a factor on their times, all on one clock that only they move on."""
    now = [100.0]
    monkeypatch.setattr(generation, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    # the engine would read the weights and not call the model
    monkeypatch.setattr(generation, "engine_for", lambda _: None)

    def make(factor: float) -> TakesKnownTime:
        model = TakesKnownTime(SMALL)
        model.pass_time = lambda seconds: now.__setitem__(0, now[0] + factor * seconds)
        return model

    return make


def test_the_harness_reports_times_that_are_known(
    known: Callable[[float], TakesKnownTime], tmp_path: Path
) -> None:
    models = {"float": known(4.0), "w8a8": known(1.0)}
    cases = [Case(5, 1), Case(5, 9), Case(50, 9), Case(5, 9, batch=3)]
    samples = list(
        time_cases(models, cases, Timing([7] * 50, 3, Journal(tmp_path / "samples.jsonl", "work")))
    )
    for case in summarize(samples, SIZES, PEAKS):
        factor = {"float": 4.0, "w8a8": 1.0}[case.precision]
        first = factor * (0.010 + 0.002 * case.input_tokens)
        step = factor * 0.012
        total = first + (case.output_tokens - 1) * step
        assert case.time_to_first_token.value == pytest.approx(first, rel=0.02)
        assert case.tokens_per_second.value == pytest.approx(
            case.batch * case.output_tokens / total, rel=0.02
        )
        if case.output_tokens > 1:
            assert case.time_per_output_token is not None
            assert case.time_per_output_token.value == pytest.approx(step, rel=0.02)
        assert not case.unstable
    assert drift(samples) == pytest.approx(0)


def test_the_harness_reports_an_energy_that_is_known(
    known: Callable[[float], TakesKnownTime], tmp_path: Path
) -> None:
    """A package of 50 watts, whose counter begins again every 100 J."""
    zone, microjoules = tmp_path / "intel-rapl:0", [99_000_000.0]
    zone.mkdir()
    for file, text in {
        "name": "package-0",
        "max_energy_range_uj": 100_000_000,
        "energy_uj": 99_000_000,
    }.items():
        (zone / file).write_text(f"{text}\n")

    def at_50_watts(model: TakesKnownTime) -> TakesKnownTime:
        clock = model.pass_time

        def pass_time(seconds: float) -> None:
            clock(seconds)
            factor = 4.0 if model is models["float"] else 1.0
            microjoules[0] = (microjoules[0] + 50e6 * factor * seconds) % 100e6
            (zone / "energy_uj").write_text(f"{round(microjoules[0])}\n")

        model.pass_time = pass_time  # type: ignore[method-assign]
        return model

    models = {"float": known(4.0), "w8a8": known(1.0)}
    for model in models.values():
        at_50_watts(model)
    reader, journal = energy_reader("cpu", tmp_path), Journal(tmp_path / "samples.jsonl", "work")
    cases = [Case(5, 1), Case(5, 9, batch=3)]
    samples = list(time_cases(models, cases, Timing([7] * 5, 3, journal, energy=reader), [None, 1]))
    for sample in samples:
        assert sample.joules == pytest.approx(50 * sample.seconds, rel=0.02)
    for case in summarize(samples, SIZES, PEAKS):
        assert case.joules_per_token is not None
        assert case.joules_per_token.value == pytest.approx(50 / case.tokens_per_second.value, rel=0.02)
    journal.publish()
    assert read_samples(tmp_path / "samples.jsonl") == samples


def test_runs_without_energy_have_none(known: Callable[[float], TakesKnownTime], tmp_path: Path) -> None:
    samples = list(
        time_cases(
            {"w8a8": known(1.0)}, [Case(5, 2)], Timing([7] * 5, 2, Journal(tmp_path / "s.jsonl", "work"))
        )
    )
    assert [sample.joules for sample in samples] == [None, None]
    (case,) = summarize(samples, SIZES, PEAKS)
    assert case.joules_per_token is None
    (half,) = summarize([samples[0], replace(samples[1], joules=3.0)], SIZES, PEAKS)
    assert half.joules_per_token is not None and half.joules_per_token.value == 1.5


def test_the_harness_reports_a_scaling_by_threads_that_is_known(
    known: Callable[[float], TakesKnownTime], tmp_path: Path
) -> None:
    def share_work(model: TakesKnownTime) -> TakesKnownTime:
        alone = model.pass_time
        model.pass_time = lambda seconds: alone(seconds / torch.get_num_threads() ** 0.5)  # type: ignore[method-assign]
        return model

    models, case = {"float": share_work(known(4.0)), "w8a8": share_work(known(1.0))}, Case(5, 9)
    journal = Journal(tmp_path / "samples.jsonl", "work")
    samples = list(time_cases(models, [case], Timing([7] * 5, 3, journal), [1, 4]))
    found = summarize_threads(ThreadPlan([1, 4], [], 4), case, samples)
    assert found is not None
    for name, factor in (("float", 4.0), ("w8a8", 1.0)):
        one, four = found.of(name)
        assert one.tokens_per_second.value == pytest.approx(9 / (factor * (0.020 + 8 * 0.012)), rel=0.02)
        assert four.tokens_per_second.value == pytest.approx(2 * one.tokens_per_second.value, rel=0.02)
        assert four.time_per_output_token is not None
        assert four.time_per_output_token.value == pytest.approx(factor * 0.006, rel=0.02)

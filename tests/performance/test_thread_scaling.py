"""Speed against threads: what is timed and what is left out, samples apart from the grid's, threads set back."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from telechat_kit.errors import ParameterError
from telechat_kit.inference.generation import Generation, generate
from telechat_kit.performance import thread_scaling
from telechat_kit.performance.cases import Case, Grid
from telechat_kit.performance.measurement import SCHEMA, PerformanceRecord, measure_performance
from telechat_kit.performance.thread_scaling import cpu_threads, longest_seconds, plan_threads, scaling_case
from telechat_kit.performance.timed_runs import TRANSFORMERS
from telechat_kit.performance.timed_samples import (
    Journal,
    drift,
    partial_samples,
    read_samples,
    sample_of,
    summarize,
)
from telechat_kit.records import read_record, write_record


def measure(
    folder: Path, weights: Path, run_folder: Path, memory: str = "auto", device: str = "cpu", **changes: Any
) -> PerformanceRecord:
    grid = replace(Grid([3, 5], [1, 4], repeats=2, check_tokens=0), **changes)
    return measure_performance(folder, weights, grid, run_folder=run_folder, memory=memory, device=device)


@pytest.fixture(autouse=True, scope="module")
def two_cpus() -> Iterator[None]:
    """The process may use two, whatever the machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thread_scaling, "usable_cores", lambda: 2)
        yield


@pytest.fixture(scope="module")
def run(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PerformanceRecord, Path]:
    path = tmp_path_factory.mktemp("threads") / "samples.jsonl"
    return measure(tiny_folder, tiny_w8a8_folder, path.parent, thread_counts=[2, 1, 64], check_tokens=2), path


def test_one_case_is_timed_behind_the_grid_with_counts_and_models_in_turn(
    run: tuple[PerformanceRecord, Path], tmp_path: Path
) -> None:
    record, path = run
    samples = read_samples(path)
    of_grid, by_threads = ([s for s in samples if (s.threads is None) == grid] for grid in (True, False))
    assert samples == of_grid + by_threads
    found = [(s.repeat, s.threads, s.precision) for s in by_threads]
    assert found == [(r, n, name) for r in (0, 1) for n in (2, 1) for name in ("float", "w8a8")]
    assert {sample.case for sample in by_threads} == {Case(3, 4)}
    assert record.threads is not None
    assert [(r.precision, r.threads, r.repeats) for r in record.threads.results] == [
        (name, n, 2) for name in ("float", "w8a8") for n in (1, 2)
    ]
    fast = max(s.tokens_per_second for s in by_threads if (s.precision, s.threads) == ("w8a8", 2))
    assert record.threads.of("w8a8")[1].tokens_per_second.high == fast
    assert (record.threads.left_out, record.threads.available) == ([64], 2)
    assert torch.get_num_threads() == record.conditions.threads == 1
    write_record(tmp_path, record)
    assert read_record(tmp_path, PerformanceRecord, SCHEMA) == record


def test_runs_by_threads_are_no_runs_of_the_grid(run: tuple[PerformanceRecord, Path]) -> None:
    record, path = run
    samples = read_samples(path)
    assert record.peaks is not None
    assert [*record.cases, *record.transformers] == sorted(
        summarize(samples, record.sizes, record.peaks), key=lambda case: case.precision == TRANSFORMERS
    )
    assert {case.repeats for case in record.cases} == {2}
    of_grid = [sample for sample in samples if sample.threads is None]
    assert record.drift == drift(samples) == drift(of_grid)
    assert record.seconds == sum(sample.seconds for sample in of_grid)


def test_answers_by_threads_are_not_checked_in_place_of_the_grids(tmp_path: Path) -> None:
    journal, run = Journal(tmp_path / "samples.jsonl", "work"), Generation(3, [1, 2], [0.1, 0.2])
    journal.write(sample_of("w8a8", 0, run), run)
    journal.write(sample_of("w8a8", 0, run, threads=2), Generation(3, [9, 9], [0.1, 0.2]))
    assert journal.answers("w8a8") == [(3, [1, 2])]


def test_a_broken_off_scaling_goes_on_behind_its_last_run(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def generate_or_break(*arguments: Any, **options: Any) -> Generation:
        seen.append(torch.get_num_threads())
        if len(seen) == 10:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    path = tmp_path / "samples.jsonl"
    options = {"input_lengths": [3], "output_lengths": [4], "repeats": 1, "thread_counts": [1, 2]}
    monkeypatch.setattr("telechat_kit.performance.timed_runs.generate", generate_or_break)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_folder, tiny_w8a8_folder, path.parent, **options)
    assert (
        seen == [1] * 8 + [2] * 2
    )  # warm-up, grid; then two calls a run, the first of which wakes the threads
    assert torch.get_num_threads() == 1
    kept = [json.loads(line)["sample"]["threads"] for line in partial_samples(path).read_text().splitlines()]
    assert kept == [None] * (len(kept) - 2) + [1, 1]
    record = measure(tiny_folder, tiny_w8a8_folder, path.parent, **options)
    assert record.resumed == len(kept)
    assert [s.threads for s in read_samples(path)] == [*kept, 2, 2]


def test_where_one_model_is_in_memory_at_a_time_both_are_timed_by_threads(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "samples.jsonl"
    measure(tiny_folder, tiny_w8a8_folder, path.parent, thread_counts=[1], repeats=1, memory="one")
    found = [(s.precision, s.threads) for s in read_samples(path)]
    own = [(name, n) for name, n in found if name != TRANSFORMERS]
    assert own == [(name, n) for name in ("float", "w8a8") for n in (None, None, None, None, 1)]
    assert found.count((TRANSFORMERS, None)) in (0, 4)  # beside an engine of the kit's
    said = "input 3, output 4 tokens with 1 threads, 1 times in 1 precisions: at most about"
    assert capsys.readouterr().out.count(said) == 2


def test_a_machine_without_the_threads_asked_for_still_measures_the_grid(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "samples.jsonl"
    record = measure(tiny_folder, tiny_w8a8_folder, path.parent, thread_counts=[3, 4], repeats=1)
    assert record.threads is not None
    assert (record.threads.results, record.threads.left_out) == ([], [3, 4])
    assert len(record.cases) == 8
    assert "left out: 3, 4 threads: the process may use 2 of the machine's CPUs" in capsys.readouterr().out
    assert measure(tiny_folder, tiny_w8a8_folder, path.parent, repeats=1).threads is None


@pytest.mark.parametrize(
    ("counts", "device", "message"),
    [
        ([2, 0], "cpu", r"thread_counts is \[2, 0\]: each must be 1 or more. Leave it empty"),
        ([-1], "npu:0", "each must be 1 or more"),
    ],
)
def test_counts_that_cannot_be_timed_are_refused_before_anything_is_loaded(
    counts: list[int], device: str, message: str, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ParameterError, match=message):
        measure(nowhere, nowhere, tmp_path, thread_counts=counts, device=device)


@pytest.mark.parametrize("device", ["auto", "cpu", "npu:0", "cpu,cpu"])
def test_no_counts_are_good_on_every_device(device: str) -> None:
    assert plan_threads([], device).counts == []


@pytest.mark.parametrize("device", ["npu:0", "cuda:0,cuda:1", "cpu,cpu"])
def test_a_profile_for_the_cpu_runs_on_other_devices_without_its_counts(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_threads([1, 2], device)
    assert (plan.counts, plan.left_out) == ([], [1, 2])
    said = f"left out: 1, 2 threads: they are timed on one CPU, and the device is {device}"
    assert said in capsys.readouterr().out


def test_a_count_named_twice_is_timed_once() -> None:
    assert plan_threads([2, 1, 2], "auto").counts == [2, 1]


def test_threads_are_set_back_whatever_happens() -> None:
    def fail() -> None:
        with cpu_threads(2):
            assert torch.get_num_threads() == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.get_num_threads() == 1
    with cpu_threads(None):
        assert torch.get_num_threads() == 1


def test_the_case_is_the_longest_answer_behind_the_shortest_prompt_of_the_smallest_batch() -> None:
    cases = [Case(5, 9), Case(3, 1, 4), Case(3, 8), Case(3, 2), Case(3, 99, 4)]
    assert scaling_case(cases) == Case(3, 8)


def test_the_time_before_is_that_of_perfect_scaling() -> None:
    run = Generation(3, [1, 2], [0.5, 2.0])
    samples = [sample_of(name, 0, run) for name in ("float", "w8a8")]
    with cpu_threads(2):  # 4 s a run at one thread, 2 s at two, and no less at four
        assert longest_seconds(Case(3, 2), samples, [1, 2, 4], repeats=3) == 3 * 2 * (4 + 2 + 2)

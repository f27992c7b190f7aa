"""Timed cases on the tiny model: exact token counts, samples as they come, arithmetic, and the published table."""

from pathlib import Path
from typing import Any

import pytest

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.generation import Generation, generate
from telechat_kit.model.checkpoint import load_model
from telechat_kit.performance import (
    GUIDE_LENGTHS,
    PUBLISHED,
    SCHEMA,
    ModelSize,
    PerformanceRecord,
    Sample,
    grid,
    measure_performance,
    model_size,
    partial_samples,
    read_samples,
    summarize,
)
from telechat_kit.provenance import weights_hash
from telechat_kit.records import read_record, write_record

SIZES = [ModelSize("float", 4000, 2000, 100), ModelSize("w8a8", 1000, 500, 100)]


def sample(repeat: int, seconds: float, precision: str = "float", outputs: int = 8) -> Sample:
    per_token = (seconds - 0.5) / (outputs - 1) if outputs > 1 else None
    return Sample(precision, 10, outputs, repeat, seconds, 0.5, per_token)


@pytest.fixture(scope="module")
def run(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PerformanceRecord, Path]:
    """Two input and two output lengths, two repeats, on the tiny pair; and the file of its samples."""
    path = tmp_path_factory.mktemp("performance") / "deep" / "samples.jsonl"
    record = measure_performance(
        tiny_folder,
        tiny_w8a8_folder,
        path,
        input_lengths=[3, 7],
        output_lengths=[1, 4],
        repeats=2,
        device="cpu",
    )
    return record, path


def test_where_both_models_do_not_fit_one_is_timed_after_the_other(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    lengths = {"input_lengths": [3, 5], "output_lengths": [2], "repeats": 2, "device": "cpu"}
    path = tmp_path / "samples.jsonl"
    record = measure_performance(tiny_folder, tiny_w8a8_folder, path, memory="one", **lengths)  # type: ignore[arg-type]
    found = [(s.precision, s.repeat, s.input_tokens) for s in read_samples(path)]
    assert found == [(name, r, i) for name in ("float", "w8a8") for r in (0, 1) for i in (3, 5)]
    assert [size.precision for size in record.sizes] == ["float", "w8a8"]
    assert not record.in_turn


def test_every_case_is_timed_as_often_as_asked_in_both_precisions(
    run: tuple[PerformanceRecord, Path],
) -> None:
    samples = read_samples(run[1])
    found = [(s.repeat, s.input_tokens, s.output_tokens, s.precision) for s in samples]
    cases = [(3, 1), (3, 4), (7, 1), (7, 4)]
    assert found == [(r, i, o, name) for r in (0, 1) for i, o in cases for name in ("float", "w8a8")]


def test_times_of_a_sample_agree_with_each_other(run: tuple[PerformanceRecord, Path]) -> None:
    for timed in read_samples(run[1]):
        assert 0 < timed.time_to_first_token <= timed.seconds
        assert timed.tokens_per_second == timed.output_tokens / timed.seconds
        if timed.output_tokens == 1:
            assert timed.time_per_output_token is None
        else:
            rest = (timed.output_tokens - 1) * (timed.time_per_output_token or 0)
            assert timed.time_to_first_token + rest == pytest.approx(timed.seconds)


def test_the_cases_are_the_medians_of_the_samples(run: tuple[PerformanceRecord, Path]) -> None:
    record, path = run
    assert record.cases == summarize(read_samples(path), record.sizes, record.read_bandwidth)
    assert len(record.cases) == 8
    assert {case.repeats for case in record.cases} == {2}


def test_the_record_comes_back_equal_and_names_its_weights(
    run: tuple[PerformanceRecord, Path], tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    record, _ = run
    write_record(tmp_path, record)
    assert read_record(tmp_path, PerformanceRecord, SCHEMA) == record
    assert record.conditions.hashes["float_weights"] == weights_hash(tiny_folder)
    assert record.conditions.hashes["w8a8_weights"] == weights_hash(tiny_w8a8_folder)
    assert record.batch == 1
    assert record.read_bandwidth > 1e8
    assert record.peak_memory_bytes > 1e7


def test_the_limit_is_the_time_to_read_weights_and_the_mean_cache() -> None:
    (case,) = summarize([sample(0, 1.0)], SIZES, bandwidth=34_000.0)
    assert case.limit_tokens_per_second == 34_000 / (2000 + 100 * (10 + 8 / 2))


def test_medians_and_ranges_are_those_of_the_repeats() -> None:
    samples = [sample(0, 1.0), sample(1, 4.0), sample(2, 2.0)]
    (case,) = summarize(samples, SIZES, 1.0)
    speed = case.tokens_per_second
    assert (speed.low, speed.value, speed.high, speed.coverage) == (2.0, 4.0, 8.0, 0.75)
    assert case.time_to_first_token.value == 0.5
    assert case.time_per_output_token is not None
    assert case.time_per_output_token.value == pytest.approx(1.5 / 7)


def test_an_answer_of_one_token_has_no_time_per_further_token() -> None:
    (case,) = summarize([sample(0, 0.5, outputs=1)], SIZES, 1.0)
    assert case.time_per_output_token is None
    assert case.tokens_per_second.value == 2.0


def test_precisions_and_lengths_are_never_mixed() -> None:
    samples = [sample(0, 1.0), sample(0, 2.0, "w8a8"), sample(0, 3.0, outputs=4), sample(1, 1.0)]
    found = [(c.precision, c.output_tokens, c.repeats) for c in summarize(samples, SIZES, 1.0)]
    assert found == [("float", 8, 2), ("w8a8", 8, 1), ("float", 4, 1)]


def test_a_generation_counts_from_the_start_of_the_prefill() -> None:
    run = Generation(prompt_tokens=5, token_ids=[1, 2, 3, 4], token_times=[2.0, 3.0, 4.0, 8.0])
    assert (run.seconds, run.time_to_first_token, run.time_per_output_token) == (8.0, 2.0, 2.0)
    assert run.tokens_per_second == 0.5


def test_the_sizes_are_those_of_the_tensors(tiny_folder: Path, tiny_w8a8_folder: Path) -> None:
    float_size = model_size("float", load_model(tiny_folder, "cpu"))
    w8a8_size = model_size("w8a8", load_model(tiny_w8a8_folder, "cpu"))
    blocks = 4 * (4 * 64 * 64 + 3 * 64 * 176)  # weights of the linears of the four blocks
    assert float_size.weight_bytes >= 4 * (blocks + 262 * 64)
    assert float_size.read_bytes_per_token == float_size.weight_bytes  # the head is the embedding
    assert float_size.weight_bytes - w8a8_size.weight_bytes == pytest.approx(3 * blocks, rel=0.1)
    assert float_size.cache_bytes_per_token == w8a8_size.cache_bytes_per_token == 2 * 4 * 64 * 4


def test_each_sample_is_on_disk_before_the_next_is_timed(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is broken off keeps what it has measured."""
    path, on_disk = partial_samples(tmp_path / "samples.jsonl"), []

    def generate_or_break(*arguments: Any, **options: Any) -> Generation:
        on_disk.append(len(read_samples(path)) if path.exists() else 0)
        if len(on_disk) == 6:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr("telechat_kit.performance.generate", generate_or_break)
    with pytest.raises(KeyboardInterrupt):
        measure_performance(
            tiny_folder,
            tiny_w8a8_folder,
            tmp_path / "samples.jsonl",
            input_lengths=[3],
            output_lengths=[2],
            device="cpu",
        )
    assert on_disk == [0, 0, 0, 1, 2, 3]  # the first two calls are the warm-up
    assert [timed.repeat for timed in read_samples(path)] == [0, 0, 1]


def test_the_grid_is_every_input_with_every_output() -> None:
    assert grid([10, 20], [1, 2], 100) == [(10, 1), (10, 2), (20, 1), (20, 2)]
    assert len(grid(GUIDE_LENGTHS, GUIDE_LENGTHS, 4096)) == 25
    assert grid([60], [40], 100) == [(60, 40)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([10, 0], [5], "input 0 and output 5 tokens: each must be at least 1"),
        ([10], [-1], "input 10 and output -1 tokens"),
        ([10, 61], [40], "input 61 and output 40 tokens: .* at most 100, the context of the model"),
        ([], [5], "input_lengths and output_lengths give no case"),
        ([5], [], "input_lengths and output_lengths give no case"),
    ],
)
def test_an_impossible_grid_names_the_case(inputs: list[int], outputs: list[int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        grid(inputs, outputs, 100)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_lengths": [600], "output_lengths": [1]}, ParameterError, "512, the context of the model"),
        ({"input_lengths": [], "output_lengths": [1]}, ParameterError, "give no case"),
        ({"repeats": 0}, ParameterError, "at least once"),
        (
            {"input_lengths": [300], "output_lengths": [1]},
            DataError,
            "has 50 tokens, the longest case needs 300",
        ),
    ],
)
def test_a_case_that_cannot_be_run_leaves_earlier_samples_untouched(
    tiny_folder: Path,
    tiny_w8a8_folder: Path,
    tmp_path: Path,
    options: dict[str, list[int]],
    error: type[Exception],
    message: str,
) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "samples.jsonl"
    text.write_text("x" * 50)
    path.write_text("earlier")
    with pytest.raises(error, match=message):
        measure_performance(tiny_folder, tiny_w8a8_folder, path, text=str(text), device="cpu", **options)
    assert path.read_text() == "earlier"


def test_the_published_table_is_that_of_the_guide() -> None:
    table = {(row.input_tokens, row.output_tokens): (row.npu_310p, row.gpu_a10) for row in PUBLISHED}
    assert table == {
        (100, 100): (15, 21),
        (1000, 100): (13, 24),
        (2000, 100): (11, 19),
        (None, None): (13, 18),
    }
    assert GUIDE_LENGTHS == (10, 100, 500, 1000, 2000)

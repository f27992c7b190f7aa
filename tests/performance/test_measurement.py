"""Timed cases on the tiny model: exact token counts, samples as they come, arithmetic, and the published table."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from telechat_kit.backends import cpu
from telechat_kit.backends.cpu_kernels import library
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.inference.generation import (
    Generation,
    generate,
    generate_by_transformers,
    generate_copies,
)
from telechat_kit.inference.loading import load_model
from telechat_kit.model.folder import read_config
from telechat_kit.model.hashes import weights_hash
from telechat_kit.performance import energy
from telechat_kit.performance.cases import Case, Grid, case_bytes
from telechat_kit.performance.id_checks import check_ids
from telechat_kit.performance.measurement import (
    PUBLISHED,
    SCHEMA,
    PerformanceRecord,
    measure_performance,
)
from telechat_kit.performance.timed_runs import TRANSFORMERS
from telechat_kit.performance.timed_samples import (
    Journal,
    Run,
    partial_samples,
    read_samples,
    sample_of,
    summarize,
)
from telechat_kit.records import read_record, write_record
from telechat_kit.reports import performance_tables

#: How the float model is timed: without kernels it has no engine, and transformers' own loop is not timed beside it
FLOATS = ("float",) if library.library() is None else ("float", TRANSFORMERS)


@pytest.fixture(scope="module")
def run(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PerformanceRecord, Path]:
    """Two input and two output lengths, two repeats, on the tiny pair; and the file of its samples."""
    path = tmp_path_factory.mktemp("performance") / "deep" / "samples.jsonl"
    record = measure_performance(
        tiny_folder,
        tiny_w8a8_folder,
        Grid([3, 7], [1, 4], repeats=2, check_tokens=3),
        run_folder=path.parent,
        device="cpu",
    )
    return record, path


def test_where_both_models_do_not_fit_one_is_timed_after_the_other(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    grid = Grid([3, 5], [2], repeats=2, check_tokens=0)
    record = measure_performance(
        tiny_folder, tiny_w8a8_folder, grid, run_folder=tmp_path, memory="one", device="cpu"
    )
    samples = read_samples(tmp_path / "samples.jsonl")
    found = [(s.precision, s.repeat, s.input_tokens) for s in samples]
    floats = [(name, r, i) for r in (0, 1) for i in (3, 5) for name in FLOATS]
    assert found == [*floats, *(("w8a8", r, i) for r in (0, 1) for i in (3, 5))]
    assert [size.precision for size in record.sizes] == [*FLOATS, "w8a8"]
    assert not record.in_turn


@pytest.mark.skipif(library.library() is None, reason=library.description())
def test_keys_and_values_in_half_precision_halve_the_bytes_of_the_limit_and_are_said(
    run: tuple[PerformanceRecord, Path], tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    grid = Grid([3], [4], repeats=1, check_tokens=0)
    half = measure_performance(
        tiny_folder, tiny_w8a8_folder, grid, run_folder=tmp_path, cache_dtype="bfloat16", device="cpu"
    )
    of = {
        record.cache_dtype: {size.precision: size.cache_bytes_per_token for size in record.sizes}
        for record in (run[0], half)
    }
    assert of["bfloat16"] == {
        name: size if name == TRANSFORMERS else size // 2 for name, size in of["auto"].items()
    }
    said = "The engine kept keys and values of both in bfloat16."
    assert said in performance_tables.verdict(half)
    assert said not in performance_tables.verdict(run[0])


def test_every_case_is_timed_as_often_as_asked_in_both_precisions(
    run: tuple[PerformanceRecord, Path],
) -> None:
    samples = read_samples(run[1])
    found = [(s.repeat, s.input_tokens, s.output_tokens, s.precision) for s in samples]
    cases = [(3, 1), (3, 4), (7, 1), (7, 4)]
    names = ("float", "w8a8", *FLOATS[1:])
    assert found == [(r, i, o, name) for r in (0, 1) for i, o in cases for name in names]


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
    assert record.peaks is not None
    found = summarize(read_samples(path), record.sizes, record.peaks)
    assert record.cases == [case for case in found if case.precision != TRANSFORMERS]
    assert record.transformers == [case for case in found if case.precision == TRANSFORMERS]
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


def test_batches_are_timed_with_exact_counts_beside_batch_1(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "samples.jsonl"
    record = measure_performance(
        tiny_folder,
        tiny_w8a8_folder,
        Grid([3], [1, 4], batch_sizes=[3, 1], repeats=1, check_tokens=4),
        run_folder=path.parent,
        device="cpu",
    )
    found = [(s.batch, s.output_tokens) for s in read_samples(path) if s.precision == "float"]
    assert found == [(3, 1), (3, 4), (1, 1), (1, 4)]
    for timed in read_samples(path):
        assert timed.tokens_per_second == timed.batch * timed.output_tokens / timed.seconds
    assert (record.batch, len(record.cases)) == (1, 8)
    assert {case.batch for case in record.grid_cases} == {1}
    assert [(c.compared, c.equal, c.runs_agree) for c in record.id_checks] == [(4, 4, True)]


def test_every_row_of_a_batch_gives_the_ids_of_the_prompt_alone(tiny_folder: Path) -> None:
    model, prompt = load_model(tiny_folder, "cpu"), [5, 6, 7]
    alone, found = generate(model, prompt, 6).token_ids, generate_copies(model, prompt, 4, 6)
    assert [found.token_ids, *found.other_rows] == [alone] * 4
    assert (found.batch, found.prompt_tokens, len(found.token_times)) == (4, 3, 6)
    assert found.token_times == sorted(found.token_times)
    assert found.tokens_per_second == 24 / found.seconds


def test_a_generation_counts_from_the_start_of_the_prefill() -> None:
    run = Generation(prompt_tokens=5, token_ids=[1, 2, 3, 4], token_times=[2.0, 3.0, 4.0, 8.0])
    assert (run.seconds, run.time_to_first_token, run.time_per_output_token) == (8.0, 2.0, 2.0)
    assert run.tokens_per_second == 0.5


def test_ids_generated_while_timing_are_those_of_transformers_generate(
    run: tuple[PerformanceRecord, Path],
) -> None:
    checks = run[0].id_checks
    assert [(c.input_tokens, c.compared, c.equal, c.runs_agree) for c in checks] == [
        (3, 3, 3, True),
        (7, 3, 3, True),
    ]


def test_transformers_own_loop_is_timed_on_the_float_model_at_batch_1_only(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    grid = Grid([3], [4], batch_sizes=[1, 2], repeats=1, check_tokens=0)
    record = measure_performance(tiny_folder, tiny_w8a8_folder, grid, run_folder=tmp_path, device="cpu")
    assert [case.case for case in record.transformers] == [Case(3, 4)] * (len(FLOATS) - 1)
    assert {case.precision for case in record.cases} == {"float", "w8a8"}
    reads = {size.precision: size.read_bytes_per_token for size in record.sizes}
    assert all(reads[name] >= reads["float"] > reads["w8a8"] for name in FLOATS)


def test_the_loop_of_transformers_gives_the_ids_of_the_float_engine_with_a_time_each(
    tiny_folder: Path,
) -> None:
    model, prompt = load_model(tiny_folder, "cpu"), [5, 6, 7]
    found = generate_by_transformers(model, prompt, 6)
    assert found.token_ids == generate(model, prompt, 6).token_ids
    assert len(found.token_times) == 6
    assert found.token_times == sorted(found.token_times)


def test_ids_of_a_changed_answer_do_not_pass(tiny_w8a8_folder: Path) -> None:
    model, prompt = load_model(tiny_w8a8_folder, "cpu"), [5, 6, 7]
    ids = generate(model, prompt, 4).token_ids
    changed = [*ids[:2], ids[2] + 1, ids[3]]
    answers = [(3, changed), (3, ids[:1])]
    (check,) = check_ids(model, prompt, answers, tokens=4)
    assert (check.compared, check.equal, check.runs_agree) == (4, 2, True)
    (check,) = check_ids(model, prompt, [*answers, (3, ids[:3])], tokens=4)
    assert not check.runs_agree


def test_a_case_without_memory_is_left_out_and_recorded_and_the_others_run(
    tiny_folder: Path,
    tiny_w8a8_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = read_config(tiny_folder)
    monkeypatch.setattr(cpu, "free_memory_bytes", lambda: case_bytes(config, Case(3, 4), 4))
    path = tmp_path / "samples.jsonl"
    record = measure_performance(
        tiny_folder,
        tiny_w8a8_folder,
        Grid([3, 300], [4], repeats=1, check_tokens=0),
        run_folder=path.parent,
        device="cpu",
    )
    assert {(case.input_tokens, case.output_tokens) for case in record.cases} == {(3, 4)}
    (skipped,) = record.skipped
    assert (skipped.input_tokens, skipped.output_tokens) == (300, 4)
    said = capsys.readouterr().out
    assert "left out: input 300, output 4 tokens: needs" in said
    assert "1 case, 1 times in 2 precisions" in said


def test_each_sample_is_on_disk_before_the_next_is_timed(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is broken off keeps what it has measured."""
    path, on_disk = partial_samples(tmp_path / "samples.jsonl"), []

    def generate_or_break(*arguments: Any, **options: Any) -> Generation:
        on_disk.append(len(path.read_text(encoding="utf-8").splitlines()))
        if len(on_disk) == 6:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr("telechat_kit.performance.timed_runs.generate", generate_or_break)
    with pytest.raises(KeyboardInterrupt):
        measure_performance(
            tiny_folder, tiny_w8a8_folder, Grid([3], [2], check_tokens=0), run_folder=tmp_path, device="cpu"
        )
    each = len(FLOATS) + 1  # transformers' own loop comes behind float and W8A8
    assert on_disk == [0, 0, 0, 1, each, each + 1]  # both warm up first
    assert not (tmp_path / "samples.jsonl").exists()


def test_a_broken_off_measurement_goes_on_behind_its_last_run(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 2 + 3  # both warm up

    def generate_or_break(*arguments: Any, **options: Any) -> Generation:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    def measure(repeats: int = 2) -> PerformanceRecord:
        return measure_performance(
            tiny_folder,
            tiny_w8a8_folder,
            Grid([3], [2], repeats=repeats, check_tokens=2),
            run_folder=tmp_path,
            device="cpu",
        )

    monkeypatch.setattr("telechat_kit.performance.timed_runs.generate", generate_or_break)
    with pytest.raises(KeyboardInterrupt):
        measure()
    part = partial_samples(tmp_path / "samples.jsonl")
    before = [json.loads(line)["sample"] for line in part.read_text(encoding="utf-8").splitlines()]
    part.write_text(part.read_text(encoding="utf-8") + '{"key": "cut o', encoding="utf-8")
    left = 2 + 1  # the run that is missing
    record = measure()
    samples = read_samples(tmp_path / "samples.jsonl")
    assert record.resumed == len(before) == len(FLOATS) + 2
    assert [asdict(sample) for sample in samples[: len(before)]] == before
    names = ("float", "w8a8", *FLOATS[1:])
    assert [(s.precision, s.repeat) for s in samples] == [(name, r) for r in (0, 1) for name in names]
    assert [(c.compared, c.equal) for c in record.id_checks] == [(2, 2)]
    assert not part.exists()


def test_energy_of_the_package_stands_in_samples_cases_and_record(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone, path = tmp_path / "intel-rapl:0", tmp_path / "samples.jsonl"
    zone.mkdir()
    for file, text in {"name": "package-0", "max_energy_range_uj": 10**9, "energy_uj": 0}.items():
        (zone / file).write_text(f"{text}\n")

    def generate_with_a_joule(*arguments: Any, **options: Any) -> Generation:
        used = int((zone / "energy_uj").read_text()) + 1_000_000
        (zone / "energy_uj").write_text(f"{used}\n")
        return generate(*arguments, **options)

    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr("telechat_kit.performance.timed_runs.generate", generate_with_a_joule)
    record = measure_performance(
        tiny_folder,
        tiny_w8a8_folder,
        Grid([3], [4], repeats=2, check_tokens=0),
        run_folder=path.parent,
        device="cpu",
    )
    assert record.energy_basis == "the counter of 1 CPU package (RAPL)"
    assert [s.joules for s in read_samples(path) if s.precision != TRANSFORMERS] == [1.0] * 4
    assert [case.joules_per_token and case.joules_per_token.value for case in record.cases] == [0.25] * 2
    write_record(tmp_path, record)
    assert read_record(tmp_path, PerformanceRecord, SCHEMA) == record


def test_runs_of_other_work_are_not_taken_over(tmp_path: Path) -> None:
    run = Generation(prompt_tokens=3, token_ids=[1, 2], token_times=[0.1, 0.2])
    Journal(tmp_path / "samples.jsonl", "this").write(sample_of("w8a8", 0, run), run)
    same, other = (Journal(tmp_path / "samples.jsonl", key) for key in ("this", "other"))
    assert same.sample(Run("w8a8", Case(3, 2), 0)) == sample_of("w8a8", 0, run)
    assert same.answers("w8a8") == [(3, [1, 2])]
    assert other.sample(Run("w8a8", Case(3, 2), 0)) is None
    assert same.sample(Run("w8a8", Case(3, 2, batch=2), 0)) is None
    assert same.sample(Run("w8a8", Case(3, 2), 0, threads=1)) is None


@pytest.mark.parametrize(
    ("grid", "graph", "error", "message"),
    [
        (Grid([600], [1]), "none", ParameterError, "512, the context of the model"),
        (Grid([], [1]), "none", ParameterError, "give no case"),
        (Grid(repeats=0), "none", ParameterError, "at least once"),
        (Grid(batch_sizes=[1, 0]), "none", ParameterError, r"batch_sizes is \[1, 0\]"),
        (Grid(batch_sizes=[2]), "capture", ParameterError, "runs one sequence"),
        (Grid([300], [1]), "none", DataError, "has 50 tokens, the longest case needs 300"),
    ],
)
def test_a_case_that_cannot_be_run_leaves_earlier_samples_untouched(
    tiny_folder: Path,
    tiny_w8a8_folder: Path,
    tmp_path: Path,
    grid: Grid,
    graph: str,
    error: type[Exception],
    message: str,
) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "samples.jsonl"
    text.write_text("x" * 50)
    path.write_text("earlier")
    with pytest.raises(error, match=message):
        measure_performance(
            tiny_folder,
            tiny_w8a8_folder,
            replace(grid, text_path=str(text)),
            run_folder=tmp_path,
            graph=graph,
            device="cpu",
        )
    assert path.read_text() == "earlier"


def test_the_published_table_is_that_of_the_guide() -> None:
    table = {(row.input_tokens, row.output_tokens): (row.npu_310p, row.gpu_a10) for row in PUBLISHED}
    assert table == {
        (100, 100): (15, 21),
        (1000, 100): (13, 24),
        (2000, 100): (11, 19),
        (None, None): (13, 18),
    }

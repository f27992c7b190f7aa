"""What 04_performance shows: sentences that follow from the record, and charts whose titles do."""

from dataclasses import replace
from pathlib import Path

import pytest
from pandas.io.formats.style import Styler

from telechat_kit.backends.cores import Busy
from telechat_kit.inference.launches import Launches
from telechat_kit.performance.cases import Grid, SkippedCase
from telechat_kit.performance.id_checks import IdCheck
from telechat_kit.performance.measurement import PerformanceRecord, measure_performance
from telechat_kit.performance.roofline import Peaks, decode_seconds, prefill_seconds
from telechat_kit.performance.thread_scaling import ThreadResult, ThreadScaling
from telechat_kit.reports import performance_charts, performance_tables, thread_views
from telechat_kit.reports.charts import Chart
from telechat_kit.statistics import Estimate


@pytest.fixture(scope="module")
def record(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> PerformanceRecord:
    path = tmp_path_factory.mktemp("views") / "samples.jsonl"
    return measure_performance(
        tiny_folder,
        tiny_w8a8_folder,
        Grid([3, 7], [1, 4], repeats=2, check_tokens=2),
        run_folder=path.parent,
        device="cpu",
    )


@pytest.mark.parametrize("chart", ["roofline", "heat_map", "context_cost"])
def test_every_chart_is_drawn_and_has_words_for_those_who_cannot_see_it(
    record: PerformanceRecord, chart: str
) -> None:
    drawn = getattr(performance_charts, chart)(record)
    assert drawn.png().startswith(b"\x89PNG")
    assert len(drawn.alt) > 40


def test_charts_are_drawn_where_only_the_bandwidth_is_known_and_every_answer_is_one_token(
    record: PerformanceRecord,
) -> None:
    single = [case for case in record.cases if case.output_tokens == 1]
    bare = replace(record, cases=single, peaks=Peaks(1e9, "data sheet"))
    assert "prefill" in performance_charts.roofline(bare).alt
    assert "decode" not in performance_charts.limit_shares(bare, "w8a8")
    assert performance_charts.context_cost(bare).alt.startswith("No case has tokens behind the first")


def test_shares_of_the_limit_are_least_times_over_measured_ones(record: PerformanceRecord) -> None:
    (case,) = [c for c in record.cases if (c.precision, c.input_tokens, c.output_tokens) == ("w8a8", 7, 4)]
    size = next(size for size in record.sizes if size.precision == "w8a8")
    assert record.peaks is not None and case.time_per_output_token is not None
    found = performance_charts.limit_shares(replace(record, cases=[case]), "w8a8")
    assert found["prefill"] == prefill_seconds(size, record.peaks, 7) / case.time_to_first_token.value
    assert found["decode"] == decode_seconds(size, record.peaks, 9) / case.time_per_output_token.value


def test_the_cost_of_batches_is_drawn_where_several_were_timed(record: PerformanceRecord) -> None:
    said = performance_charts.batch_cost(record)
    assert isinstance(said, Styler) and "only batch 1 was timed" in said.to_html()
    twice = [
        replace(case, batch=4, tokens_per_second=case.tokens_per_second.map(lambda speed: 2 * speed))
        for case in record.cases
    ]
    both = replace(record, cases=[*record.cases, *twice])
    drawn = performance_charts.batch_cost(both)
    assert isinstance(drawn, Chart) and drawn.png().startswith(b"\x89PNG")
    assert "W8A8 generates 2.00 times the tokens per second at batch 4 as at batch 1" in drawn.alt
    assert performance_tables.verdict(both) == performance_tables.verdict(record)
    for chart in (performance_charts.heat_map, performance_charts.context_cost, performance_charts.roofline):
        assert chart(both).alt == chart(record).alt


def with_threads(record: PerformanceRecord, counts: list[int], left_out: list[int]) -> PerformanceRecord:
    """Speeds that grow with the square root of the threads in W8A8, half as much in float."""

    def result(name: str, count: int) -> ThreadResult:
        case = next(case for case in record.cases if case.precision == name)
        factor = count**0.5 if name == "w8a8" else (1 + count**0.5) / 2
        speed = case.tokens_per_second.map(lambda value: factor * value)
        return ThreadResult(name, count, 2, speed, case.time_to_first_token, None, unstable=count == 4)

    results = [result(name, count) for count in counts for name in ("float", "w8a8")]
    return replace(record, threads=ThreadScaling(3, 4, 1, 4, results, left_out, "why"))


def test_the_cost_of_threads_is_drawn_with_its_finding_and_its_table(record: PerformanceRecord) -> None:
    found = with_threads(record, [4, 1], [])
    drawn = thread_views.thread_cost(found)
    assert isinstance(drawn, Chart) and drawn.png().startswith(b"\x89PNG")
    assert drawn.alt.startswith("4 threads: 2.00 times one thread in W8A8, 1.50 times one thread in float.")
    assert "Input 3, output 4 tokens, batch 1" in drawn.alt
    table = thread_views.thread_table(found).data
    assert list(table["threads"]) == [1, 4, 1, 4]
    assert list(table["times the fewest threads"]) == pytest.approx([1, 1.5, 1, 2])
    assert list(table["note"]) == ["", "unstable"] * 2


@pytest.mark.parametrize(
    ("counts", "left_out", "said"),
    [
        ([1], [], "only one thread timed: thread_counts names more"),
        ([1], [8], "only one thread timed, left out were 8 threads: why"),
        ([], [8, 16], "not measured, left out were 8, 16 threads: why"),
    ],
)
def test_too_few_thread_counts_to_draw_are_said(
    record: PerformanceRecord, counts: list[int], left_out: list[int], said: str
) -> None:
    found = with_threads(record, counts, left_out)
    shown = thread_views.thread_cost(found)
    assert isinstance(shown, Styler) and said in shown.to_html()
    assert len(thread_views.thread_table(found).data) == 2 * len(counts)


def test_a_record_without_thread_counts_says_how_to_get_them(record: PerformanceRecord) -> None:
    shown = thread_views.thread_cost(record)
    assert isinstance(shown, Styler) and "not measured: thread_counts names" in shown.to_html()
    assert len(thread_views.thread_table(record).data) == 0


def test_the_verdict_names_the_device_and_both_figures(record: PerformanceRecord) -> None:
    steady = replace(record, cases=[replace(case, unstable=False) for case in record.cases])
    first, *engine, last = performance_tables.verdict(steady).splitlines()
    assert record.conditions.device_name in first and "4 cases" in first
    assert all("transformers' generate() on the same float weights" in line for line in engine)
    assert len(engine) == (len(record.transformers) > 0)
    assert last.startswith("Of what the memory and the arithmetic of the device allow, W8A8 reaches ")


@pytest.mark.parametrize(
    ("drift", "expected"),
    [
        (0.01, "+1.0%, no drift"),
        (0.2, "+20.0%, the device was busy or throttled"),
        (-0.2, "-20.0%, the device was busy at first"),
        (None, "would not show"),
    ],
)
def test_a_drift_is_said(record: PerformanceRecord, drift: float | None, expected: str) -> None:
    assert expected in performance_tables.doubts(replace(record, drift=drift))


def test_unstable_cases_and_ids_that_differ_are_said(record: PerformanceRecord) -> None:
    first, *rest = [replace(case, unstable=False) for case in record.cases]
    checks = [IdCheck(3, 4, 4, True), IdCheck(7, 4, 2, True), IdCheck(9, 4, 4, False)]
    found = replace(record, cases=[replace(first, unstable=True), *rest], id_checks=checks)
    said = performance_tables.doubts(found)
    assert "1 of 8 rows vary by more than 10%" in said
    assert "behind 1 of 3 prompts the timed ids are those of generate()" in said
    assert ">unstable<" in performance_tables.cases(found).to_html()
    assert "no case varies" in performance_tables.doubts(
        replace(record, cases=[replace(first, unstable=False), *rest])
    )


def test_energy_has_a_column_and_a_sentence_only_where_it_was_read(record: PerformanceRecord) -> None:
    silent = replace(record, cases=[replace(case, joules_per_token=None) for case in record.cases])
    none = replace(silent, energy_basis="no counter under /here")
    assert "energy per token" not in performance_tables.cases(none).to_html()
    assert "Energy: not reported by this device (no counter under /here)." in performance_tables.doubts(none)
    assert "nergy" not in performance_tables.doubts(replace(silent, energy_basis=""))  # of an earlier kit
    first, *rest = silent.cases
    measured = replace(first, joules_per_token=Estimate(0.4567, 0.4, 0.5, 0.75))
    some = replace(silent, cases=[measured, *rest], energy_basis="the counter of 1 CPU package (RAPL)")
    shown = performance_tables.cases(some).to_html()
    assert ">energy per token, J<" in shown and ">0.457<" in shown
    said = performance_tables.doubts(some).splitlines()[-1]
    assert said.startswith(
        "Energy per token is that of the whole device, other programs included: the counter"
    )


def test_starts_of_operators_are_told_beside_the_bytes_or_that_none_were_counted(
    record: PerformanceRecord,
) -> None:
    assert performance_tables.launches(record).startswith("No starts of operators were counted")
    counted = [Launches("float", 10, 400, 366), Launches("w8a8", 10, 500, 1486)]
    size = replace(record.sizes[0], precision="float", read_bytes_per_token=2 * 10**9)
    int8 = replace(size, precision="w8a8", read_bytes_per_token=10**9)
    found = replace(
        record,
        launches=counted,
        launch_seconds=2e-5,
        sizes=[size, int8],
        read_bandwidth=1e11,
        read_bandwidth_basis="data sheet",
    )
    first, second = performance_tables.launches(found).splitlines()
    assert "a token starts 366 operators, 7.3 ms at 20.0 µs each (measured with small sums)" in first
    assert "its bytes take 20.0 ms (data sheet). A prompt of 10 tokens starts 400." in first
    assert "1,486 operators, 29.7 ms" in second and "take 10.0 ms" in second


def test_left_out_cases_stand_in_their_table(record: PerformanceRecord) -> None:
    found = replace(record, skipped=[SkippedCase(5, 9, "needs 3.00 GB")])
    assert "needs 3.00 GB" in performance_tables.skipped(found).to_html()
    assert "<td" in performance_tables.id_checks(record).to_html()


def test_a_busy_machine_is_said(record: PerformanceRecord) -> None:
    assert record.busy is not None
    quiet, busy = (performance_tables.doubts(replace(record, busy=Busy(2, taken))) for taken in (0.01, 1.2))
    assert "other programs took 0.01 of 2 cores meanwhile" in quiet.splitlines()
    assert "other programs took 1.20 of 2 cores meanwhile: the figures are those of a busy machine" in busy
    assert "other programs" not in performance_tables.doubts(replace(record, busy=None))

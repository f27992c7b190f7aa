"""Tables, charts and the verdict of `03_precision` from a record of the tiny model."""

from dataclasses import replace
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from telechat_kit.comparison.alignment import compare_bundles
from telechat_kit.comparison.verdict import losses
from telechat_kit.precision import Answer, Evaluation, PrecisionRecord, TaskResult, measure_precision
from telechat_kit.reports import precision_charts, precision_tables
from telechat_kit.reports.charts import Chart
from telechat_kit.reports.precision_tables import marked_fork
from telechat_kit.statistics import Estimate

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def record(tiny_folder: Path, tiny_w8a8_folder: Path, run_folder: Path) -> PrecisionRecord:
    lines = run_folder / "questions.jsonl"
    lines.write_text('{"input": "one"}\n{"input": "two"}\n')
    return measure_precision(
        tiny_folder,
        tiny_w8a8_folder,
        Evaluation(
            lines,
            text_sequences=4,
            text_tokens=48,
            max_new_tokens=4,
            kind_sequences=2,
            kind_tokens=48,
            languages_path="params/data/texts-zh-en.jsonl",
            source_sequences=2,
        ),
        bundle="w8a8",
        run_folder=run_folder,
        device="cpu",
    )


def with_ratio(record: PrecisionRecord, low: float, value: float, high: float) -> PrecisionRecord:
    ratio = Estimate(value, low, high, 0.95)
    divergence = replace(record.divergence, perplexity_ratio=ratio)
    return replace(record, divergence=divergence, kinds=[], languages=[])


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        ((1.01, 1.02, 1.03), "perplexity rises by 2.0 [1.0, 3.0] %"),
        ((0.95, 0.96, 0.97), "perplexity falls by 4.0 [3.0, 5.0] %"),
        ((0.99, 1.01, 1.03), "no difference of perplexity is shown (change [-1, +3] %)"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(
    record: PrecisionRecord, ratio: tuple[float, float, float], words: str
) -> None:
    text = str(precision_tables.verdict(with_ratio(record, *ratio)))
    assert words in text
    assert "of 2 answers are the same to the last token" in text


def test_every_text_has_a_row_the_worst_first(record: PrecisionRecord) -> None:
    html = precision_tables.texts(record).to_html()
    rows = [row.find_all("td") for row in BeautifulSoup(html, "html.parser").find_all("tr")[1:]]
    named = [row[0].get_text() for row in rows]
    kinds = {"Chinese", "English", "code", "chat", "documentation", "pydoc_data.topics"}
    assert set(named) == kinds | {"Chinese lines", "English lines"}
    means = {loss.text: loss.kl.value for loss in losses(record)}
    assert named == sorted(named, key=lambda name: -means[name])
    alike = {row[0].get_text() for row in rows if row[1].get_text() == "yes"}
    assert alike == {"pydoc_data.topics"}


def test_every_chart_states_its_finding(record: PrecisionRecord) -> None:
    charts = [
        precision_charts.texts(record),
        precision_charts.divergence_quantiles(record),
        precision_charts.probability_change(record),
        precision_charts.by_position(record),
        precision_charts.linear_sources(record.sources),
        precision_charts.residual_stream(record.sources),
        precision_charts.kept_in_float(record.sources),
    ]
    for chart in charts:
        assert isinstance(chart, Chart)
        assert chart.png().startswith(b"\x89PNG")
        assert len(chart.alt) > 30


def test_what_was_not_measured_is_said(record: PrecisionRecord) -> None:
    bare = replace(record, sources=None, tasks=[])
    assert precision_charts.linear_sources(None) is None
    assert precision_charts.kept_in_float(None) is None
    for shown in (
        precision_tables.sources(None),
        precision_tables.tasks(bare),
        precision_tables.alignment(None),
    ):
        assert "(" in str(shown) and "is" in str(shown)


def test_tables_show_figures_and_intervals(record: PrecisionRecord, run_folder: Path) -> None:
    assert record.sources is not None
    result = TaskResult(
        "all",
        8,
        Estimate(0.5, 0.2, 0.8, 0.95),
        Estimate(0.25, 0.1, 0.6, 0.95),
        Estimate(-0.25, -0.6, 0.2, 0.95),
        0.5,
        "",
    )
    for table, expected in [
        (precision_tables.divergence(record), f"{record.divergence.kl_mean.value:.4f}"),
        (precision_tables.groups(record.divergence.by_position, "positions"), "16–31"),
        (precision_tables.texts(record), "documentation"),
        (precision_tables.sources(record.sources), "down_proj"),
        (precision_tables.kept_in_float(record.sources), "change, measured"),
        (precision_tables.tasks(replace(record, tasks=[result])), "-25.0"),
        (precision_tables.alignment(compare_bundles(run_folder, run_folder)), "aligned"),
    ]:
        html = table.to_html() if hasattr(table, "to_html") else str(table.markup)
        assert expected in html
        assert "nan" not in html


@pytest.mark.parametrize(
    ("first", "second", "marks"),
    [
        ("the cat sat", "the dog sat", (" cat", " dog")),
        ("a process called", "a precise thing", (" process", " precise")),
        ("天空是蓝色的", "天空是红色的", ("蓝", "红")),
        ("the cat", "the cat sat", (None, " sat")),
        ("same", "same", (None, None)),
        ("", "word", (None, "word")),
    ],
)
def test_the_word_where_answers_part_is_marked_and_nothing_behind_it(
    first: str, second: str, marks: tuple[str | None, str | None]
) -> None:
    for marked, text, mark in zip(marked_fork(first, second), (first, second), marks, strict=True):
        soup = BeautifulSoup(marked, "html.parser")
        assert [found.get_text() for found in soup.find_all("mark")] == ([mark] if mark else [])
        assert soup.get_text() == text


def test_text_of_models_is_escaped() -> None:
    for marked, word in zip(marked_fork(f"{HOSTILE} cat", f"{HOSTILE} dog"), ("cat", "dog"), strict=True):
        soup = BeautifulSoup(marked, "html.parser")
        assert soup.find("script") is None
        assert soup.get_text() == f"{HOSTILE} {word}"


@pytest.mark.parametrize(
    ("w8a8", "differs", "said"),
    [("Paris.", None, "yes"), ("paris", " p", "in the same words"), ("Rome.", " R", "no")],
)
def test_whether_both_say_the_same(w8a8: str, differs: str | None, said: str) -> None:
    answer = Answer("Which city?", "Paris.", w8a8, 2, 2, 2, 1.0, None, differs)
    assert precision_tables.same_said(answer) == said


def test_answers_show_where_they_part(record: PrecisionRecord) -> None:
    answer = Answer(HOSTILE, "left", "right", 3, 5, 4, 0.5, " l", None)
    page = str(precision_tables.answers(replace(record, answers=[answer])).markup)
    soup = BeautifulSoup(page, "html.parser")
    cells = [cell.get_text() for cell in soup.find_all("td")]
    assert cells[0] == HOSTILE
    assert cells[3:5] == ["no", "3 / 5"]
    assert soup.find("script") is None

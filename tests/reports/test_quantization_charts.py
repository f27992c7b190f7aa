"""Charts and tables of a quantization: the title states the finding, what is not known is said to be so."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from telechat_kit.quantization import Calibration, QuantizeRecord, Recipe, quantize
from telechat_kit.reports import quantization_charts as layers
from telechat_kit.reports import quantization_tables
from telechat_kit.reports.charts import Chart, log_axis, new_axes

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def record(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeRecord:
    """A quantization of 4 blocks with the error of each int8 linear filled in: 30 dB, one of 12 dB."""
    folder = tmp_path_factory.mktemp("quantized") / "w8a8"
    made = quantize(
        tiny_folder,
        folder,
        Recipe(level="L2", anti_outlier="m1"),
        Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
    )
    rows = [replace(row, output_snr_db=30.0 if row.kind == "W8A8" else None) for row in made.linears]
    worst = next(
        i for i, row in enumerate(rows) if row.kind == "W8A8" and row.name.endswith("h.2.mlp.up_proj")
    )
    rows[worst] = replace(rows[worst], output_snr_db=12.0)
    return replace(made, linears=rows)


def unmeasured(record: QuantizeRecord) -> QuantizeRecord:
    names = ("input_absmax", "input_median", "raw_absmax", "raw_median", "output_snr_db", "score")
    rows = [replace(row, **dict.fromkeys(names)) for row in record.linears]
    return replace(record, linears=rows, float_linears=[replace(r, score=None) for r in record.float_linears])


def test_the_least_exact_linear_is_in_the_title(record: QuantizeRecord) -> None:
    chart = layers.per_layer_error(record)
    assert chart.png().startswith(PNG)
    assert chart.alt.startswith("The least exact int8 linear is up_proj 2: 12.0 dB above its error")


def test_the_largest_outlier_is_in_the_title(record: QuantizeRecord) -> None:
    before, after = (
        max(getattr(row, f"{kind}_absmax") / getattr(row, f"{kind}_median") for row in record.linears)
        for kind in ("raw", "input")
    )
    assert (
        f"up to {after:,.0f} times the median one; without suppression {before:,.0f}"
        in layers.outliers(record).alt
    )


def test_the_widest_input_is_in_the_title(record: QuantizeRecord) -> None:
    rows = [
        replace(row, raw_absmax=(row.raw_absmax or 0) * (50 if row.name.endswith("h.1.mlp.gate_proj") else 1))
        for row in record.linears
    ]
    changed = replace(record, linears=rows)
    widest = max(row.raw_absmax or 0 for row in rows)
    alt = layers.input_ranges(changed).alt
    assert alt.startswith(f"Suppression brings the widest input from {widest:,.1f} (gate_proj 1)")


@pytest.mark.parametrize("chart", [layers.outliers, layers.input_ranges, layers.per_layer_error])
def test_what_was_not_measured_is_not_drawn(chart: object, record: QuantizeRecord) -> None:
    drawn = chart(unmeasured(record))  # type: ignore[operator]
    assert "not measured" in drawn.alt
    assert drawn.png().startswith(PNG)


def test_scores_that_are_not_known_are_said_to_be_so(record: QuantizeRecord) -> None:
    assert "not known" in layers.sensitivity(unmeasured(record)).alt
    assert "largest outliers" in layers.sensitivity(record).alt


def test_smoothing_is_seen_in_the_inputs_that_norms_feed_alone(record: QuantizeRecord) -> None:
    for row in record.linears:
        smoothed = not row.name.endswith(("dense", "down_proj"))
        assert (row.raw_absmax != row.input_absmax) == smoothed, row.name
        assert row.dead_inputs == row.dead_outputs == 0


def test_the_table_of_linears_has_a_row_a_kind_and_no_empty_column(record: QuantizeRecord) -> None:
    known = replace(record, linears=[replace(row, clipped_share=None) for row in record.linears])
    table = BeautifulSoup(quantization_tables.linears(known).to_html(), "html.parser")
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in table.select("tbody tr")]
    assert [row[0] for row in rows] == ["query", "key_value", "dense", "gate_proj", "up_proj", "down_proj"]
    assert "12.0" in rows[4]
    heads = [head.get_text() for head in table.select("thead th")]
    assert any("dB" in head for head in heads)
    assert not any("clipped" in head for head in heads)


def test_dead_channels_are_listed_by_linear(record: QuantizeRecord) -> None:
    assert "none" in quantization_tables.dead_channels(record).to_html()
    rows = [replace(record.linears[0], dead_inputs=3), *record.linears[1:]]
    shown = quantization_tables.dead_channels(replace(record, linears=rows)).to_html()
    assert "h.0.self_attention.query" in shown
    assert "none" not in shown


def under_llamas_names(record: QuantizeRecord) -> QuantizeRecord:
    """The record as TeleChat3's would be: the same figures, keys and values apart."""
    names = {
        "self_attention.query": ["self_attn.q_proj"],
        "self_attention.key_value": ["self_attn.k_proj", "self_attn.v_proj"],
        "self_attention.dense": ["self_attn.o_proj"],
    }
    rows = []
    for row in record.linears:
        block, local = row.name.removeprefix("transformer.h.").split(".", 1)
        rows += [replace(row, name=f"model.layers.{block}.{name}") for name in names.get(local, [local])]
    return replace(record, linears=rows)


@pytest.mark.parametrize(
    "chart", [layers.outliers, layers.input_ranges, layers.per_layer_error, layers.sensitivity]
)
def test_charts_know_the_linears_of_telechat3(chart: Any, record: QuantizeRecord) -> None:
    renamed, drawn = under_llamas_names(record), []
    for each in (record, renamed):
        drawn.append(chart(each).svg())
    assert "q_proj" in drawn[1]
    assert "query" not in drawn[1]
    assert "query" in drawn[0]


def test_the_table_has_a_row_for_keys_and_one_for_values(record: QuantizeRecord) -> None:
    table = BeautifulSoup(quantization_tables.linears(under_llamas_names(record)).to_html(), "html.parser")
    rows = [row.find("td").get_text() for row in table.select("tbody tr")]
    assert rows == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_a_short_logarithmic_axis_has_plain_numbers() -> None:
    figure, axes = new_axes()
    axes.plot([0, 1], [1.2, 9.0])
    log_axis(axes, "y")
    drawn = str(Chart(figure, "").svg())
    assert "mathdefault" not in drawn
    assert re.search(r">2</text>", drawn), "between the powers of ten too"

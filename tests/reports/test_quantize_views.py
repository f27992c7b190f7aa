"""What the notebook shows of a quantization, static or dynamic."""

from dataclasses import replace
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from pandas.io.formats.style import Styler

from telechat_kit.quantization import Calibration, QuantizeRecord, Recipe, quantize
from telechat_kit.quantization.beside_m1 import BesideM1
from telechat_kit.quantization.recipe import parse_ingredients
from telechat_kit.records import read_record, write_record
from telechat_kit.reports import quantization_tables, recipe_tables
from telechat_kit.statistics import Estimate


@pytest.fixture(scope="module", params=["static", "dynamic"])
def record(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> QuantizeRecord:
    folder = tmp_path_factory.mktemp("views") / "w8a8"
    return quantize(
        tiny_folder,
        folder,
        Recipe(level="L2", anti_outlier="m1", activations=request.param),
        Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
    )


def test_the_recipe_says_how_activations_are_quantized(record: QuantizeRecord) -> None:
    shown = quantization_tables.recipe(record).to_html()
    expected = {"static": "static, min-max range", "dynamic": "dynamic, one scale for each token"}
    assert expected[record.recipe.activations] in shown
    assert "22 of 24" in shown


def test_the_record_is_read_back_and_one_without_activations_is_static(
    record: QuantizeRecord, tmp_path: Path
) -> None:
    write_record(tmp_path, record)
    assert read_record(tmp_path, QuantizeRecord, record.schema).recipe == record.recipe
    path = tmp_path / "quantize.json"
    path.write_text(path.read_text().replace('"activations"', '"unknown"'))
    assert read_record(tmp_path, QuantizeRecord, record.schema).recipe.activations == "static"


def test_the_share_of_each_kind_of_text_is_said(record: QuantizeRecord) -> None:
    assert record.recipe is not None
    assert "kind Chinese" not in quantization_tables.calibration(record).to_html()
    kinds = [{"kind": "zh", "tokens": 72}, {"kind": "code", "tokens": 24}]
    shares = replace(record, recipe=replace(record.recipe, calibration_kinds=kinds))
    soup = BeautifulSoup(quantization_tables.calibration(shares).to_html(), "html.parser")
    cells = [[cell.get_text() for cell in row.find_all("td")] for row in soup.find_all("tr")[1:]]
    told = {row[0]: row[1] for row in cells}
    assert (told["kind Chinese"], told["kind code"]) == ("72 tokens, 75%", "24 tokens, 25%")


@pytest.mark.parametrize(("length", "shredded"), [(1.0, True), (1.2, True), (3.4, False)])
def test_a_language_that_the_tokenizer_shreds_into_bytes_is_said(
    record: QuantizeRecord, length: float, shredded: bool
) -> None:
    assert record.recipe is not None
    kinds = [{"kind": "zh", "tokens": 96, "bytes_per_token": length}]
    table = quantization_tables.calibration(
        replace(record, recipe=replace(record.recipe, calibration_kinds=kinds))
    )
    assert f"{length:.1f} bytes a token" in cells(table)
    assert ("little more than the bytes" in cells(table)) is shredded


def cells(table: Styler) -> str:
    return " | ".join(map(str, table.data.to_numpy().ravel()))


def test_each_choice_has_its_sentence(record: QuantizeRecord) -> None:
    assert record.recipe is not None
    for activations in ("static", "dynamic"):
        for names in ("all", "online"):
            used = parse_ingredients(names, activations)
            best = replace(
                record.recipe, anti_outlier="best", activations=activations, ingredients=list(used)
            )
            told = cells(recipe_tables.choices(replace(record, recipe=best)))
            assert all(name in told for name in used)
            assert ("behind up_proj" in told) == (names == "all")
    for method in ("none", "m1", "m2", "m3", "m4"):
        other = replace(record, recipe=replace(record.recipe, anti_outlier=method))
        assert cells(recipe_tables.choices(other)).startswith(method)
    assert "not known" in cells(recipe_tables.choices(replace(record, recipe=None)))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.001, 0.003, "best loses less"),
        (-0.003, -0.001, "quantize with anti_outlier m1"),
        (-0.001, 0.003, "no difference"),
    ],
)
def test_the_page_says_which_of_best_and_m1_loses_less(
    record: QuantizeRecord, low: float, high: float, said: str
) -> None:
    change, kl = Estimate((low + high) / 2, low, high, 0.95), Estimate(0.01, 0.008, 0.012, 0.95)
    told = cells(recipe_tables.beside_m1(replace(record, beside_m1=BesideM1(10, 2560, kl, kl, change))))
    assert said in told
    assert "-" not in told or said == "no difference"
    assert "not measured" in cells(recipe_tables.beside_m1(replace(record, beside_m1=None)))

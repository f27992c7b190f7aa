"""Records: what is written comes back equal; what cannot be read says which key and what to do."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.performance.cases import Grid
from telechat_kit.performance.measurement import PUBLISHED, SCHEMA, CaseResult, ModelSize, PerformanceRecord
from telechat_kit.precision import Evaluation
from telechat_kit.provenance import Conditions
from telechat_kit.quantization import Calibration, Recipe
from telechat_kit.records import read_record, record_path, write_record
from telechat_kit.statistics import Estimate

CONDITIONS = Conditions(
    device="cpu",
    device_name="某处理器 (2 threads)",
    threads=2,
    memory_bytes=8_000_000_000,
    system="Linux x86_64",
    versions={"python": "3.11.7", "torch": "2.13.0"},
    code="78a2c6e00000+changes",
    started="2025-01-01T00:00:00+00:00",
    hashes={"float_weights": "ab" * 32},
)
RECORD = PerformanceRecord(
    schema=SCHEMA,
    model_path="models/tiny",
    quant_path="models/tiny-w8a8",
    batch=1,
    cases=[
        CaseResult(
            precision="w8a8",
            input_tokens=10,
            output_tokens=1,
            repeats=3,
            tokens_per_second=Estimate(12.5, 11.0, 13.0, 0.75),
            time_to_first_token=Estimate(0.08, 0.07, 0.09, 0.75),
            time_per_output_token=None,
            limit_tokens_per_second=40.0,
        )
    ],
    sizes=[ModelSize("w8a8", 1000, 900, 64)],
    read_bandwidth=2.5e10,
    read_bandwidth_basis="measured",
    peak_memory_bytes=123456,
    published=list(PUBLISHED),
    conditions=CONDITIONS,
)


def read(folder: Path) -> PerformanceRecord:
    return read_record(folder, PerformanceRecord, SCHEMA)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the JSON of the record in `folder`."""
    path = record_path(folder, SCHEMA)
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_record(tmp_path, RECORD)
    return tmp_path


def test_a_record_comes_back_equal(folder: Path) -> None:
    assert read(folder) == RECORD


def test_the_file_is_named_after_the_schema_and_is_plain_json(folder: Path) -> None:
    path = folder / "performance.json"
    assert write_record(folder, RECORD) == path == record_path(folder, SCHEMA)
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values["schema"] == "telechat-kit/performance/1"
    assert values["cases"][0]["tokens_per_second"]["value"] == 12.5
    assert "某处理器" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_becomes_null_and_is_not_read_as_a_number(
    tmp_path: Path, number: float
) -> None:
    path = write_record(tmp_path, replace(RECORD, read_bandwidth=number))
    assert json.loads(path.read_text(encoding="utf-8"))["read_bandwidth"] is None
    with pytest.raises(DataError, match=r"performance\.json: read_bandwidth: .* run the step again"):
        read(tmp_path)


def test_an_optional_number_that_json_lacks_is_missing(tmp_path: Path) -> None:
    unknown = Estimate(float("nan"), 0.0, 0.0, 0.0)
    case = replace(RECORD.cases[0], time_per_output_token=unknown)
    path = write_record(tmp_path, replace(RECORD, cases=[case]))
    assert json.loads(path.read_text())["cases"][0]["time_per_output_token"]["value"] is None


def test_a_missing_record_says_which_file_and_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"performance\.json does not exist. Run 04_performance, which writes it"
    ):
        read(tmp_path)


@pytest.mark.parametrize("content", ["", '{"schema": "telechat-kit/perf', "\x00"])
def test_a_damaged_file_is_a_data_error(folder: Path, content: str) -> None:
    (folder / "performance.json").write_text(content)
    with pytest.raises(DataError, match=r"performance\.json (is not valid JSON|is empty)"):
        read(folder)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"schema": "telechat-kit/performance/2"}', "telechat-kit/performance/2"),
        ("[]", "list"),
        ("{}", "None"),
    ],
)
def test_another_schema_is_refused_by_name(folder: Path, content: str, found: str) -> None:
    (folder / "performance.json").write_text(content)
    with pytest.raises(DataError, match=f'has schema "{found}", this kit reads "telechat-kit/performance/1"'):
        read(folder)


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda values: values.pop("batch"), "batch"),
        (lambda values: values["cases"][0].pop("repeats"), r"cases\.0\.repeats"),
        (lambda values: values["conditions"].update(threads="two"), r"conditions\.threads"),
        (lambda values: values["cases"][0].update(tokens_per_second=3.0), r"cases\.0\.tokens_per_second"),
        (lambda values: values.update(cases=None), "cases"),
    ],
)
def test_a_missing_or_wrong_field_is_named_by_its_key(
    folder: Path, edit: Callable[[dict[str, Any]], object], key: str
) -> None:
    change(folder, edit)
    with pytest.raises(DataError, match=rf"performance\.json: {key}.*: .* run the step again"):
        read(folder)


def test_writing_again_replaces_the_record(folder: Path) -> None:
    write_record(folder, replace(RECORD, batch=2))
    assert read(folder).batch == 2
    assert [path.name for path in folder.iterdir()] == ["performance.json"]


def test_a_number_that_papermill_made_of_a_text_is_that_text() -> None:
    assert Calibration(calibration_lines=3).calibration_lines == "3"  # type: ignore[arg-type]
    assert Recipe(level=0).level == "0"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(act_method="1"), "act_method is '1' (str): Input should be a valid integer"),
        (lambda: Recipe(group_fallback=1), "group_fallback is '1' (int): Input should be a valid boolean"),
        (lambda: Evaluation(repetition_penalty=float("nan")), "repetition_penalty is 'nan' (float)"),
        (lambda: Evaluation(answers=True), "answers is 'True' (bool)"),
        (lambda: Grid(5), "input_lengths is '5' (int)"),
        (lambda: Grid([1.5]), "input_lengths is '(1.5,)' (tuple): Input should be a valid integer"),
    ],
)
def test_a_request_of_another_type_is_refused_by_field(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)):
        make()

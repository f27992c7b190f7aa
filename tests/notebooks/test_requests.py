"""What the notebooks hand to the verbs: every parameter to the field of its name, with one default and one meaning."""

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import nbformat
import pytest

from telechat_kit import (
    Calibration,
    Evaluation,
    Grid,
    PrecisionMeasurement,
    Recipe,
    check,
    check_alignment,
    check_operators,
    check_setup,
    make_embedded,
    measure_performance,
    quantize,
    use_tested_operators,
    write_report,
)
from telechat_kit.errors import ParameterError
from telechat_kit.runs.profile import declared_parameters, default_values, notebook_path

REQUESTS = {
    "02_quantize": (Recipe, Calibration),
    "03_precision": (Evaluation,),
    "04_performance": (Grid,),
}
VERBS: list[tuple[str, Callable[..., Any]]] = [
    ("01_setup", make_embedded),
    ("01_setup", check),
    ("01_setup", check_operators),
    ("01_setup", check_setup),
    ("02_quantize", use_tested_operators),
    ("02_quantize", quantize),
    ("03_precision", PrecisionMeasurement),
    ("03_precision", check_alignment),
    ("04_performance", measure_performance),
    ("05_report", write_report),
]
#: Fields that no notebook sets
BESIDE = {"answers"}

each_request = pytest.mark.parametrize(
    ("notebook", "kind"), [(name, kind) for name, kinds in REQUESTS.items() for kind in kinds]
)
each_verb = pytest.mark.parametrize(("notebook", "verb"), VERBS)


def declared(notebook: str) -> dict[str, str]:
    """What each parameter of a notebook means."""
    return {name: entry.help for name, entry in declared_parameters(notebook_path(notebook)).items()}


@each_request
def test_defaults_are_those_of_the_notebook(notebook: str, kind: type) -> None:
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in default_values(notebook).items()}
    ours = {field.name: getattr(kind(), field.name) for field in fields(kind) if field.name not in BESIDE}
    assert ours == {name: given.get(name) for name in ours}


#: A run folder is the notebooks' to name; a checkpoint that is there needs no embedded model
@each_verb
def test_a_verb_has_the_defaults_of_the_notebook(notebook: str, verb: Callable[..., Any]) -> None:
    given, found = default_values(notebook), inspect.signature(verb).parameters
    shared = set(given) & set(found) - {"run_folder", "embedded_model"}
    ours = {
        name: found[name].default for name in shared if found[name].default is not inspect.Parameter.empty
    }
    lists = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    assert ours == {name: lists[name] for name in ours}


@each_request
def test_a_field_is_described_in_the_words_of_the_notebook(notebook: str, kind: type) -> None:
    text = " ".join((inspect.getdoc(kind) or "").split())
    meanings = declared(notebook)
    for field in fields(kind):
        assert f" {field.name}: {meanings.get(field.name, '')}" in text


def calls(source: str, function: Callable[..., Any]) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == function.__name__:
                yield node


def handed(call: ast.Call, function: Callable[..., Any]) -> dict[str, str]:
    """The expression that each parameter of `function` gets."""
    names = list(inspect.signature(function).parameters)
    values = dict(zip(names, call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
    return {str(name): ast.unparse(value) for name, value in values.items()}


def code_of(notebook: str) -> str:
    cells = nbformat.read(notebook_path(notebook), as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


@each_request
def test_a_cell_hands_every_parameter_to_the_field_of_its_name(notebook: str, kind: type) -> None:
    (call,) = calls(code_of(notebook), kind)
    names = [field.name for field in fields(kind) if field.name not in BESIDE]
    assert handed(call, kind) == {name: name for name in names}


@each_verb
def test_a_cell_hands_every_other_parameter_to_the_keyword_of_its_name(
    notebook: str, verb: Callable[..., Any]
) -> None:
    (call,) = calls(code_of(notebook), verb)
    found = handed(call, verb)
    assert found == {name: name for name in found}
    assert set(inspect.signature(verb).parameters) & set(declared(notebook)) <= set(found)


@pytest.mark.parametrize(
    "cell",
    [
        "Recipe(budget, level)",
        "Recipe(level, budget, anti_outlier)",
        "Recipe(level=budget, budget=level)",
        "Recipe(level, 'KL 0.1')",
    ],
)
def test_a_parameter_in_the_wrong_place_is_seen(cell: str) -> None:
    (call,) = calls(cell, Recipe)
    assert any(name != value for name, value in handed(call, Recipe).items())


def test_a_calibration_without_a_text_of_its_own_reads_the_questions() -> None:
    assert Calibration().source == "kit, pydoc_data.topics"
    assert Calibration("", "lines.jsonl").source == "lines.jsonl"
    assert Calibration(Path("text.txt"), "lines.jsonl").source == "text.txt"


def test_a_number_beyond_what_torch_draws_by_is_refused() -> None:
    with pytest.raises(ParameterError, match="seed is beyond 9,223,372,036,854,775,807"):
        Calibration(seed=10**20)

"""The parameters cell as people edit it: every line counts, or is named."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from small_project import run, started, write_notebook

from telechat_kit.errors import ParameterError
from telechat_kit.runs.parameters_cell import read_declarations


def notebook(folder: Path, source: str) -> Path:
    path = folder / "mine.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]})]), path)
    return path


@pytest.mark.parametrize(
    ("line", "default"),
    [
        ('a: str = "models/level=L0"  # folder', "models/level=L0"),
        ('a: str = "run #3"  # folder', "run #3"),
        ("a: str = 'it\\'s \"quoted\"'  # folder", 'it\'s "quoted"'),
        ('a: str = (\n    "one"\n    "two"\n)  # folder', "onetwo"),
        ("a: list[int] = [\n    1,  # first\n    2,\n]  # folder", [1, 2]),
        ("a: float = -1e-3  # folder", -1e-3),
        ("a = True  # folder", True),
        ('import os\n"""text"""\na: "str" = ""  # folder', ""),
    ],
)
def test_a_default_is_read_as_python_reads_it(tmp_path: Path, line: str, default: object) -> None:
    found = read_declarations(notebook(tmp_path, line))["a"]
    assert (found.default, found.help) == (default, "folder")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('a: str = "x\n', "line 1: no Python"),
        ("%matplotlib inline\na: int = 1", "line 1: no Python"),
        ("a: int = 1\nb: int", "line 2: no parameter can be read"),
        ("a, b = 1, 2", "line 1: no parameter can be read"),
        ("print(1)", "line 1: no parameter can be read"),
        ('a: str = "x" + name', 'the default of "a" is no plain value'),
        ("a: complex = 1", '"a" is declared as "complex". Types of parameters: str, int'),
        ("a = None", '"a" is declared as ""'),
        ('a: int = "1"', 'the default of "a" is no int'),
        ("a: int = 1\na: int = 2", 'line 2: "a" is declared twice'),
    ],
)
def test_a_line_that_is_no_declaration_is_named(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        read_declarations(notebook(tmp_path, source))
    assert message in str(caught.value)
    assert "mine.ipynb, parameters cell" in str(caught.value)


def test_a_notebook_that_is_none_is_refused_and_one_without_the_tag_declares_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.ipynb"
    path.write_text("{")
    with pytest.raises(ParameterError, match=r"mine.ipynb is not valid JSON"):
        read_declarations(path)
    nbformat.write(new_notebook(cells=[new_code_cell("a = 1")]), path)
    assert read_declarations(path) == {}


def test_a_value_reaches_a_notebook_whose_default_holds_an_equals_sign(project: Path) -> None:
    path = project / "notebooks" / "02_quantize.ipynb"
    write_notebook(path)
    path.write_text(path.read_text().replace('\\"quantized\\"', '\\"models/level=L0\\"'))
    assert run(only=("2",), fresh=True).exit_code == 0
    assert started(project) == ["02_quantize"]
    assert (project / "quantized" / "weights").is_file()
    assert not (project / "models").exists()

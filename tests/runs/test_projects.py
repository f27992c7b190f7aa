"""A project of one's own, and copies of notebooks to step through that leave the sources as they are."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from telechat_kit.errors import DataError
from telechat_kit.runs.parameters_cell import (
    COLUMNS,
    comments_in_sight,
    filled_in,
    is_parameters_cell,
    read_declarations,
)
from telechat_kit.runs.profile import load_profile
from telechat_kit.runs.projects import PARTS, copy_notebooks, create_project
from telechat_kit.runs.state import STEPS

ROOT = Path(__file__).resolve().parents[2]


def parameters(notebook: Path) -> dict[str, object]:
    return {name: entry.default for name, entry in read_declarations(notebook).items()}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = create_project(tmp_path / "mine")
    monkeypatch.chdir(made)
    return made


def test_a_project_holds_what_a_run_reads(project: Path) -> None:
    for step in STEPS:
        source = ROOT / "notebooks" / f"{step.name}.ipynb"
        assert (project / "notebooks" / source.name).read_bytes() == source.read_bytes()
    assert (project / "params" / "data" / "texts").is_dir()
    assert (project / "environment" / "versions.yaml").is_file()
    assert load_profile(Path("params/tiny.yaml")).run_folder == "results/tiny"
    assert not list(project.rglob("__pycache__"))


def test_a_folder_that_holds_one_already_is_refused_and_stays(project: Path) -> None:
    kept = project / "notebooks" / "01_setup.ipynb"
    kept.write_text("mine")
    with pytest.raises(DataError, match="holds notebooks/, params/, environment/ already"):
        create_project(project)
    assert kept.read_text() == "mine"


def test_other_things_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about us")
    create_project(tmp_path)
    assert (tmp_path / "README.md").read_text() == "about us"
    assert all((tmp_path / part).is_dir() for part in PARTS)


def test_copies_have_the_parameters_of_the_profile_filled_in(project: Path) -> None:
    profile = load_profile(
        project / "params" / "tiny.yaml", [("level", "L1"), ("run_folder", "results/first")]
    )
    folder = copy_notebooks(profile)
    assert folder == project / "results" / "first" / "notebooks"
    for step in STEPS:
        declared = parameters(project / "notebooks" / f"{step.name}.ipynb")
        assert parameters(folder / f"{step.name}.ipynb") == declared | profile.for_notebook(step.name)
    assert (project / "notebooks" / "02_quantize.ipynb").read_bytes() == (
        ROOT / "notebooks" / "02_quantize.ipynb"
    ).read_bytes()


def test_copies_speak_the_language_of_the_profile(project: Path) -> None:
    profile = load_profile(project / "params" / "tiny.yaml", [("language", "zh")])
    notebook = nbformat.read(copy_notebooks(profile) / "03_precision.ipynb", as_version=4)
    source = nbformat.read(project / "notebooks" / "03_precision.ipynb", as_version=4)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert all(any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in prose)
    code = [
        [cell.source for cell in each.cells if cell.cell_type == "code"][1:] for each in (notebook, source)
    ]
    assert code[0] == code[1]


def test_what_was_changed_in_a_copy_stays_unless_told(project: Path) -> None:
    profile = load_profile(project / "params" / "tiny.yaml")
    changed = copy_notebooks(profile) / "03_precision.ipynb"
    changed.write_text("mine")
    copy_notebooks(profile)
    assert changed.read_text() == "mine"
    copy_notebooks(profile, overwrite=True)
    assert parameters(changed)


def test_a_filled_cell_keeps_comments_and_takes_any_value() -> None:
    source = 'a: str = "x"  # 说明 = text\nb: list[int] = [\n    1,\n]  # many\nc: int = 3  # stays\n'
    filled = filled_in(source, {"a": 'is "it" # é\n?', "b": [7, 8], "unknown": 1})
    values = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(filled).body}  # type: ignore[attr-defined]
    assert values == {"a": 'is "it" # é\n?', "b": [7, 8], "c": 3}
    assert [line.rpartition("#")[2] for line in filled.splitlines()] == [" 说明 = text", " many", " stays"]


def test_the_notebooks_have_one_cell_to_fill_in() -> None:
    for step in STEPS:
        cells = nbformat.read(ROOT / "notebooks" / f"{step.name}.ipynb", as_version=4).cells
        assert sum(map(is_parameters_cell, cells)) == 1


def test_a_wheel_carries_the_project(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    inside = {name.removeprefix("telechat_kit/project/") for name in names if "/project/" in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for part, patterns in PARTS.items()
        for pattern in patterns
        for path in (ROOT / part).glob(pattern)
        if path.is_file()
    }
    assert wanted <= inside
    assert "telechat_kit/backends/cpu_kernels/kernels.c" in names
    assert "telechat_kit/reports/templates/page.css" in names


def test_the_comments_of_parameters_are_in_sight() -> None:
    """JupyterLab cuts off what is wider than the cell; every declaration stays, and every word of the comments."""
    for step in STEPS:
        for source in parameters_cells(ROOT / "notebooks" / f"{step.name}.ipynb"):
            shown = comments_in_sight(source)
            assert [line for line in shown.splitlines() if "#" in line and len(line) > COLUMNS] == []
            assert ast.dump(ast.parse(shown)) == ast.dump(ast.parse(source))
            assert sorted(shown.replace("#", " ").split()) == sorted(source.replace("#", " ").split())
    chinese = 'level: str = "L5"  # ' + "保留为浮点的线性层" * 8
    lines = comments_in_sight(chinese).splitlines()
    assert lines[-1] == 'level: str = "L5"'
    assert len(lines) == 3
    assert comments_in_sight('a: str = "# no comment"  # one') == 'a: str = "# no comment"  # one'


def parameters_cells(notebook: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(notebook, as_version=4).cells if is_parameters_cell(cell)]

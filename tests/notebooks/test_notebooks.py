"""The five notebooks: clean as committed, and run in each of the ways that the README names."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from papermill_runs import NOTEBOOKS, execute_by_papermill

import telechat_kit
from telechat_kit.comparison.run_data import read_run_data
from telechat_kit.reports import read_run
from telechat_kit.reports.html import PAGES
from telechat_kit.runs.profile import declared_parameters
from telechat_kit.runs.rebuilding import check_notebooks
from telechat_kit.runs.state import STEPS
from telechat_kit.runs.verification import verify

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "params" / "tiny.yaml"
COMMAND = Path(sys.executable).with_name("telechat-kit")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str | None = None) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if kind in (None, cell.cell_type)]


def own_paths(folder: Path) -> dict[str, str]:
    """Where a run writes: all of it below `folder`."""
    return {
        "checkpoint_path": str(folder / "tiny"),
        "model_path": str(folder / "tiny"),
        "quant_path": str(folder / "tiny-w8a8"),
        "run_folder": str(folder / "run"),
    }


@pytest.fixture(scope="module")
def by_command(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """The folder below which `telechat-kit run`, started from elsewhere, has written everything, and what it said."""
    folder = tmp_path_factory.mktemp("command")
    overrides = [word for key, value in own_paths(folder).items() for word in ("-p", key, value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # another test has the other core
    command = [COMMAND, "run", TINY, *overrides]
    return folder, subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def by_papermill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which papermill alone has executed all notebooks, each with the whole profile as `-f` gives it."""
    folder = tmp_path_factory.mktemp("papermill")
    profile = folder / "profile.yaml"
    profile.write_text(yaml.safe_dump(yaml.safe_load(TINY.read_text(encoding="utf-8")) | own_paths(folder)))
    execute_by_papermill(folder, profile, dict(os.environ))
    return folder


def test_a_real_run_is_verified_and_what_its_notebooks_show_is_not_to_be_changed(
    by_command: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run = by_command[0] / "run"
    found = verify(run, repeat=False)
    assert (found.outcome, found.wrong) == ("verified", [])
    assert sum(one.part == "notebooks" for one in found.findings) > 50
    forged = Path(shutil.copytree(run, tmp_path / "run"))
    for name, old in (
        ("03_precision.ipynb", "% of the positions"),
        ("04_performance.html", "tokens/s"),
    ):
        text = (forged / name).read_text(encoding="utf-8")
        assert old in text
        (forged / name).write_text(text.replace(old, f"9{old}", 1), encoding="utf-8")
    wrong = {one.name for one in check_notebooks(read_run_data(forged)) if one.verdict == "changed"}
    assert "04_performance.html" in wrong
    assert any(name.startswith("03_precision.ipynb, cell") for name in wrong)


@each_notebook
def test_a_committed_notebook_has_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.nbformat_minor >= 5
    for cell in cells(path, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert not any("papermill" in cell.metadata for cell in notebook.cells)


@each_notebook
def test_a_notebook_begins_with_its_title_and_what_it_reads_and_writes(path: Path) -> None:
    first = cells(path)[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "**Reads**" in first.source
    assert "**Writes**" in first.source
    assert sum(bool(re.match(r"# ", cell.source)) for cell in cells(path, "markdown")) == 1


@each_notebook
def test_every_cell_has_an_id_of_its_own(path: Path) -> None:
    ids = [cell.id for cell in cells(path)]
    assert len(set(ids)) == len(ids)
    assert all(identifier.startswith(path.name[:2]) for identifier in ids)


@each_notebook
def test_the_parameters_stand_in_the_first_code_cell_and_in_no_other(path: Path) -> None:
    tagged = ["parameters" in cell.metadata.get("tags", []) for cell in cells(path, "code")]
    assert tagged == [True] + [False] * (len(tagged) - 1)


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@each_notebook
def test_a_notebook_holds_no_logic(path: Path) -> None:
    logic = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.Try, ast.With)
    logic += (ast.IfExp, ast.BoolOp, ast.BinOp, ast.comprehension)
    for cell in cells(path, "code")[1:]:
        tree = ast.parse(cell.source)
        assert not [node for node in ast.walk(tree) if isinstance(node, logic)], cell.source
        lines = [1 if isinstance(node, ast.ImportFrom) else _lines(node) for node in tree.body]
        assert sum(lines) <= 5, (
            cell.source
        )  # an import counts once, however many lines the formatter makes of it


@each_notebook
def test_a_notebook_imports_the_face_and_reports_only(path: Path) -> None:
    code = "\n".join(cell.source for cell in cells(path, "code"))
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imports:
        assert isinstance(node, ast.ImportFrom)
        assert node.module == "telechat_kit"
        assert {alias.name for alias in node.names} <= {*telechat_kit.__all__, "reports"}
    assert len(imports) == 1


@each_notebook
def test_every_code_cell_ends_with_something_to_see(path: Path) -> None:
    for cell in cells(path, "code")[1:]:
        assert isinstance(ast.parse(cell.source).body[-1], ast.Expr), cell.source


@each_notebook
def test_every_parameter_is_used(path: Path) -> None:
    code = "\n".join(cell.source for cell in cells(path, "code")[1:])
    names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    assert set(declared_parameters(path)) <= names


def test_every_code_cell_shows_a_result(
    by_command: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    for path in NOTEBOOKS:
        for cell in cells(by_command[0] / "run" / path.name, "code"):
            parameters = {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", []))
            shown = [
                output for output in cell.outputs if output.output_type != "stream" or output.name == "stdout"
            ]
            assert parameters or shown, f"{path.stem}: {cell.source}"


def test_the_command_runs_every_step(by_command: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = by_command
    assert done.returncode == 0, done.stderr
    state = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    assert {step["name"]: step["status"] for step in state["steps"]} == {
        step.name: "completed" for step in STEPS
    }
    assert done.stdout.splitlines() == [str(folder / "run" / "report.html")]
    assert {path.name for path in folder.iterdir()} == {"tiny", "tiny-w8a8", "run"}


def test_the_command_says_which_notebook_and_which_cell_and_nothing_else(
    by_command: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    lines = by_command[1].stderr.splitlines()
    for number, step in enumerate(STEPS, start=1):
        assert any(line.startswith(f"[{number}/5] {step.name}") and "completed in" in line for line in lines)
    assert [line for line in lines if not re.match(r"\[\d/5\] \d\d_\w+ +cell \d+/\d+ +\d+ s  ", line)] == []
    assert any("float against W8A8 100 %" in line for line in lines)


def test_the_run_folder_holds_every_page_record_and_sample(
    by_command: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run = by_command[0] / "run"
    expected = {
        "params.yaml",
        "run.json",
        "manifest.json",
        "tables",
        *(name for step in STEPS for name in step.writes),
    }
    expected |= {f"{step.name}{suffix}" for step in STEPS for suffix in (".ipynb", ".html")}
    assert {path.name for path in run.iterdir()} == expected
    assert {address for _, address in PAGES} <= expected


@pytest.mark.soak
def test_both_ways_measure_the_same(
    by_papermill: Path, by_command: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    first, second = read_run(by_papermill / "run"), read_run(by_command[0] / "run")
    assert first.quantize.recipe == second.quantize.recipe
    assert first.quantize.linears == second.quantize.linears
    assert first.precision.divergence == second.precision.divergence
    assert first.precision.answers == second.precision.answers


def outside_addresses(page: Path) -> Iterator[str]:
    """What a browser would load for `page` besides itself. Links that a reader may follow are none of it."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    for tag in soup.find_all(True):
        for attribute in ("src", "srcset", "data", "poster", "background", "xlink:href"):
            yield str(tag.get(attribute) or "")
        if tag.name in ("link", "base", "use", "image"):
            yield str(tag.get("href") or "")
    styles = " ".join([*(style.get_text() for style in soup.find_all("style")), *styled(soup)])
    yield from re.findall(r"url\(\s*['\"]?([^'\")]*)", styles)
    yield from re.findall(r"@import\s+(\S+)", styles)


def styled(soup: BeautifulSoup) -> list[str]:
    return [str(tag["style"]) for tag in soup.find_all(style=True)]


def test_every_page_opens_without_a_network(
    by_command: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    pages = sorted((by_command[0] / "run").glob("*.html"))
    assert {page.name for page in pages} == {address for _, address in PAGES}
    for page in pages:
        addresses = {address for address in outside_addresses(page) if address}
        assert [a for a in addresses if not a.startswith(("data:", "#"))] == [], page.name
        assert "require.js" not in page.read_text(encoding="utf-8")


def test_every_page_leads_to_every_other(
    by_command: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    for _, name in PAGES:
        page = by_command[0] / "run" / name
        links = {
            a.get("href")
            for a in BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").find_all("a")
        }
        assert {address for _, address in PAGES} - {name} <= links, name

"""docs/api.md: every name of the face, as its docstring has it, with an example that runs."""

import doctest
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import telechat_kit

ROOT = Path(__file__).parents[1]
COG = Path(sys.executable).with_name("cog")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The generator of the page, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("api_reference", ROOT / "docs" / "api_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(page: Path) -> subprocess.CompletedProcess[str]:
    command = [COG, "--check", "-I", ROOT / "docs", page]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_page_is_what_the_docstrings_say() -> None:
    done = check(ROOT / "docs" / "api.md")
    assert done.returncode == 0, f"run cog -r docs/api.md\n{done.stdout}{done.stderr}"


def test_a_page_that_says_otherwise_is_noticed(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    (tmp_path / "api.md").write_text(text.replace("in eval mode", "in training mode"), encoding="utf-8")
    assert check(tmp_path / "api.md").returncode != 0


def test_every_name_of_the_face_is_on_the_page_once(reference: ModuleType) -> None:
    assert sorted(name for name, _ in reference.examples()) == telechat_kit.__all__


def test_the_examples_are_a_session_that_runs(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("environment", "notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {name: getattr(telechat_kit, name) for name in telechat_kit.__all__}
    runner, said = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), list[str]()
    for name, example in reference.examples():
        session = doctest.DocTestParser().get_doctest(example, names, name, "docs/api.md", 0)
        assert session.examples, name
        runner.run(session, out=said.append, clear_globs=False)
        names = session.globs
    assert said == [], "".join(said)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"tiny", "tiny-w8a8", "tiny-ascend"}

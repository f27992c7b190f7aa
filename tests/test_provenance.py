"""What a record says of the notebooks that it was made with."""

import subprocess
from pathlib import Path

import pytest

from telechat_kit.provenance import edited_notebooks


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("notebooks/01_setup.ipynb", "notebooks/02_quantize.ipynb", "params/x.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_notebooks_edited_by_hand_are_named(project: Path) -> None:
    git(project, "init")
    git(project, "add", ".")
    git(project, "commit", "-m", "all")
    assert edited_notebooks() == []
    (project / "notebooks" / "02_quantize.ipynb").write_text("{ }")
    (project / "params" / "x.yaml").write_text("")
    assert edited_notebooks() == ["02_quantize.ipynb"]


def test_without_git_none_is_known_to_be_edited(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    assert edited_notebooks() == []

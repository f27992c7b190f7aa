"""Small projects that the tests of runs share."""

import os
import shutil
from pathlib import Path

import pytest
from small_project import run, started, write_project


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose five steps have run once. Shared: tests take a copy with `project`."""
    root = write_project(tmp_path_factory.mktemp("finished") / "project")
    here = Path.cwd()
    os.chdir(root)
    try:
        assert run().exit_code == 0
    finally:
        os.chdir(here)
    return root


@pytest.fixture
def project(finished_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project, as the working directory."""
    root = Path(shutil.copytree(finished_project, tmp_path / "project"))
    started(root)
    monkeypatch.chdir(root)
    return root

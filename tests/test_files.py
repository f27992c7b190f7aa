"""Files: whole or not at all, found from anywhere, and errors that name file and line."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from telechat_kit import files
from telechat_kit.errors import DataError, KitError, ParameterError


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder that looks like the project from inside."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_setup.ipynb").write_text("{}")
    (tmp_path / "params" / "data").mkdir(parents=True)
    return tmp_path


def test_an_error_while_writing_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "record.json", "old")
    with pytest.raises(RuntimeError, match="stop"), files.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("stop")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["record.json"]


def test_a_system_error_while_writing_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with (
        pytest.raises(KitError, match=r"No space left on device. Free space") as caught,
        files.atomic_path(path) as temporary,
    ):
        temporary.write_text("half")
        raise OSError(28, os.strerror(28))
    assert str(path) in str(caught.value)
    assert listing(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(KitError, match=r"cannot write .*results.*choose another folder"):
        files.write_text(tmp_path / "results" / "demo" / "record.json", "text")
    with (
        pytest.raises(KitError, match=r"cannot write .*results.*choose another folder"),
        files.atomic_folder(tmp_path / "results" / "demo"),
    ):
        pass


def test_what_was_written_is_said_as_the_project_knows_it(
    project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project / "params")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "b.json"
    files.written(project / "results" / "a.json", elsewhere)
    assert capsys.readouterr().out == f"written: results/a.json {elsewhere}\n"


def test_writing_makes_the_folders_above(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a" / "b" / "c.txt", "电信")
    assert path.read_text(encoding="utf-8") == "电信"


def test_a_folder_takes_its_place_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old.bin").write_text("old")
    with files.atomic_folder(folder) as temporary:
        (temporary / "new.bin").write_text("new")
        assert listing(folder) == ["old.bin"]
    assert listing(folder) == ["new.bin"]
    assert listing(tmp_path) == ["model"]


def test_an_error_while_filling_a_folder_keeps_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old.bin").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_folder(folder) as temporary:
        (temporary / "new.bin").write_text("half")
        raise RuntimeError("stop")
    assert listing(folder) == ["old.bin"]
    assert listing(tmp_path) == ["model"]


def test_a_full_disk_while_filling_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(KitError, match=r"No space left on device. Free space"), files.atomic_folder(folder):
        raise OSError(28, os.strerror(28))
    assert listing(tmp_path) == []


def test_json_comes_back_as_written(tmp_path: Path) -> None:
    value = {"text": "电信\u2028", "numbers": [1, 2.5, None], "nested": {"true": True}}
    assert files.read_json(files.write_json(tmp_path / "value.json", value)) == value


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "value.json", {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"new": float("nan")})
    assert files.read_json(path) == {"old": 1}


def test_damaged_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text('{"a": 1,\n"b": }')
    with pytest.raises(DataError, match=r"value\.json is not valid JSON .*line 2.*run the step again"):
        files.read_json(path)


def test_missing_json_says_which_step_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"value\.json does not exist. Run the step that writes it"):
        files.read_json(tmp_path / "value.json")


@pytest.mark.parametrize("below", [".", "params/data", "notebooks"])
def test_relative_paths_are_relative_to_the_project_from_any_folder_of_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    monkeypatch.chdir(project / below)
    assert files.project_root() == project
    assert files.resolve("results/demo") == project / "results" / "demo"
    assert files.relative(project / "results" / "demo") == str(Path("results", "demo"))


def test_outside_a_project_the_one_beside_the_package_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.project_root() == Path(__file__).resolve().parents[1]
    assert files.relative(tmp_path / "x") == str(tmp_path / "x")


def test_absolute_paths_and_home_stay(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.resolve("/data/models") == Path("/data/models")
    assert files.resolve("~/models") == Path("/home/someone/models")


def test_the_hash_is_sha256_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_too_little_space_is_refused_beforehand_with_both_figures(tmp_path: Path) -> None:
    missing = tmp_path / "not" / "there"
    files.require_space(missing, 1, "a byte")
    with pytest.raises(KitError, match=r"the model needs 1000000000.00 GB under .*there, .* GB are free"):
        files.require_space(missing, 10**18, "the model")
    assert not missing.exists()


def test_jsonl_is_one_compact_object_a_line(tmp_path: Path) -> None:
    path = files.write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"a": "二"}])
    assert [json.loads(line)["a"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == [1, "二"]
    assert "二" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [2024, 1.5, True, None])
def test_a_path_that_papermill_made_a_number_of_is_refused(value: object) -> None:
    with pytest.raises(ParameterError, match="with papermill use -r"):
        files.resolve(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("resolved", [files.resolve, files.absolute])
def test_what_no_system_takes_for_a_path_is_refused(
    tmp_path: Path, resolved: Callable[[str | Path], Path]
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", "x" * 300, "a\0b", "a\ud83d", os.fsdecode(b"a\xff")):
        with pytest.raises(ParameterError, match="cannot be a path") as caught:
            resolved(path)
        assert len(str(caught.value)) < 400


def test_a_path_is_taken_as_it_is_where_nobody_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert files.resolve("/a/b") == Path("/a/b")


def test_remains_of_a_killed_process_go_with_the_next_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    host, dead, living = socket.gethostname(), gone.stdout.strip(), os.getpid()
    names = [f".a.json.{dead}@{host}.tmp", f".a.json.1@{host}.tmp", f".a.json.{dead}@elsewhere.tmp"]
    names += [
        f".other.json.{dead}@{host}.tmp",
        f".model.{dead}@{host}.ab_1.new",
        f".model.{living}@{host}.cd.new",
    ]
    for name in names:
        (tmp_path / name).mkdir() if name.endswith(".new") else (tmp_path / name).write_text("half")
    files.write_json(tmp_path / "a.json", {})
    with files.atomic_folder(tmp_path / "model") as folder:
        (folder / "x").write_text("whole")
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == {names[1], names[2], names[3], names[5]}
    assert (tmp_path / "model" / "x").read_text() == "whole"


def test_a_folder_where_a_file_is_due_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(KitError, match=r"a\.txt is a folder where a file is due\. Move it away"):
        files.write_text(tmp_path / "a.txt", "b")

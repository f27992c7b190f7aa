"""The manifest of a run folder: what stands in it, when it is written, and what it says of a folder later."""

import json
import shutil
from pathlib import Path

import pytest

from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.environment import SCHEMA, SetupRecord
from telechat_kit.errors import DataError
from telechat_kit.manifest import (
    BY_HAND,
    BY_RUN,
    RUN_FOLDER,
    read_manifest,
    renew_manifest,
    withdraw_manifest,
    write_manifest,
)
from telechat_kit.records import read_record, write_record
from telechat_kit.runs.bindings import check_manifest


def found(folder: Path) -> dict[str, str]:
    return {one.name: one.found for one in check_manifest(RunData("run", folder)) if one.verdict == "changed"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tables").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "setup.json").write_text("{}")
    (tmp_path / "tables" / "01.csv").write_text("a,b")
    return tmp_path


def test_a_manifest_names_every_file_but_itself_hidden_ones_and_other_runs(folder: Path) -> None:
    (folder / ".hidden").write_text("x")
    (folder / "other").mkdir()
    (folder / "other" / "run.json").write_text("{}")
    write_manifest(folder, BY_RUN)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert list(manifest.files) == ["run.json", "setup.json", "tables/01.csv"]
    assert manifest.files["tables/01.csv"].bytes == 3
    assert found(folder) == {}


def test_changed_missing_and_further_files_are_told(folder: Path) -> None:
    write_manifest(folder, BY_RUN)
    (folder / "setup.json").write_text("[]")
    (folder / "tables" / "01.csv").unlink()
    (folder / "tables" / "02.csv").write_text("c")
    told = found(folder)
    assert set(told) == {"setup.json", "tables/01.csv", "tables/02.csv"}
    assert told["tables/01.csv"] == "missing"


def test_a_record_written_by_hand_renews_a_manifest_and_makes_none(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    record = read_record(run, SetupRecord, SCHEMA)
    (run / "manifest.json").unlink()
    write_record(run, record)
    assert not (run / "manifest.json").exists()
    renew_manifest(run, create=True)
    (run / "answers.jsonl").write_text("")
    assert set(found(run)) == {"answers.jsonl"}
    write_record(run, record)
    assert found(run) == {}


def test_what_is_saved_by_hand_behind_the_last_cell_is_told_and_does_not_fail(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    manifest = read_manifest(run)
    assert manifest is not None
    assert manifest.made_by == BY_HAND
    (run / "03_precision.ipynb").write_text("{}")
    assert found(run) == {}
    assert "03_precision.ipynb" in {one.name for one in check_manifest(read_run_data(run))}


def test_no_manifest_is_written_for_a_run_at_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_FOLDER, str(folder.resolve()))
    renew_manifest(folder, create=True)
    assert read_manifest(folder) is None
    monkeypatch.setenv(RUN_FOLDER, "/elsewhere")
    renew_manifest(folder, create=True)
    assert read_manifest(folder) is not None


def test_a_signature_stays_with_the_same_files_and_goes_with_others(folder: Path) -> None:
    write_manifest(folder, BY_RUN)
    signature = folder / "manifest.json.sig"
    signature.write_text("signed")
    write_manifest(folder, BY_RUN, earlier=withdraw_manifest(folder))
    assert signature.exists()
    (folder / "setup.json").write_text("[]")
    write_manifest(folder, BY_RUN, earlier=withdraw_manifest(folder))
    assert not signature.exists()


def test_a_run_of_an_older_kit_is_told_and_a_lost_manifest_is_wrong(folder: Path) -> None:
    def said(state: dict[str, object]) -> tuple[str, str]:
        (one,) = check_manifest(RunData("run", folder, state=state))
        return one.verdict, one.found

    assert said({"steps": []}) == (
        "not checked",
        "no manifest: made by an older version, or step by step without a report",
    )
    assert said({"steps": [], "manifest": False}) == (
        "not checked",
        "none was written: the run was broken off",
    )
    assert said({"steps": [], "manifest": True}) == ("changed", "missing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is damaged"),
        ('{"schema": "telechat-kit/manifest/1", "made_by": "run", "files": {"a": 1}}', r"files\.a"),
        ('{"schema": "telechat-kit/manifest/9", "made_by": "run", "files": {}}', "this kit reads"),
        ("{", "not valid JSON"),
    ],
)
def test_a_damaged_manifest_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_manifest(folder)
    renew_manifest(folder)
    assert json.loads((folder / "manifest.json").read_text())["files"]

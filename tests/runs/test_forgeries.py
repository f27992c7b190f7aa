"""`verify` notices forgeries: of records, samples, answers, pages, tables, weights, manifest; honest runs pass."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from forgeries import FORGERIES, Forgery, seal

from telechat_kit.comparison.findings import Finding
from telechat_kit.comparison.plausibility import impossible_figures
from telechat_kit.comparison.recomputation import recomputed
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import DataError
from telechat_kit.files import sha256, write_json
from telechat_kit.precision import write_answers
from telechat_kit.provenance import code_hash, file_hash, machine, versions
from telechat_kit.reports import write_report
from telechat_kit.reports.plain_text import markdown_text
from telechat_kit.runs.bindings import check_manifest, check_state
from telechat_kit.runs.origins import check_answer_files, check_origins, check_weights_told
from telechat_kit.runs.plan import combined_key
from telechat_kit.runs.profile import notebook_path
from telechat_kit.runs.rebuilding import check_pages
from telechat_kit.runs.state import SCHEMA, STEPS, RunState
from telechat_kit.runs.verification import NOT_VERIFIED, NOTHING, VERIFIED, verify
from telechat_kit.runs.verification_tables import summary

ROOT = Path(__file__).resolve().parents[2]
TABLE_BEGIN = (
    "| forgery | hashes made to fit | noticed by | what `verify` says first |\n| --- | --- | --- | --- |"
)
CHECKS: dict[str, Callable[[RunData], Iterator[Finding]]] = {
    "possible": impossible_figures,
    **dict.fromkeys(("figures", "answers", "speeds", "settings"), recomputed),
    "told": check_weights_told,
    "files": check_answer_files,
    "origins": check_origins,
    "state": check_state,
    "manifest": check_manifest,
    "pages": check_pages,
}


@pytest.fixture(scope="session")
def sealed_run(tiny_run: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_run` with weights of its own, as a run of `telechat-kit run` leaves it: answers, run.json, manifest."""
    folder = tmp_path_factory.mktemp("sealed")
    shutil.copytree(tiny_folder, folder / "tiny-float")
    shutil.copytree(tiny_run.parent / "tiny-w8a8", folder / "tiny-w8a8")
    run = Path(shutil.copytree(tiny_run, folder / "run"))
    shutil.copy(tiny_run.parent / "questions.jsonl", folder / "questions.jsonl")
    for path in run.glob("*.json"):
        text = path.read_text(encoding="utf-8").replace(
            str(tiny_run.parent / "tiny-w8a8"), str(folder / "tiny-w8a8")
        )
        path.write_text(text.replace(f'"{tiny_folder}"', f'"{folder / "tiny-float"}"'), encoding="utf-8")
    data = read_run_data(run)
    assert data.precision is not None
    write_answers(run, data.precision.answers)
    values = {
        "run_folder": str(run),
        "checkpoint_path": str(folder / "tiny-float"),
        "quant_path": str(folder / "tiny-w8a8"),
        "jsonl_path": str(folder / "questions.jsonl"),
        "level": "L2",
        "repeats": 3,
    }
    state = RunState(SCHEMA, "params/tiny.yaml", values, versions(), manifest=True)
    for step, kept in zip(STEPS, state.steps, strict=True):
        kept.status = "completed"
        kept.parts = {"the notebook": file_hash(notebook_path(step.name)), "the kit's code": code_hash()}
        kept.parts |= {"the machine": machine(), "parameter level": "'L2'"}
        kept.key = combined_key(kept.parts)
        kept.left = {name: sha256(run / name) for name in step.writes if (run / name).is_file()}
    (run / "params.yaml").write_text(yaml.safe_dump(values))
    write_json(run / "run.json", asdict(state))
    write_report(run)
    seal(run)
    return run


@pytest.fixture
def copied(sealed_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed_run, tmp_path / "run"))


def noticed(run: Path, check: str) -> list[Finding]:
    return [one for one in CHECKS[check](read_run_data(run)) if one.verdict == "changed"]


def wrong(run: Path, check: str) -> list[str]:
    return [one.name for one in noticed(run, check)]


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, str]]:
    """What `verify` says to each forgery; with FORGERIES_TABLE=docs/verify.md the table there is written anew."""
    rows: dict[str, str] = {}
    yield rows
    if os.environ.get("FORGERIES_TABLE") and len(rows) == len(FORGERIES):
        path = ROOT / os.environ["FORGERIES_TABLE"]
        before, _, old = path.read_text(encoding="utf-8").partition(TABLE_BEGIN)
        after = old[old.index("\n\n") :]
        path.write_text(before + "\n".join([TABLE_BEGIN, *rows.values()]) + after, encoding="utf-8")


@pytest.mark.parametrize("check", CHECKS)
def test_an_honest_run_passes_every_check(sealed_run: Path, check: str) -> None:
    assert wrong(sealed_run, check) == []


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: f"{forgery.check}: {forgery.name}")
def test_a_forgery_is_noticed(copied: Path, forgery: Forgery, table: dict[str, str]) -> None:
    forgery.forge(copied)
    if forgery.sealed:
        seal(copied)
    try:
        found = noticed(copied, forgery.check)
        assert found != []
        told = (
            f"{found[0].name}: recorded {found[0].recorded or 'nothing'}, found {found[0].found or 'nothing'}"
        )
    except DataError as error:
        assert forgery.name == "a second record in a comment", error
        told = str(error)
    cells = [forgery.name, "yes" if forgery.sealed else "no", forgery.check, told]
    table[forgery.name] = (
        f"| {' | '.join(markdown_text(cell.replace(str(copied), 'RUN')) for cell in cells)} |"
    )


def test_the_document_has_every_forgery() -> None:
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.partition(TABLE_BEGIN)[2].splitlines() if " | " in line]
    assert [(row[0].removeprefix("| "), row[2]) for row in rows if row[1] in ("yes", "no")] == [
        (markdown_text(forgery.name), forgery.check) for forgery in FORGERIES
    ]


def test_a_number_that_is_none_is_refused_when_it_is_read(copied: Path) -> None:
    path = copied / "precision.json"
    path.write_text(path.read_text().replace('"kl_max": ', '"kl_max": NaN, "was": ', 1))
    with pytest.raises(DataError, match="NaN is no finite number"):
        verify(copied, repeat=False)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tiny-w8a8/quant_model_weight_w8a8.safetensors", "w8a8 weights"),
        ("tiny-float/tokenizer.json", "float tokenizer"),
        ("tiny-float/config.json", "float settings"),
        ("questions.jsonl", "questions"),
    ],
)
def test_other_weights_tokenizers_settings_and_questions_are_noticed(
    sealed_run: Path, file: str, name: str
) -> None:
    path = sealed_run.parent / file
    before = path.read_bytes()
    try:
        path.write_bytes(
            before.replace(b"How are", b"Who are")
            if name == "questions"
            else before[:-2] + b" " + before[-1:]
        )
        assert name in wrong(sealed_run, "origins")
    finally:
        path.write_bytes(before)
    assert wrong(sealed_run, "origins") == []


def test_an_honest_run_is_verified_with_and_without_its_folder(sealed_run: Path) -> None:
    whole, page = verify(sealed_run, repeat=False), verify(sealed_run / "report.html", repeat=False)
    assert (whole.outcome, whole.wrong) == (VERIFIED, [])
    assert (page.outcome, page.wrong, page.alone) == (VERIFIED, [], True)
    assert all("keeps no" in one.found for one in whole.unchecked)


def test_a_page_alone_is_judged_by_what_it_shows(copied: Path, tmp_path: Path) -> None:
    page = Path(shutil.copy(copied / "report.html", tmp_path / "page.html"))
    page.write_text(page.read_text().replace(" MB</td>", "0 MB</td>", 1))
    assert verify(page, repeat=False).outcome == NOT_VERIFIED
    # who claims another version of the kit keeps the page from being made again: then nothing is verified
    page.write_text(page.read_text().replace('"made_with":{"code":"', '"made_with":{"code":"0', 1))
    found = verify(page, repeat=False)
    assert found.outcome == NOTHING
    assert found.outcome_said == "what the page shows could not be checked"
    assert "checks of its record passed" in summary(found)


def test_a_folder_of_a_record_alone_is_not_verified(copied: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    record = json.loads((copied / "performance.json").read_text())
    (bare / "performance.json").write_text(json.dumps(record | {"published": [], "cases": []}))
    assert verify(bare, repeat=False).outcome != VERIFIED


def test_a_run_of_before_the_manifest_is_told_and_does_not_fail(copied: Path) -> None:
    (copied / "manifest.json").unlink()
    state = json.loads((copied / "run.json").read_text())
    del state["manifest"]
    (copied / "run.json").write_text(json.dumps(state))
    found = verify(copied, repeat=False)
    assert found.outcome == VERIFIED
    assert any("made by an older version" in one.found for one in found.unchecked)

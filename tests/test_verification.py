"""Verify and pack: what a run was made from, and whether its figures come out again."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from telechat_kit.errors import DataError
from telechat_kit.packing import pack
from telechat_kit.reports.verification_tables import origins_frame, summary, verdicts_frame
from telechat_kit.run_data import read_run_data
from telechat_kit.verification import check_origins, judge, repeat_run, verify


def verdicts(run: Path) -> dict[str, str]:
    return {origin.name: origin.verdict for origin in check_origins(read_run_data(run))}


def test_weights_tokenizers_and_texts_are_checked_by_hash(tiny_run: Path) -> None:
    found = verdicts(tiny_run)
    assert {"float weights", "w8a8 weights", "float tokenizer", "evaluation text", "calibration text"} <= set(
        found
    )
    assert set(found.values()) <= {"same", "differs"}
    assert verify(tiny_run, repeat=False).good


def test_changed_and_lost_weights_are_told_apart(tiny_run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny_run.parent, tmp_path / "all"))
    weights = moved / "tiny-w8a8" / "quant_model_weight_w8a8.safetensors"
    for name in ("quantize.json", "precision.json", "performance.json"):
        path = moved / "tiny" / name
        path.write_text(
            path.read_text().replace(str(tiny_run.parent / "tiny-w8a8"), str(moved / "tiny-w8a8"))
        )
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert verdicts(moved / "tiny")["w8a8 weights"] == "changed"
    assert not verify(moved / "tiny", repeat=False).good
    shutil.rmtree(moved / "tiny-w8a8")
    assert verdicts(moved / "tiny")["w8a8 weights"] == "not readable"


def test_a_file_changed_after_the_run_is_named(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    state = {"parameters": {}, "steps": [{"name": "03_precision", "left": {"precision.json": "0" * 64}}]}
    (run / "run.json").write_text(json.dumps(state))
    assert verdicts(run)["file precision.json"] == "changed"


def test_figures_are_reproduced_within_their_interval_or_not(tiny_run: Path) -> None:
    run = read_run_data(tiny_run)
    assert run.precision is not None
    assert run.quantize is not None
    found = run.precision.divergence
    ratio, kl = found.perplexity_ratio, found.kl_mean
    other = replace(
        run,
        precision=replace(
            run.precision,
            divergence=replace(
                found,
                perplexity_ratio=replace(ratio, value=(ratio.low + ratio.high) / 2),
                kl_mean=replace(kl, value=kl.high * 2),
            ),
        ),
        quantize=replace(run.quantize, w8a8_bytes=1, seconds=99.0),
    )
    said = {verdict.name: verdict.verdict for verdict in judge(run, other)}
    assert said["perplexity_float"] == "reproduced"
    assert said["perplexity_ratio"] == "within its interval"
    assert said["kl_mean"] == "not reproduced"
    assert said["w8a8_bytes"] == "not reproduced"
    assert said["quantize_seconds"] == "no interval"


def test_a_run_that_does_not_tell_its_parameters_cannot_be_repeated(tiny_run: Path) -> None:
    with pytest.raises(DataError, match=r"does not tell its parameters.*--hashes-only"):
        repeat_run(read_run_data(tiny_run))


def test_the_tables_show_both_sides(tiny_run: Path) -> None:
    found = verify(tiny_run, repeat=False)
    assert list(origins_frame(found).columns) == ["made from", "recorded", "here", "verdict"]
    assert verdicts_frame(found).empty
    assert "hashes are the same" in summary(found)


def test_a_pack_holds_all_but_the_weights_and_packs_to_the_same_bytes(tiny_run: Path, tmp_path: Path) -> None:
    first, second = pack(tiny_run, tmp_path / "a.zip"), pack(tiny_run, tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("PACK.json"))
    assert {
        "results/tiny/report.html",
        "results/tiny/samples.jsonl",
        "notebooks/03_precision.ipynb",
        "telechat_kit/verification.py",
        "environment/versions.yaml",
        "pyproject.toml",
    } <= names
    assert not any(name.endswith((".safetensors", ".pyc")) for name in names)
    assert set(manifest["files"]) == names - {"PACK.json"}
    assert all(len(value) == 64 for value in manifest["weights"].values())

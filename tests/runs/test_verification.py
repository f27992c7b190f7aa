"""Verify and pack: what a run was made from, and whether its figures come out again."""

import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import DataError
from telechat_kit.runs.archive import pack
from telechat_kit.runs.origins import check_origins, made_again
from telechat_kit.runs.repetition import judge, repeat_run
from telechat_kit.runs.verification import verify
from telechat_kit.runs.verification_tables import parts_frame, summary, unchecked_lines, verdicts_frame


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


def test_settings_of_a_checkpoint_are_checked_by_hash(
    tiny_run: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    moved = Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))
    path = run / "setup.json"
    path.write_text(path.read_text().replace(str(tiny_folder), str(moved)))
    assert verdicts(run)["float settings"] == "same"
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"n_head": 8}))  # its shapes are those of 4
    assert verdicts(run)["float settings"] == "changed"


def test_a_file_changed_after_the_run_is_named(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    state = {"parameters": {}, "steps": [{"name": "03_precision", "left": {"precision.json": "0" * 64}}]}
    (run / "run.json").write_text(json.dumps(state))
    assert "file precision.json" in {finding.name for finding in verify(run, repeat=False).wrong}


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
                kl_mean=replace(kl, value=kl.high * 2, low=kl.high * 1.9),
            ),
        ),
        quantize=replace(run.quantize, w8a8_bytes=1, seconds=99.0),
    )
    said = {verdict.name: verdict.verdict for verdict in judge(run, other)}
    assert said["perplexity_float"] == "reproduced"
    assert said["perplexity_ratio"] == "within the interval of the difference"
    assert said["kl_mean"] == "not reproduced"
    assert said["w8a8_bytes"] == "not reproduced"
    assert said["quantize_seconds"] == "no interval"


def test_answers_that_part_elsewhere_are_judged_by_the_interval_over_questions(tiny_run: Path) -> None:
    """Sums in another order send a greedy answer another way: one answer more or less alike is no other model."""
    run = read_run_data(tiny_run)
    assert run.precision is not None
    some = run.precision.answers[0]

    def with_alike(*shares: float) -> RunData:
        answers = [replace(some, similarity=share) for share in shares]
        return replace(run, precision=replace(run.precision, answers=answers))

    def said(first: RunData, second: RunData) -> str:
        return next(v.verdict for v in judge(first, second) if v.name == "answer_similarity")

    recorded = with_alike(0.2, 0.3, 0.6, 0.3, 0.5, 0.4)
    assert said(recorded, with_alike(0.2, 0.5, 0.6, 0.3, 0.5, 0.5)) == "within the interval of the difference"
    assert said(recorded, with_alike(0.95, 1.0, 0.9, 1.0, 1.0, 0.95)) == "not reproduced"
    assert said(with_alike(0.2), with_alike(0.9)) == "no interval"


def test_a_run_that_does_not_tell_its_parameters_cannot_be_repeated(tiny_run: Path) -> None:
    with pytest.raises(DataError, match=r"does not tell its parameters.*--hashes-only"):
        repeat_run(read_run_data(tiny_run))


def test_the_tables_show_both_sides(tiny_run: Path) -> None:
    found = verify(tiny_run, repeat=False)
    parts = parts_frame(found).set_index("checked")
    assert {"manifest", "figures", "answers", "speeds", "made from", "weights"} <= set(parts.index)
    assert parts["wrong"].sum() == 0
    assert any("keeps no single positions" in line for line in unchecked_lines(found))
    assert verdicts_frame(found).empty
    assert "0 failed" in summary(found)


def test_weights_that_are_gone_are_judged_by_those_made_again(tiny_run: Path, tmp_path: Path) -> None:
    run = read_run_data(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    assert run.quantize is not None
    gone = replace(run, quantize=replace(run.quantize, quant_path=str(tmp_path / "gone")))
    origins = list(check_origins(gone))
    lost = [origin.name for origin in origins if origin.verdict == "not readable"]
    assert lost == ["w8a8 weights", "w8a8 tokenizer", "w8a8 settings"]
    again = {origin.name: origin.verdict for origin in made_again(origins, gone, run)}
    assert again["w8a8 weights, made again"] == "same"
    other = replace(run.quantize.conditions, hashes={"w8a8_weights": "0" * 64, "w8a8_tokenizer": "0" * 64})
    changed = replace(run, quantize=replace(run.quantize, conditions=other))
    again = {origin.name: origin.verdict for origin in made_again(origins, gone, changed)}
    assert again["w8a8 weights, made again"] == "changed"


def test_data_from_elsewhere_is_packed_and_found_where_the_archive_has_it(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    lines = tmp_path / "mine.txt"
    lines.write_text("some text")
    parameters = {"text_path": str(lines), "jsonl_path": "params/data/questions.jsonl", "run_folder": "x"}
    (run / "run.json").write_text(json.dumps({"parameters": parameters, "steps": []}))
    (run / "params.yaml").write_text(yaml.safe_dump(parameters))
    with pytest.raises(DataError, match=r"mine\.txt, the text_path of the run, lies outside"):
        pack(run, tmp_path / "a.zip")
    with zipfile.ZipFile(pack(run, tmp_path / "a.zip", outside=True)) as archive:
        assert archive.read("data/text_path/mine.txt") == b"some text"
        assert "params/data/questions.jsonl" in archive.namelist()
        moved = parameters | {"text_path": "data/text_path/mine.txt"}
        assert yaml.safe_load(archive.read("results/run/params.yaml")) == moved
        assert json.loads(archive.read("results/run/run.json"))["parameters"] == moved
        manifest = json.loads(archive.read("PACK.json"))
        state = archive.read("results/run/run.json")
    assert manifest["files"]["results/run/run.json"] == hashlib.sha256(state).hexdigest()
    lines.unlink()
    with pytest.raises(DataError, match=r"mine\.txt, the text_path of the run, is gone"):
        pack(run, tmp_path / "a.zip")


@pytest.mark.parametrize("path", ["/etc/passwd", "..", ".", "params/../../", "results/../.git"])
def test_a_foreign_run_packs_nothing_that_it_only_names(tiny_run: Path, tmp_path: Path, path: str) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "run.json").write_text(json.dumps({"parameters": {"tasks_path": path}, "steps": []}))
    with pytest.raises(DataError, match=r"the tasks_path of the run, (lies outside|is gone)"):
        pack(run, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_a_run_without_its_parameters_file_packs_and_a_link_to_itself_is_named_or_left_out(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "params.yaml").unlink(missing_ok=True)
    pack(run, tmp_path / "a.zip")
    (run / "loop").symlink_to(run / "loop")
    try:
        with zipfile.ZipFile(pack(run, tmp_path / "b.zip")) as archive:
            assert not any("loop" in name for name in archive.namelist())
    except DataError as error:
        assert "loop, a link of the run" in str(error)


def test_a_file_whose_name_is_not_utf_8_is_named_before_anything_is_packed(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / os.fsdecode(b"a\xff.csv")).touch()
    with pytest.raises(DataError, match=r"a\\udcff\.csv': this name is not UTF-8\. Rename the file"):
        pack(run, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_a_link_out_of_the_run_is_not_followed(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (tmp_path / "secret").write_text("secret")
    (run / "table.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"table\.csv, a link of the run, lies outside"):
        pack(run, tmp_path / "a.zip")
    with zipfile.ZipFile(pack(run, tmp_path / "a.zip", outside=True)) as archive:
        assert archive.read("results/run/table.csv") == b"secret"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", "[1]", "run.json is damaged"),
        ("run.json", '{"steps": [1]}', r"run.json is damaged \(steps\.0"),
        ("run.json", '{"steps": [{"name": "a", "status": "b", "parts": []}]}', r"steps\.0\.parts"),
        ("run.json", '{"steps": [{"name": "a", "status": "b", "left": {"../x": "y"}}]}', r"steps\.0\.left"),
        ("run.json", '{"parameters": {"level": {}}}', r"run.json is damaged \(parameters\.level"),
        ("run.json", '"\\ud83d"', "half a character"),
        ("samples.jsonl", '{"precision": 1}\n', r"samples.jsonl is damaged \(0\."),
        ("samples.jsonl", "[1, 2]\n", "samples.jsonl is damaged"),
        ("samples.jsonl", "\n\n{", "samples.jsonl, line 3 is not valid JSON"),
        ("samples.jsonl", "[" * 100_000, "samples.jsonl, line 1: nested deeper"),
        ("precision.json", "[]", r"precision\.json is damaged \(Input .*\)\. Run the step again"),
        ("setup.json", "null", r"setup\.json is damaged"),
    ],
)
def test_a_damaged_run_is_refused_by_file(
    tiny_run: Path, tmp_path: Path, file: str, content: str, message: str
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / file).write_text(content)
    with pytest.raises(DataError, match=message):
        verify(run, repeat=False)


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
        "telechat_kit/runs/verification.py",
        "environment/versions.yaml",
        "pyproject.toml",
    } <= names
    assert not any(name.endswith((".safetensors", ".pyc")) for name in names)
    assert set(manifest["files"]) == names - {"PACK.json"}
    assert all(len(value) == 64 for value in manifest["weights"].values())

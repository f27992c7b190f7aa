"""The set-up check on real folders: what is there, what is missing, and what to do about it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from telechat_kit.environment import (
    EMBEDDED_MODELS,
    SCHEMA,
    Check,
    SetupRecord,
    check_setup,
    model_parts,
    prepare_checkpoint,
    required_versions,
)
from telechat_kit.errors import CheckpointError, DeviceError, ParameterError
from telechat_kit.model.hashes import settings_hash, tokenizer_hash, weights_hash
from telechat_kit.records import read_record, write_record


@pytest.fixture
def own_tiny(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "own"))


def rows(setup: SetupRecord) -> dict[str, Check]:
    return {check.component: check for check in setup.checks}


def test_an_embedded_model_is_made_once(tmp_path: Path) -> None:
    folder = prepare_checkpoint(tmp_path / "tiny", "tiny-random")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare_checkpoint(folder, "tiny-random") == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_embedded_model_never_replaces_a_checkpoint_of_the_user(own_tiny: Path) -> None:
    weights = weights_hash(own_tiny)
    assert prepare_checkpoint(own_tiny, "smollm2-135m") == own_tiny
    assert weights_hash(own_tiny) == weights


def test_an_embedded_model_never_replaces_a_checkpoint_that_is_half_copied(own_tiny: Path) -> None:
    (own_tiny / "config.json").unlink()
    with pytest.raises(CheckpointError, match="is no checkpoint folder"):
        prepare_checkpoint(own_tiny, "tiny-random")
    assert (own_tiny / "model.safetensors").is_file()


def test_an_embedded_model_fills_an_empty_folder(tmp_path: Path) -> None:
    assert (prepare_checkpoint(tmp_path, "tiny-random") / "model.safetensors").is_file()


def test_a_checkpoint_that_is_there_needs_no_embedded_model(tiny_folder: Path) -> None:
    assert prepare_checkpoint(str(tiny_folder)) == tiny_folder


def test_an_unknown_embedded_model_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ParameterError) as caught:
        prepare_checkpoint(tmp_path / "model", "smollm")
    assert '"smollm" is unknown' in str(caught.value)
    assert all(name in str(caught.value) for name in EMBEDDED_MODELS)
    assert not (tmp_path / "model").exists()


def test_a_missing_folder_without_an_embedded_model_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model does not exist. Correct the path"):
        prepare_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "config.json").unlink(), "is no checkpoint folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), '"llama", expected'),
    ],
)
def test_a_broken_checkpoint_is_found_before_any_work(
    own_tiny: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(own_tiny)
    for check in (prepare_checkpoint, lambda folder: check_setup(folder, folder)):
        with pytest.raises(CheckpointError, match=message):
            check(own_tiny)


def test_weights_that_are_cut_short_are_found_before_any_work(own_tiny: Path) -> None:
    path = own_tiny / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged .* Copy the file again"):
        prepare_checkpoint(own_tiny)


def test_every_row_of_a_whole_checkpoint_is_good(tiny_folder: Path, tmp_path: Path) -> None:
    setup = check_setup(tiny_folder, tmp_path / "not" / "yet", "cpu")
    assert {check.verdict for check in setup.checks} == {"ok"}
    assert {check.advice for check in setup.checks} == {""}
    assert {
        *required_versions("cpu"),
        "chip",
        "device",
        "free memory",
        "free disk",
        "weights",
        "tokenizer",
    } == {check.component for check in setup.checks}
    assert not (tmp_path / "not").exists()


def test_the_checkpoint_is_described_as_it_lies_on_disk(tiny_folder: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    setup = check_setup(tiny_folder, tmp_path)
    assert setup.architecture["hidden size"] == config["hidden_size"]
    assert setup.architecture["vocabulary"] == config["vocab_size"]
    assert setup.checkpoint_bytes == (tiny_folder / "model.safetensors").stat().st_size
    assert setup.origin["name"] == "random TeleChat"
    assert setup.conditions.hashes == {
        "float_weights": weights_hash(tiny_folder),
        "float_tokenizer": tokenizer_hash(tiny_folder),
        "float_settings": settings_hash(tiny_folder),
    }


def test_a_tokenizer_without_a_chat_template_is_said(own_tiny: Path, tmp_path: Path) -> None:
    for name, old, new in (
        ("tokenizer.json", "<_user>", "<_other>"),
        ("tokenizer_config.json", "<_user>", "<_other>"),
    ):
        path = own_tiny / name
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    row = rows(check_setup(own_tiny, tmp_path))["tokenizer"]
    assert (row.verdict, row.found) == ("warning", "262 tokens, no chat template")
    assert "chat_template.jinja" in row.advice


def test_the_parts_are_all_tensors_of_the_file(tiny_folder: Path) -> None:
    shapes = {name: tensor.shape for name, tensor in load_file(tiny_folder / "model.safetensors").items()}
    parts = {part.part: part for part in model_parts(tiny_folder)}
    assert sum(part.parameters for part in parts.values()) == sum(shape.numel() for shape in shapes.values())
    assert sum(part.bytes for part in parts.values()) == 4 * sum(shape.numel() for shape in shapes.values())
    attention = [shape.numel() for name, shape in shapes.items() if ".self_attention." in name]
    assert parts["attention"].parameters == sum(attention)
    assert set(parts) == {"embedding", "attention", "feed-forward", "norms"}  # the head is tied


def test_a_tokenizer_that_cannot_be_read_is_a_missing_row_with_advice(own_tiny: Path) -> None:
    for path in own_tiny.glob("*token*"):
        path.unlink()
    row = rows(check_setup(own_tiny, own_tiny))["tokenizer"]
    assert (row.found, row.verdict) == ("not usable", "missing")
    assert str(own_tiny) in row.advice


def test_a_tokenizer_of_another_model_is_a_missing_row(own_tiny: Path) -> None:
    path = own_tiny / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    extra = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append({"id": 262, "content": "<more>", **extra})
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    row = rows(check_setup(own_tiny, own_tiny))["tokenizer"]
    assert (row.found, row.verdict) == ("not usable", "missing")
    assert "has the id 262, the model 262 ids. Copy the tokenizer that belongs to the weights" in row.advice


def test_a_version_that_is_too_old_or_absent_is_a_missing_row(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "notebooks").mkdir(parents=True)
    (project / "notebooks" / "01_setup.ipynb").write_text("{}")
    (project / "params").mkdir()
    (project / "environment").mkdir()
    (project / "environment" / "versions.yaml").write_text(
        'kit:\n  devices: [cpu]\n  required: {torch: "99.1", "no-such-package": "1.0", numpy: "1.0"}\n'
    )
    monkeypatch.chdir(project)
    found = rows(check_setup(tiny_folder, tmp_path))
    assert (found["torch"].verdict, found["torch"].advice) == ("wrong", "install torch 99.1 or newer")
    assert (found["no-such-package"].found, found["no-such-package"].verdict) == ("not installed", "missing")
    assert found["numpy"].verdict == "ok"


def test_a_device_that_is_not_there_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r'device "npu:0" asked for, but torch'):
        check_setup(tiny_folder, tmp_path, "npu:0")
    with pytest.raises(DeviceError, match=r'device "tpu" is unknown. Use auto'):
        check_setup(tiny_folder, tmp_path, "tpu")


def test_the_record_of_a_real_check_comes_back_equal(tiny_folder: Path, tmp_path: Path) -> None:
    setup = check_setup(tiny_folder, tmp_path)
    write_record(tmp_path, setup)
    assert read_record(tmp_path, SetupRecord, SCHEMA) == setup

"""Quantized weights carry their hash: a bit flip is noticed when loading is asked to look, and by whatever runs."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from telechat_kit.errors import CheckpointError
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.model_pair import Pair
from telechat_kit.model.folder import W8A8_WEIGHTS
from telechat_kit.model.hashes import WEIGHTS, require_recorded_weights
from telechat_kit.provenance import file_hash
from telechat_kit.quantization.formats.conversion import FORMATS, export
from telechat_kit.quantization.pipeline import check_given_weights


@pytest.fixture
def quantized(tiny_w8a8_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_w8a8_folder, tmp_path / "quantized"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap_tensors(path: Path) -> None:
    tensors = load_file(path)
    one, other = "h.0.mlp.gate_proj.weight", "h.0.mlp.up_proj.weight"
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_record_beside_the_weights_holds_their_hash(tiny_w8a8_folder: Path) -> None:
    recorded = json.loads((tiny_w8a8_folder / "quantize.json").read_text())[WEIGHTS]
    assert recorded == {W8A8_WEIGHTS: file_hash(tiny_w8a8_folder / W8A8_WEIGHTS)}
    assert load_model(tiny_w8a8_folder, "cpu", check_hash=True).config.n_layer == 4


@pytest.mark.parametrize("change", [flip_a_bit, swap_tensors])
def test_changed_weights_are_refused_by_name_where_they_are_looked_at(
    change: object, quantized: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    change(quantized / W8A8_WEIGHTS)  # type: ignore[operator]
    load_model(quantized, "cpu")  # nothing looks
    message = rf"{W8A8_WEIGHTS} is not the file that was written here"
    with pytest.raises(CheckpointError, match=message):
        load_model(quantized, "cpu", check_hash=True)
    with pytest.raises(CheckpointError, match=message):
        Pair(tiny_folder, quantized, "cpu")
    with pytest.raises(CheckpointError, match=message):
        check_given_weights(tiny_folder, quantized, device="cpu")
    with pytest.raises(CheckpointError, match=message):
        export(quantized, tmp_path / "export", "ascendV1")


def test_weights_that_nothing_tells_of_pass_only_where_no_check_was_asked_for(
    quantized: Path, tiny_folder: Path
) -> None:
    (quantized / "quantize.json").unlink()
    assert not require_recorded_weights(quantized)
    Pair(tiny_folder, quantized, "cpu")
    with pytest.raises(CheckpointError, match="holds hashes of the weights, so they cannot be checked"):
        load_model(quantized, "cpu", check_hash=True)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_carries_the_hashes_of_its_own_files(
    form: str, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    export(tiny_w8a8_folder, tmp_path / "out", form)
    assert require_recorded_weights(tmp_path / "out")
    first = min(json.loads((tmp_path / "out" / "export.json").read_text())[WEIGHTS])
    flip_a_bit(tmp_path / "out" / first)
    with pytest.raises(CheckpointError, match=f"{first} is not the file"):
        require_recorded_weights(tmp_path / "out")

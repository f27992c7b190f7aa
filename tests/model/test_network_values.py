"""What no weight table tells: a config.json that computes otherwise with the same shapes is noticed by what lies beside."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from telechat_kit.errors import CheckpointError
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.model_pair import Pair
from telechat_kit.model.folder import read_config
from telechat_kit.model.network_values import NETWORK, network_values
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.formats.conversion import FORMATS, export
from telechat_kit.quantization.pipeline import check_given_weights


def edit(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.fixture
def floats(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "floats"))


@pytest.fixture
def quantized(tiny_w8a8_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_w8a8_folder, tmp_path / "quantized"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_head", 8), ("rope_theta", 5000.0), ("training_seqlen", 1024), ("layer_norm_epsilon", 1e-3)],
)
def test_a_quantized_folder_notices_another_network(quantized: Path, key: str, value: float) -> None:
    load_model(edit(quantized, use_cache=False), "cpu")  # decides nothing
    edit(quantized, **{key: value})
    for load in (
        lambda: load_model(quantized, "cpu"),
        lambda: AutoModelForCausalLM.from_pretrained(quantized),
    ):
        with pytest.raises(
            CheckpointError, match=rf"config\.json says {key} {value}, the weights were made for"
        ):
            load()


def test_a_value_that_the_file_leaves_out_is_the_one_that_is_used(quantized: Path) -> None:
    told = json.loads((quantized / "quantize.json").read_text())[NETWORK]
    assert told == network_values(read_config(quantized))
    load_model(edit(quantized, base_seqlen=told["base_seqlen"]), "cpu")
    with pytest.raises(CheckpointError, match="base_seqlen 77"):
        load_model(edit(quantized, base_seqlen=77), "cpu")


@pytest.mark.parametrize("form", FORMATS)
def test_exports_notice_it_too(form: str, tiny_w8a8_folder: Path, tmp_path: Path) -> None:
    export(tiny_w8a8_folder, tmp_path / "out", form)
    load_model(tmp_path / "out", "cpu")
    beside = tmp_path / "out" / "float"
    edit(beside if beside.is_dir() else tmp_path / "out", n_head=8)
    with pytest.raises(CheckpointError, match="n_head 8"):
        load_model(tmp_path / "out", "cpu")


def test_weights_of_an_older_kit_load_and_a_pair_notices(
    quantized: Path, floats: Path, tiny_folder: Path
) -> None:
    record = json.loads((quantized / "quantize.json").read_text())
    del record[NETWORK]
    (quantized / "quantize.json").write_text(json.dumps(record))
    load_model(edit(quantized, n_head=8), "cpu")  # nothing there tells
    with pytest.raises(CheckpointError, match=r"n_head 4.*n_head 8.*do not belong together"):
        Pair(tiny_folder, quantized, "cpu")
    edit(quantized, n_head=4)
    Pair(tiny_folder, quantized, "cpu")
    edit(floats, rope_theta=5000.0)
    with pytest.raises(CheckpointError, match=r"rope_theta 5000\.0.*rope_theta 10000\.0"):
        Pair(floats, quantized, "cpu")
    with pytest.raises(CheckpointError, match=r"rope_theta 5000\.0"):
        check_given_weights(floats, quantized, device="cpu")


def test_float_weights_are_never_turned_as_they_run(floats: Path) -> None:
    message = r"config\.json: online_rotation is set, which only weights quantized by this kit have"
    for read in (lambda: load_model(floats, "cpu"), lambda: Shards(floats)):
        edit(floats, online_rotation=False)
        read()
        edit(floats, online_rotation=True)
        with pytest.raises(CheckpointError, match=message):
            read()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_float_weights_that_are_not_finite_are_refused_when_they_are_loaded(
    floats: Path, value: float
) -> None:
    tensors = load_file(floats / "model.safetensors")
    tensors["transformer.h.3.mlp.up_proj.weight"][5, 7] = value
    save_file(tensors, floats / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: transformer\.h\.3\.mlp\.up_proj\.weight holds NaN"
    ):
        load_model(floats, "cpu")


def test_a_dtype_too_narrow_for_the_weights_is_named(floats: Path) -> None:
    tensors = load_file(floats / "model.safetensors")
    tensors["transformer.ln_f.weight"] = tensors["transformer.ln_f.weight"].float()
    tensors["transformer.ln_f.weight"][0] = 1e6
    save_file(tensors, floats / "model.safetensors", metadata={"format": "pt"})
    load_model(floats, "cpu", torch.float32)
    with pytest.raises(CheckpointError, match=r"ln_f\.weight holds values that torch\.float16 cannot"):
        load_model(floats, "cpu", torch.float16)

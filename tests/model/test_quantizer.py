"""W8A8 folders through transformers: from_pretrained gives the model that the kit's own reader gives."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    pipeline,
)

from telechat_kit.errors import CheckpointError, DeviceError
from telechat_kit.inference.loading import load_model
from telechat_kit.model import TelechatForCausalLM
from telechat_kit.model.folder import W8A8_WEIGHTS
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.model.w8a8 import linear_names
from telechat_kit.quantization.formats.conversion import export

IDS = torch.arange(4, 40)[None]


def logits(model: TelechatForCausalLM) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def read(folder: Path, **options: Any) -> TelechatForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def test_a_w8a8_folder_gives_the_int8_model(tiny_w8a8_folder: Path) -> None:
    model, expected = read(tiny_w8a8_folder), load_model(tiny_w8a8_folder, "cpu")
    assert {type(model.get_submodule(name)) for name in linear_names(model)} == {W8A8Linear}
    assert model.is_quantized and not model.training
    assert torch.equal(logits(model), logits(expected))


def test_so_do_both_layouts_with_grouped_heads(grouped_w8a8_folder: Path) -> None:
    assert torch.equal(logits(read(grouped_w8a8_folder)), logits(load_model(grouped_w8a8_folder, "cpu")))


def test_so_does_the_newer_description_without_a_key_in_the_config(
    tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    export(tiny_w8a8_folder, tmp_path / "ascend", "ascendV1")
    config = tmp_path / "ascend" / "config.json"
    config.write_text(config.read_text().replace('"quantize": "w8a8"', '"quantized_by": "msModelSlim"'))
    assert torch.equal(logits(read(tmp_path / "ascend")), logits(load_model(tiny_w8a8_folder, "cpu")))


def test_options_of_transformers_are_obeyed(tiny_w8a8_folder: Path) -> None:
    assert torch.equal(logits(read(tiny_w8a8_folder, device_map="auto")), logits(read(tiny_w8a8_folder)))
    assert read(tiny_w8a8_folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    model, info = TelechatForCausalLM.from_pretrained(
        tiny_w8a8_folder, use_cache=False, output_loading_info=True
    )
    assert not model.config.use_cache
    assert not any(info.values())
    config = AutoConfig.from_pretrained(tiny_w8a8_folder)
    read(tiny_w8a8_folder.parent, subfolder=tiny_w8a8_folder.name, config=config)


def test_a_pipeline_answers_as_generate_does(tiny_w8a8_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_w8a8_folder)
    options = {"max_new_tokens": 5, "do_sample": False}
    (answer,) = pipeline("text-generation", model=str(tiny_w8a8_folder))("Hello", **options)
    ids = tokenizer("Hello", return_tensors="pt")
    expected = load_model(tiny_w8a8_folder, "cpu").generate(**ids, **options)
    assert answer["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_a_damaged_folder_is_refused_by_tensor(tiny_w8a8_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_w8a8_folder, tmp_path / "cut")
    path = folder / W8A8_WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=W8A8_WEIGHTS):
        read(folder)


@pytest.mark.parametrize(
    ("attempt", "error", "said"),
    [
        (AutoModel.from_pretrained, CheckpointError, "AutoModelForCausalLM"),
        (
            lambda folder: read(
                folder, device_map={"transformer": "disk", "lm_head": "cpu"}, offload_folder="x"
            ),
            DeviceError,
            "cannot run with weights on disk",
        ),
        (
            lambda folder: read(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True)),
            ValueError,
            "TelechatW8A8Config",
        ),
        (
            lambda folder: read("nobody/nothing", config=AutoConfig.from_pretrained(folder)),
            CheckpointError,
            "Download it first",
        ),
        (
            lambda folder: read(folder).save_pretrained(folder.parent / "saved"),
            ValueError,
            "not serializable",
        ),
    ],
    ids=["without its head", "on the disk", "another quantizer", "not here", "saving"],
)
def test_what_cannot_be_done_is_refused(
    attempt: Any, error: type[Exception], said: str, tiny_w8a8_folder: Path
) -> None:
    with pytest.raises(error, match=said):
        attempt(tiny_w8a8_folder)


def test_paths_are_relative_to_the_current_folder(
    tiny_w8a8_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_w8a8_folder.parent)
    assert torch.equal(logits(load_model(tiny_w8a8_folder.name, "cpu")), logits(read(tiny_w8a8_folder.name)))
    monkeypatch.chdir("/")
    with pytest.raises(CheckpointError, match=f"folder /{tiny_w8a8_folder.name} does not exist"):
        load_model(tiny_w8a8_folder.name, "cpu")


def test_weights_are_readable_by_others(tiny_folder: Path, tiny_w8a8_folder: Path) -> None:
    files = [tiny_folder / "model.safetensors", tiny_w8a8_folder / W8A8_WEIGHTS]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o644, 0o644]

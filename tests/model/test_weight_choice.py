"""Which weight files a folder means: one choice for every step, and both named where nothing tells."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.inference.loading import load_model
from telechat_kit.model.folder import DYNAMIC_WEIGHTS, W8A8_WEIGHTS, weight_files
from telechat_kit.model.weight_shards import Shards

NORM = "transformer.ln_f.weight"
SAFE, BIN = "model.safetensors", "pytorch_model.bin"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "folder"))


def old(folder: Path) -> dict[str, Tensor]:
    """Tensors of an older state of the weights: other ones under the same names."""
    return {name: value + 1 for name, value in load_file(folder / SAFE).items()}


def put_index(folder: Path, name: str, shard: str) -> None:
    names = load_file(folder / SAFE) if (folder / SAFE).is_file() else {"ln_f.weight": 0}
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


def stale_shards(folder: Path) -> None:
    save_file(old(folder), folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    put_index(folder, SAFE, "model-00001-of-00001.safetensors")


def stale_bin(folder: Path) -> None:
    torch.save(old(folder), folder / BIN)


def stale_bin_shards(folder: Path) -> None:
    torch.save(old(folder), folder / "pytorch_model-00001-of-00001.bin")
    put_index(folder, BIN, "pytorch_model-00001-of-00001.bin")


def lost_shards(folder: Path) -> None:
    put_index(folder, SAFE, "model-00001-of-00001.safetensors")


@pytest.mark.parametrize("leave", [stale_bin, stale_bin_shards, lost_shards])
def test_every_reader_takes_the_weights_that_transformers_takes(
    folder: Path, tiny_folder: Path, leave: Callable[[Path], None]
) -> None:
    leave(folder)
    meant = load_file(tiny_folder / SAFE)[
        "ln_f.weight" if "ln_f.weight" in load_file(tiny_folder / SAFE) else NORM
    ]
    shards, model = Shards(folder), load_model(folder, "cpu")
    assert [path.name for path in weight_files(folder)] == [SAFE]
    assert torch.equal(shards.read([NORM], torch.device("cpu"))[NORM], meant)
    assert torch.equal(model.state_dict()[NORM], meant)


@pytest.mark.parametrize("read", [weight_files, Shards, load_model])
def test_weights_that_are_there_twice_are_refused_by_every_reader(
    folder: Path, read: Callable[[Path], object]
) -> None:
    stale_shards(folder)
    with pytest.raises(
        CheckpointError, match=r"as model\.safetensors and as model\.safetensors\.index\.json"
    ):
        read(folder)
    (folder / SAFE).unlink()
    assert [path.name for path in weight_files(folder)] == ["model-00001-of-00001.safetensors"]


def test_quantized_weights_of_two_kinds_in_one_folder_are_refused(
    tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_w8a8_folder, tmp_path / "folder"))
    shutil.copyfile(folder / W8A8_WEIGHTS, folder / DYNAMIC_WEIGHTS)
    with pytest.raises(CheckpointError, match=f"{W8A8_WEIGHTS} and as {DYNAMIC_WEIGHTS}"):
        load_model(folder, "cpu")

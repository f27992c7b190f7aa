"""Weights read one by one from the shards: the values of the model, in both formats, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from telechat_kit import load_model
from telechat_kit.errors import CheckpointError
from telechat_kit.model import weight_shards as shards_module
from telechat_kit.model.layout import HEAD, TELECHAT
from telechat_kit.model.weight_shards import Shards

GOLDEN = Path(__file__).parent.parent / "data" / "model"
CPU = torch.device("cpu")


def copy(case: str, folder: Path, kind: str) -> Path:
    shutil.copytree(GOLDEN / case, folder)
    if kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize(("case", "tied"), [("7b-small", True), ("12b-small", False)])
def test_tensors_are_those_of_the_loaded_model(case: str, tied: bool, kind: str, tmp_path: Path) -> None:
    folder = copy(case, tmp_path / case, kind)
    shards, model = Shards(folder), load_model(folder)
    assert (HEAD in shards.tensors) == (not tied)
    values = shards.read(shards.tensors, CPU)
    for name, value in values.items():
        assert torch.equal(value, model.get_parameter(name))
        assert value.data_ptr() % 64 == 0  # a copy, not the mapped file
    ids = torch.tensor([[5, 3, 3]])
    assert torch.equal(shards.rows(TELECHAT.embedding, ids), model.get_input_embeddings()(ids))


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 30])
def test_chunks_are_the_bytes_of_the_tensor(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "CHUNK_BYTES", chunk_bytes)
    shards = Shards(GOLDEN / "7b-small")
    stored = load_file(GOLDEN / "7b-small" / "model.safetensors")[shards.tensors[TELECHAT.embedding].key]
    assert b"".join(shards.chunks(TELECHAT.embedding)) == stored.view(torch.uint8).numpy().tobytes()


class Harmful:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem(), "1 tensors are missing"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), r"more has shape \(2,\), the network has none"),
        (
            lambda tensors: tensors.update({key: value[:-1] for key, value in list(tensors.items())[:1]}),
            "expected",
        ),
        (lambda tensors: tensors.update(more=Harmful()), "could run code"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = copy("7b-small", tmp_path / "bad", "bin")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        Shards(folder)
    assert not Path("harmed").exists()


def test_a_shard_that_is_no_table_of_tensors_is_refused(tmp_path: Path) -> None:
    folder = copy("7b-small", tmp_path / "bad", "bin")
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds no table of tensors"):
        Shards(folder)


def test_a_shard_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    folder = copy("7b-small", tmp_path / "bad", "bin")
    index = {"weight_map": {"a": "pytorch_model.bin", "b": "other.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"other.bin is missing"):
        Shards(folder)

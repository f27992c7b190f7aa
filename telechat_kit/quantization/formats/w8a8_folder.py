"""The W8A8 checkpoint folder: safetensors and description with msModelSlim's names, beside config and tokenizer."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.files import read_json, replace_folder, require_space, write_json, writing
from telechat_kit.model.configuration import Telechat3Config
from telechat_kit.model.folder import ASCEND_DESCRIPTION, FLOAT, QUANT_NAMES, read_config
from telechat_kit.model.hashes import WEIGHTS, weight_hashes
from telechat_kit.model.network_values import NETWORK, network_values
from telechat_kit.model.remote_code import REMOTE_CODE, write_config
from telechat_kit.model.w8a8 import stored_name
from telechat_kit.model.weight_shards import HEAD, Shards
from telechat_kit.quantization.blocks import Block
from telechat_kit.quantization.formats.ownership import FILES, names_in
from telechat_kit.quantization.partial import Pass
from telechat_kit.quantization.tensor_file import Entry, file_entries, tensor_entry, write_tensor_file

#: What stands beside the weights in a checkpoint folder and is copied as it is
_WEIGHT_ENDINGS = (".safetensors", ".bin", ".index.json", ".npy", ".gguf")
_DESCRIPTIONS = (ASCEND_DESCRIPTION, *(names.description for names in QUANT_NAMES.values()))
#: The kit's record in a quantized folder
RECIPE = "quantize.json"
_OWN_FILES = ("config.json", RECIPE, "export.json", REMOTE_CODE, *_DESCRIPTIONS)

Put = Callable[[str, Tensor, str], None]


def as_stored(name: str, value: Tensor, shards: Shards) -> Tensor:
    """A float tensor in the dtype that the checkpoint itself has for `name`."""
    stored = value.to(shards.tensors[name].dtype)
    if not torch.isfinite(stored).all():
        raise CheckpointError(
            "{name} holds NaN or infinite values, or {dtype} cannot hold it after outlier suppression. Check "
            "the float checkpoint, or use another anti_outlier.",
            name=name,
            dtype=stored.dtype,
        )
    return stored


def block_tensors(
    block: Block, packed: Mapping[str, Mapping[str, Tensor]], shards: Shards, kind: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of one block as on disk, and the type of each: `kind` ("W8A8", "W8A8_DYNAMIC") or "FLOAT".

    `packed` maps the names of the int8 linears to their tensors. Norms get a zero bias and a `.module` copy, as
    msModelSlim's loaders expect after outlier suppression.
    """
    tensors: dict[str, Tensor] = {}
    kinds: dict[str, str] = {}

    def put(name: str, value: Tensor, kind: str) -> None:
        name = stored_name(name, shards.config)
        tensors[name], kinds[name] = value, kind

    for local, value in block.module.named_parameters():
        name = block.prefix + local
        module, _, part = name.rpartition(".")
        if module not in packed:
            put(name, as_stored(name, value, shards), FLOAT)
            if module.endswith("layernorm"):
                _put_norm_copies(module, tensors[stored_name(name, shards.config)], put, kind)
        elif part == "bias":
            put(name, as_stored(name, value, shards), FLOAT)
        else:
            _put_packed(module, packed[module], put, kind)
    return tensors, kinds


def _put_packed(module: str, packed: Mapping[str, Tensor], put: Put, kind: str) -> None:
    for part, tensor in packed.items():
        if part != "bias":
            put(f"{module}.{part}", tensor, kind)


def _put_norm_copies(norm: str, weight: Tensor, put: Put, kind: str) -> None:
    """The zero bias of a norm and, but for the final one, what outlier suppression's wrapper holds."""
    put(f"{norm}.bias", torch.zeros_like(weight), FLOAT)
    if norm.endswith("layernorm"):
        put(f"{norm}.module.weight", weight.clone(), kind)
        put(f"{norm}.module.bias", torch.zeros_like(weight), kind)


def _outer_entries(shards: Shards, kind: str) -> Iterator[tuple[Entry, str]]:
    """What stands outside the blocks, and its kind: matrices as they are, norms with their copies."""
    layout = shards.config.layout
    for name, stored in shards.tensors.items():
        if name in (layout.embedding, HEAD):
            file_name, chunks = stored_name(name, shards.config), partial(shards.chunks, name)
            yield tensor_entry(file_name, stored.dtype, stored.shape, chunks), FLOAT
        elif not name.startswith(layout.blocks):
            yield from _outer_norm_entries(name.removesuffix(".weight"), shards, kind)


def _outer_norm_entries(norm: str, shards: Shards, kind: str) -> Iterator[tuple[Entry, str]]:
    name = f"{norm}.weight"
    tensors: dict[str, tuple[Tensor, str]] = {}

    def put(name: str, value: Tensor, kind: str) -> None:
        tensors[stored_name(name, shards.config)] = value, kind

    put(name, as_stored(name, shards.read([name], torch.device("cpu"))[name], shards), FLOAT)
    _put_norm_copies(norm, tensors[stored_name(name, shards.config)][0], put, kind)
    for file_name, (value, of) in tensors.items():
        raw = value.view(torch.uint8).numpy().tobytes()
        yield tensor_entry(file_name, value.dtype, value.shape, partial(iter, [raw])), of


def needed_bytes(shards: Shards, trial: bool = False) -> int:
    """Room for the parts and the whole made of them: int8 blocks twice, and what stands outside once.

    A `trial` quantization before it leaves its blocks as well.
    """
    layout, tensors = shards.config.layout, shards.tensors
    blocks = sum(stored.shape.numel() for name, stored in tensors.items() if name.startswith(layout.blocks))
    outer = sum(tensors[name].nbytes for name in (layout.embedding, HEAD) if name in tensors)
    return (3 if trial else 2) * blocks + outer


def write_w8a8_folder(
    target: Path, shards: Shards, blocks: Pass, details: Mapping[str, Any], kind: str, ffn_hidden_size: int
) -> None:
    """Assemble the W8A8 folder from the finished `blocks`; it takes its place at `target` when it is whole.

    It stands alone: weights, description, config, `quantize.json`, and the tokenizer of the source. Its files are
    named by `kind`, the type of its int8 linears.
    """
    names = QUANT_NAMES[kind]
    paths = [blocks.path(index) for index in range(shards.config.n_layer)]
    outer = list(_outer_entries(shards, kind))
    entries = [*(entry for path in paths for entry in file_entries(path)), *(entry for entry, _ in outer)]
    kinds = {"model_quant_type": kind}
    for index in range(shards.config.n_layer):
        kinds |= blocks.details(index)["kinds"]
    kinds |= {entry.name: of for entry, of in outer}
    width = "intermediate_size" if isinstance(shards.config, Telechat3Config) else "ffn_hidden_size"
    config = {**dtype_config(shards), width: ffn_hidden_size}
    if config.get("online_rotation"):
        kinds["online_rotation"] = "mlp.down_proj: hadamard"
    require_space(target, sum(entry.nbytes for entry in entries), "the W8A8 checkpoint")
    with writing(target):
        folder = _fresh(blocks.folder / "result")
        copy_beside(shards.folder, folder)
        write_tensor_file(folder / names.weights, entries)
        write_json(folder / names.description, kinds)
        write_config(folder, {**config, "quantize": names.quantize}, shards.config)
        told = {NETWORK: network_values(read_config(folder)), WEIGHTS: weight_hashes(folder)}
        write_json(folder / RECIPE, {**details, **told, FILES: names_in(folder)})
        replace_folder(folder, target)


def _fresh(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


def copy_beside(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings and texts: all but weights and what is written anew."""
    for path in source.iterdir():
        if path.is_file() and path.name not in _OWN_FILES and not path.name.endswith(_WEIGHT_ENDINGS):
            shutil.copyfile(path, folder / path.name)


def dtype_config(shards: Shards) -> dict[str, Any]:
    """The source's config as `shards` changes it, with the dtype under the older name too, which loaders look for."""
    dtype = str(shards.dtype).removeprefix("torch.")
    config = {**read_json(shards.folder / "config.json"), **shards.config_changes}
    return {**config, "torch_dtype": dtype, "dtype": dtype}

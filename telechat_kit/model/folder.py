"""Checkpoint folders: which format one holds, its configuration, its weight files, and whether they are whole.

What the tensors mean is left to `w8a8`, `numpy_files` and `compressed_tensors`, the model to `checkpoint`.
"""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.model.config_files import read_index, read_object, require_config, require_sizes
from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.published_networks import refusal
from telechat_kit.model.weight_tables import damage, integer_tensor, stored_shapes

W8A8_WEIGHTS = "quant_model_weight_w8a8.safetensors"
W8A8_DESCRIPTION = "quant_model_description_w8a8.json"
#: The same of a model whose activations are quantized token by token
DYNAMIC_WEIGHTS = "quant_model_weight_w8a8_dynamic.safetensors"
DYNAMIC_DESCRIPTION = "quant_model_description_w8a8_dynamic.json"
ASCEND_DESCRIPTION = "quant_model_description.json"
#: What descriptions call int8 linears with static activations and with dynamic ones, and all other tensors
STATIC, DYNAMIC, FLOAT = "W8A8", "W8A8_DYNAMIC", "FLOAT"
#: msModelSlim's file since its V1 saver (26.x)
_ASCEND_WEIGHTS = "quant_model_weights.safetensors"
ORIGIN = "origin.json"
#: Float folder of a pair of scenario two that the kit exported, inside the folder of the dictionaries
FLOAT_PART = "float"
_NUMPY_WEIGHTS = "quant_weight.npy"
#: Float weights in the order in which transformers looks for them
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_KEY_VALUE = ("key_value.weight",)
_BLOCK = re.compile(r"(?:^|\.)(?:h|layers)\.(\d+)\.")


class QuantNames(NamedTuple):
    """How a folder with msModelSlim's description calls its files, and what its config.json says of them."""

    weights: str
    description: str
    quantize: str


#: The configurations of the family, by model_type
CONFIGS: dict[str, type[TelechatConfig]] = {
    config.model_type: config for config in (TelechatConfig, Telechat3Config)
}

#: model_quant_type -> names in the older form; of the newer one ("ascendV1") the description is called otherwise
QUANT_NAMES = {
    STATIC: QuantNames(W8A8_WEIGHTS, W8A8_DESCRIPTION, "w8a8"),
    DYNAMIC: QuantNames(DYNAMIC_WEIGHTS, DYNAMIC_DESCRIPTION, "w8a8_dynamic"),
}

Format = Literal["float", "safetensors", "ascendV1", "numpy", "compressed-tensors"]


def weights_format(folder: Path) -> Format:
    """In which form `folder` holds its weights; a description decides before config.json does."""
    if (description := description_path(folder)) is not None:
        return "ascendV1" if description.name == ASCEND_DESCRIPTION else "safetensors"
    if (folder / _NUMPY_WEIGHTS).is_file():
        return "numpy"
    config = read_object(folder / "config.json")
    if config.get("quantization_config"):
        return "compressed-tensors"
    known = {names.quantize for names in QUANT_NAMES.values()}
    return "safetensors" if str(config.get("quantize")) in known else "float"


def description_path(folder: Path) -> Path | None:
    """msModelSlim's description of the tensors in `folder`, if there is one; its older forms come first."""
    names = (W8A8_DESCRIPTION, DYNAMIC_DESCRIPTION, ASCEND_DESCRIPTION)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def is_w8a8(folder: Path) -> bool:
    """Whether `folder` says that its weights are quantized, in any of the formats."""
    return weights_format(folder) != "float"


def read_config(folder: Path) -> TelechatConfig:
    """The configuration of a TeleChat folder; anything else is a `CheckpointError`."""
    if not folder.is_dir():
        raise CheckpointError(
            "checkpoint folder {folder} does not exist. Correct the path, or put the weights there.",
            folder=folder,
        )
    path = folder / "config.json"
    values = read_object(path)
    if (reason := refusal(values)) is not None:
        raise CheckpointError("{path}: {reason}. Give a dense model of the family.", path=path, reason=reason)
    config_class = CONFIGS.get(model_type := str(values.get("model_type")))
    if config_class is None:
        raise CheckpointError(
            '{path}: model_type is "{model_type}", expected "telechat" or "telechat3". Give a TeleChat '
            "checkpoint.",
            path=path,
            model_type=model_type,
        )
    require_config(path, values)
    try:
        return config_class.from_pretrained(folder)
    except Exception as error:  # transformers checks keys of its own, each in its way
        raise CheckpointError(
            "{path} describes no TeleChat: {error}. Copy the file again.", path=path, error=error
        ) from error


def origin(folder: Path) -> dict[str, Any]:
    """Where the weights come from, as `origin.json` of the folder says; empty when it has none."""
    return read_object(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}


def weight_files(folder: Path) -> list[Path]:
    """Weight files of a folder, all present and not cut short; a `CheckpointError` names the first that is not."""
    kind = weights_format(folder)
    if kind in ("safetensors", "ascendV1"):
        files = _described_files(folder)
    else:
        files = sorted(folder.glob("*.npy")) if kind == "numpy" else _float_files(folder)
    for path in files:
        if not path.is_file():
            raise CheckpointError(
                "{path} is missing. The checkpoint is incomplete: copy the file again.", path=path
            )
        if problem := damage(path):
            raise CheckpointError(
                "{path} is damaged ({problem}). Copy the file again.", path=path, problem=problem
            )
    return files


def require_fitting(folder: Path, config: TelechatConfig) -> None:
    """Hold `config` against the tables of contents of the weight files, before anything is built from it.

    Raises:
        CheckpointError: other numbers of blocks, or another size of the vocabulary or of the feed-forward part.
    """
    if (folder / "config.json").is_file():
        require_sizes(folder / "config.json")
    files = weight_files(folder)
    shapes = stored_shapes(files)
    if weights_format(folder) == "float":
        _require_plain_floats(folder, config, files)
    blocks = {int(found[1]) for name in shapes if (found := _BLOCK.search(name))}
    if not blocks:  # .bin files have no table; `Shards` looks into them
        return
    _require(folder, "n_layer", config.n_layer, max(blocks) + 1)
    for name, shape in shapes.items():
        if name.endswith(("word_embeddings.weight", "embed_tokens.weight")) and len(shape) == 2:
            _require(folder, "vocab_size", config.vocab_size, shape[0])
            _require(folder, "hidden_size", config.hidden_size, shape[1])
        elif name.endswith("gate_proj.weight") and len(shape) == 2:
            _require(folder, "ffn_hidden_size", config.ffn_hidden_size, shape[0])
        elif name.endswith(_KEY_VALUE) and len(shape) == 2:
            _require(folder, "num_key_value_heads", config.kv_heads, shape[0] // (2 * config.head_dim))


def _require_plain_floats(folder: Path, config: TelechatConfig, files: list[Path]) -> None:
    if integer := integer_tensor(files) or _integer_in_archives(files):
        raise CheckpointError(
            "{found}, where weights are floating point. Get the file from its publisher.", found=integer
        )
    if config.online_rotation:
        raise CheckpointError(
            "{path}: online_rotation is set, which only weights quantized by this kit have. Take the key out, or get "
            "the file from its publisher.",
            path=folder / "config.json",
        )


def _integer_in_archives(files: list[Path]) -> str:
    """The first tensor of `.bin` files that holds no real numbers; else empty. They are mapped, not read."""
    for path in files:
        for name, tensor in read_bin(path, mmap=True).items() if path.suffix == ".bin" else ():
            if not tensor.is_floating_point():
                return f"{path}: {name} holds {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def _require(folder: Path, key: str, said: int, found: int) -> None:
    if said != found:
        raise CheckpointError(
            "{folder}: config.json says {key} {said}, the weights have {found}; config.json and weights do "
            "not belong together.",
            folder=folder,
            key=key,
            said=said,
            found=found,
        )


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors or `.bin` files by their names there, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors |= load_file(path) if path.suffix == ".safetensors" else read_bin(path)
        except SafetensorError as error:
            raise CheckpointError(
                "{path} cannot be read ({error}). Copy the file again.", path=path, error=error
            ) from error
    return tensors


def read_bin(path: Path, mmap: bool = False) -> dict[str, Tensor]:
    """The tensors of a `.bin` file, on the CPU; nothing that it may hold is run.

    Raises:
        CheckpointError: it holds anything else, or is damaged.
    """
    try:
        values = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything: the bytes are instructions
        raise CheckpointError(
            "{path} holds more than tensors and could run code, or is damaged, so it is refused ({error}). "
            "Get the checkpoint from its publisher.",
            path=path,
            error=" ".join(str(error).split())[:120],
        ) from error
    if not isinstance(values, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in values.items()
    ):
        raise CheckpointError(
            "{path} holds no table of tensors. Get the checkpoint from its publisher.", path=path
        )
    return values


def _described_files(folder: Path) -> list[Path]:
    names = (W8A8_WEIGHTS, DYNAMIC_WEIGHTS, _ASCEND_WEIGHTS)
    found = [files for name in names if (files := _one_of(folder, name))]
    if len(found) > 1:
        raise _ambiguous(folder, found[0][0].name, found[1][0].name)
    dynamic = (folder / DYNAMIC_DESCRIPTION).is_file() and not (folder / W8A8_DESCRIPTION).is_file()
    return found[0] if found else [folder / (DYNAMIC_WEIGHTS if dynamic else W8A8_WEIGHTS)]


def _float_files(folder: Path) -> list[Path]:
    """The files that transformers would load: safetensors before `.bin`."""
    for name in _SINGLE:
        if files := _one_of(folder, name):
            return files
    known = ", ".join(f"{name}, {name}.index.json" for name in _SINGLE)
    raise CheckpointError(
        "{folder} holds no weights: none of {known} is there. Copy the weights into it.",
        folder=folder,
        known=known,
    )


def _one_of(folder: Path, name: str) -> list[Path]:
    """The weights called `name`, in one file or in shards by an index; empty if there are none.

    Raises:
        CheckpointError: both are there and whole. transformers would take the one file, and say nothing.
    """
    single, index = folder / name, folder / f"{name}.index.json"
    if not index.is_file():
        return [single] if single.is_file() else []
    shards = read_index(index)
    if single.is_file() and single not in shards:
        if all(path.is_file() for path in shards):
            raise _ambiguous(folder, single.name, index.name)
        return [single]
    return shards


def _ambiguous(folder: Path, first: str, second: str) -> CheckpointError:
    return CheckpointError(
        "{folder} holds weights twice, as {first} and as {second}, and nothing tells which are meant. "
        "Move one of them away.",
        folder=folder,
        first=first,
        second=second,
    )

"""Checkpoint folders: which format one holds, its configuration, its weight files, and whether they are whole.

What the tensors mean is left to `w8a8`, `numpy_files` and `compressed_tensors`, the model to `checkpoint`.
"""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from telechat_kit.errors import CheckpointError, DataError
from telechat_kit.files import read_json
from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.forms import refusal

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
_NUMPY_MAGIC = b"\x93NUMPY"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")


class QuantNames(NamedTuple):
    """How a folder with msModelSlim's description calls its files, and what its config.json says of them."""

    weights: str
    description: str
    quantize: str


#: The configurations of the family, by model_type
CONFIGS: dict[object, type[TelechatConfig]] = {
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
    return "safetensors" if config.get("quantize") in known else "float"


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
            f"checkpoint folder {folder} does not exist. Correct the path, or put the weights there."
        )
    path = folder / "config.json"
    values = read_object(path)
    if (reason := refusal(values)) is not None:
        raise CheckpointError(f"{path}: {reason}. Give a dense model of the family.")
    config_class = CONFIGS.get(model_type := values.get("model_type"))
    if config_class is None:
        raise CheckpointError(
            f'{path}: model_type is "{model_type}", expected "telechat" or "telechat3". Give a TeleChat checkpoint.'
        )
    try:
        return config_class.from_pretrained(folder)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"{path} describes no TeleChat: {error}. Copy the file again.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; a `CheckpointError` if there is none."""
    try:
        values = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{path.parent} is no checkpoint folder: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object. Copy the file again.")
    return values


def origin(folder: Path) -> dict[str, Any]:
    """Where the weights come from, as `origin.json` of the folder says; empty when it has none."""
    return read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}


def weight_files(folder: Path) -> list[Path]:
    """Weight files of a folder, all present and not cut short; a `CheckpointError` names the first that is not."""
    kind = weights_format(folder)
    if kind in ("safetensors", "ascendV1"):
        files = _described_files(folder)
    else:
        files = sorted(folder.glob("*.npy")) if kind == "numpy" else _float_files(folder)
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. The checkpoint is incomplete: copy the file again.")
        if damage := _damage(path):
            raise CheckpointError(f"{path} is damaged ({damage}). Copy the file again.")
    return files


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors or `.bin` files by their names there, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= load_file(path) if path.suffix == ".safetensors" else _load_bin(path)
    return tensors


def _load_bin(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path} cannot be read as tensors only, so it is refused. Get the checkpoint from its publisher."
        ) from error


def _described_files(folder: Path) -> list[Path]:
    for name in (W8A8_WEIGHTS, DYNAMIC_WEIGHTS, _ASCEND_WEIGHTS):
        if (folder / f"{name}.index.json").is_file():
            return _indexed_files(folder / f"{name}.index.json")
        if (folder / name).is_file():
            return [folder / name]
    dynamic = (folder / DYNAMIC_DESCRIPTION).is_file()
    return [folder / (DYNAMIC_WEIGHTS if dynamic else W8A8_WEIGHTS)]


def _float_files(folder: Path) -> list[Path]:
    for index in _INDEXES:
        if (folder / index).is_file():
            return _indexed_files(folder / index)
    for single in _SINGLE:
        if (folder / single).is_file():
            return [folder / single]
    raise CheckpointError(
        f"{folder} holds no weights: none of {', '.join(_INDEXES + _SINGLE)} is there. Copy the weights into it."
    )


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} lists no weight files. Copy the file again.")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def _damage(path: Path) -> str | None:
    """Why a weight file cannot be whole, from its own table of contents; None if it may be."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                file.keys()
        elif path.suffix == ".npy":
            with path.open("rb") as stream:
                return None if stream.read(6) == _NUMPY_MAGIC else "no NumPy file"
        else:
            with zipfile.ZipFile(path) as archive:
                archive.infolist()
    except (SafetensorError, zipfile.BadZipFile, OSError, struct.error) as error:
        return str(error) or type(error).__name__
    return None

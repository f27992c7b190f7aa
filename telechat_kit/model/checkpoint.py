"""The model of a checkpoint folder, float or quantized in any of the formats that the kit reads."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig

from telechat_kit.backends import backend_for, resolve_device
from telechat_kit.errors import CheckpointError
from telechat_kit.files import resolve
from telechat_kit.memory import explained, require_room
from telechat_kit.model.compressed_tensors import read_compressed
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import (
    FLOAT_PART,
    ORIGIN,
    W8A8_DESCRIPTION,
    W8A8_WEIGHTS,
    is_w8a8,
    origin,
    read_config,
    weight_files,
    weights_format,
)
from telechat_kit.model.int8 import W8A8Linear
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.numpy_files import read_numpy
from telechat_kit.model.w8a8 import W8A8Weights, linear_names, place, read_described, stored_name

__all__ = [
    "ORIGIN",
    "W8A8_DESCRIPTION",
    "W8A8_WEIGHTS",
    "config_folder",
    "is_w8a8",
    "linear_names",
    "load_model",
    "needed_model_path",
    "origin",
    "prepare",
    "read_config",
    "read_w8a8",
    "stored_name",
    "weight_files",
    "weights_format",
]


def load_model(
    folder: str | Path,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    *,
    model_path: str | Path | None = None,
) -> TelechatForCausalLM:
    """The TeleChat model of a float or W8A8 checkpoint folder, in eval mode on `device`.

    Args:
        folder: an official checkpoint, the demo model, or a quantized folder: the kit's and msModelSlim's
            safetensors (either description), msModelSlim's `.npy` dictionaries, compressed-tensors.
        device: "auto", "cpu", or a device that is present.
        dtype: of the float tensors; None takes float32 on the CPU and a half precision elsewhere, the
            checkpoint's own if the device has it. Int8 weights stay int8.
        model_path: the float folder after outlier suppression that belongs to `.npy` dictionaries (scenario
            two); for other quantized folders, where to find config.json if they have none.

    Raises:
        CheckpointError: the folder is missing, incomplete, damaged or of another architecture.
        DeviceError: the device is not there, too small for the model, or cannot calculate in `dtype`.
    """
    folder, target = resolve(folder), resolve_device(device)
    beside = config_folder(folder, None if model_path is None else resolve(model_path))
    config = read_config(beside)
    dtype = backend_for(target.type).choose_dtype(dtype, config.dtype)
    quantized = is_w8a8(folder)
    require_room(config, quantized, dtype, target)
    model = _load_w8a8(folder, beside, config, dtype) if quantized else _load_float(folder, dtype)
    with explained(f"loading {folder}", backend_for(target.type)):
        model = model.to(target).eval()
        prepare(model)
    return model


def prepare(model: TelechatForCausalLM) -> None:
    """Bring the weights of `model`, which lies on its device, into the form that the device multiplies with.

    The head keeps its own: it may be tied to the embedding, whose rows are looked up.
    """
    backend = backend_for(model.device.type)
    for name in linear_names(model):
        linear = model.get_submodule(name)
        if isinstance(linear, W8A8Linear):
            linear.prepare()
        elif isinstance(linear, nn.Linear):
            backend.prepare_float_linear(linear)


def config_folder(folder: Path, model_path: Path | None) -> Path:
    """The folder that holds the configuration for the weights in `folder`: `model_path` if given."""
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint folder {folder} does not exist. Correct the path, or put the weights there."
        )
    if model_path is not None:
        if not is_w8a8(folder):
            raise CheckpointError(f"{folder} is not quantized. Give the quantized folder, or no model_path.")
        return model_path
    if (folder / "config.json").is_file() or not list(folder.glob("*.npy")):
        return folder
    if (folder / FLOAT_PART).is_dir():
        return folder / FLOAT_PART
    raise CheckpointError(
        f"{folder} holds .npy dictionaries only. Give the float folder after outlier suppression as model_path."
    )


def needed_model_path(folder: Path, model_path: Path) -> Path | None:
    """`model_path` if the weights in `folder` cannot be loaded without it: `.npy` dictionaries, or no config.json."""
    if not folder.is_dir():
        return None
    alone = (folder / "config.json").is_file() and weights_format(folder) != "numpy"
    return None if alone else model_path


def read_w8a8(folder: Path, float_folder: Path, model: TelechatForCausalLM) -> W8A8Weights:
    """The weights of a quantized `folder` for `model`; `float_folder` belongs to `.npy` dictionaries."""
    kind = weights_format(folder)
    if kind == "compressed-tensors":
        return read_compressed(folder, model)
    if kind == "numpy":
        if is_w8a8(float_folder):
            raise CheckpointError(
                f"{float_folder} is quantized. Give the float folder after outlier suppression as model_path."
            )
        return read_numpy(folder, float_folder, model)
    return read_described(folder, model)


def _load_w8a8(folder: Path, beside: Path, config: TelechatConfig, dtype: torch.dtype) -> TelechatForCausalLM:
    with torch.device("meta"):
        model = TelechatForCausalLM(config)
    weight_files(folder)
    place(model, read_w8a8(folder, beside, model), dtype)
    if (beside / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(beside)
    return model


def _load_float(folder: Path, dtype: torch.dtype) -> TelechatForCausalLM:
    weight_files(folder)
    try:
        model, info = TelechatForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, weights_only=True, output_loading_info=True
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{folder}: a .bin file holds more than tensors and could run code, so it is refused. "
            "Get the checkpoint from its publisher."
        ) from error
    except (RuntimeError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: the weights cannot be read ({error}). Copy the checkpoint again."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}. Copy it again."
        )
    if unexpected := sorted(info["unexpected_keys"]):
        raise CheckpointError(
            f"{folder}: unexpected tensor {unexpected[0]}; config.json and weights do not belong together."
        )
    return model

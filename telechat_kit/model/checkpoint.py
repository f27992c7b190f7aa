"""The model of a checkpoint folder, float or quantized in any of the formats that the kit reads."""

import pickle
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig

from telechat_kit.backends import backend_for, resolve_device, split_devices
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
from telechat_kit.model.sharding import WHOLE, Shard, join, narrow, sliced
from telechat_kit.model.shards import Shards
from telechat_kit.model.w8a8 import W8A8Weights, linear_names, place, read_described, stored_name
from telechat_kit.parallel import team_of

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
        device: "auto", "cpu", or a device that is present; several with commas between them share the model.
        dtype: of the float tensors; None takes float32 on the CPU and a half precision elsewhere, the
            checkpoint's own if the device has it. Int8 weights stay int8.
        model_path: the float folder after outlier suppression that belongs to `.npy` dictionaries (scenario
            two); for other quantized folders, where to find config.json if they have none.

    Raises:
        CheckpointError: the folder is missing, incomplete, damaged or of another architecture.
        DeviceError: the device is not there, too small for the model, or cannot calculate in `dtype`.
    """
    folder, beside = resolve(folder), None if model_path is None else resolve(model_path)
    if len(devices := split_devices(device)) > 1:
        return team_of(devices).load(load_part, join_parts, folder, beside, dtype)
    model = load_part(folder, beside, dtype, device)
    prepare(model)
    return model


def load_part(
    folder: Path, model_path: Path | None, dtype: torch.dtype | None, device: str, shard: Shard = WHOLE
) -> TelechatForCausalLM:
    """This part of the model on `device`, in eval mode, its weights not yet `prepare`d; errors as in `load_model`."""
    target, beside = resolve_device(device), config_folder(folder, model_path)
    config = read_config(beside)
    dtype = backend_for(target.type).choose_dtype(dtype, config.dtype)
    quantized = is_w8a8(folder)
    shard.require_even(config)
    require_room(config, quantized, dtype, target, shard.count)
    if quantized:
        model = _load_w8a8(folder, beside, config, dtype, shard)
    else:
        model = _load_float(folder, dtype) if shard.count == 1 else _load_float_part(folder, dtype, shard)
    with explained(f"loading {folder}", backend_for(target.type)):
        return model.to(target).eval()


def join_parts(model: TelechatForCausalLM, shard: Shard) -> None:
    """Bring together the parts of a model that every process has loaded: all of them must call this."""
    with explained("preparing the weights", backend_for(model.device.type)):
        join(model, shard)
        prepare(model)


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


def _load_w8a8(
    folder: Path, beside: Path, config: TelechatConfig, dtype: torch.dtype, shard: Shard
) -> TelechatForCausalLM:
    with torch.device("meta"):
        model = TelechatForCausalLM(config)
    weight_files(folder)
    weights = read_w8a8(folder, beside, model)
    if shard.count > 1:
        narrow(model, shard)
        weights = sliced(weights, shard)
    place(model, weights, dtype)
    if (beside / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(beside)
    return model


def _load_float_part(folder: Path, dtype: torch.dtype, shard: Shard) -> TelechatForCausalLM:
    shards = Shards(folder)
    with torch.device("meta"):
        model = TelechatForCausalLM(shards.config)
    narrow(model, shard)
    values = {
        name: nn.Parameter(shards.part(name, partial(shard.view, name), dtype), requires_grad=False)
        for name in shards.tensors
    }
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
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

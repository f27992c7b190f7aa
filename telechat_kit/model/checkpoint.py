"""The model of a checkpoint folder, float or quantized in any of the formats that the kit reads, as it lies on disk.

`telechat_kit.inference.loading` brings it to a device.
"""

import pickle
from functools import partial
from pathlib import Path

import torch
from torch import nn

from telechat_kit.errors import CheckpointError
from telechat_kit.model.compressed_tensors import read_compressed
from telechat_kit.model.config_files import read_generation_config
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import (
    FLOAT_PART,
    is_w8a8,
    read_config,
    require_fitting,
    weight_files,
    weights_format,
)
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.network_values import require_recorded_network
from telechat_kit.model.numpy_files import read_numpy
from telechat_kit.model.sharding import Shard, narrow, sliced
from telechat_kit.model.telechat3 import network_of
from telechat_kit.model.w8a8 import W8A8Weights, is_finite, place, read_described
from telechat_kit.model.weight_shards import Shards
from telechat_kit.progress import bars_of_transformers


def config_folder(folder: Path, model_path: Path | None) -> Path:
    """The folder that holds the configuration for the weights in `folder`: `model_path` if given."""
    if not folder.is_dir():
        raise CheckpointError(
            "checkpoint folder {folder} does not exist. Correct the path, or put the weights there.",
            folder=folder,
        )
    if model_path is not None:
        if not is_w8a8(folder):
            raise CheckpointError(
                "{folder} is not quantized. Give the quantized folder, or no model_path.", folder=folder
            )
        return model_path
    if (folder / "config.json").is_file() or not list(folder.glob("*.npy")):
        return folder
    if (folder / FLOAT_PART).is_dir():
        return folder / FLOAT_PART
    raise CheckpointError(
        "{folder} holds .npy dictionaries only. Give the float folder after outlier suppression as "
        "model_path.",
        folder=folder,
    )


def needed_model_path(folder: Path, model_path: Path) -> Path | None:
    """`model_path` if the weights in `folder` cannot be loaded without it: `.npy` dictionaries, or no config.json."""
    if not folder.is_dir():
        return None
    alone = (folder / "config.json").is_file() and weights_format(folder) != "numpy"
    return None if alone else model_path


def read_w8a8(folder: Path, float_folder: Path, model: TelechatForCausalLM) -> W8A8Weights:
    """The weights of a quantized `folder` for `model`; `float_folder` belongs to `.npy` dictionaries."""
    require_recorded_network(folder, model.config)
    kind = weights_format(folder)
    if kind == "compressed-tensors":
        return read_compressed(folder, model)
    if kind == "numpy":
        if is_w8a8(float_folder):
            raise CheckpointError(
                "{float_folder} is quantized. Give the float folder after outlier suppression as model_path.",
                float_folder=float_folder,
            )
        return read_numpy(folder, float_folder, model)
    return read_described(folder, model)


def build_w8a8(
    folder: Path, beside: Path, config: TelechatConfig, dtype: torch.dtype, shard: Shard
) -> TelechatForCausalLM:
    require_fitting(beside if weights_format(folder) == "numpy" else folder, config)
    weight_files(folder)
    with torch.device("meta"):
        model = network_of(config)(config)
    weights = read_w8a8(folder, beside, model)
    if shard.count > 1:
        narrow(model, shard)
        weights = sliced(weights, shard, config)
    place(model, weights, dtype)
    set_generation(model, beside)
    return model


def set_generation(model: TelechatForCausalLM, folder: Path) -> None:
    """Give `model` the generation settings of `folder`, where there are some."""
    if (settings := read_generation_config(folder)) is not None:
        model.generation_config = settings


def build_float_part(folder: Path, dtype: torch.dtype, shard: Shard) -> TelechatForCausalLM:
    shards = Shards(folder)
    with torch.device("meta"):
        model = network_of(shards.config)(shards.config)
    narrow(model, shard)
    values = {
        name: nn.Parameter(
            shards.part(name, partial(shard.view, name, config=shards.config), dtype), requires_grad=False
        )
        for name in shards.tensors
    }
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()
    _require_finite(model, folder, dtype)
    set_generation(model, folder)
    return model


def build_float(folder: Path, dtype: torch.dtype) -> TelechatForCausalLM:
    require_fitting(folder, read_config(folder))
    safetensors = weight_files(folder)[0].suffix == ".safetensors"
    read_generation_config(folder)  # transformers passes over a damaged one
    try:
        with bars_of_transformers():
            model, info = network_of(read_config(folder)).from_pretrained(
                folder, dtype=dtype, local_files_only=True, weights_only=True, output_loading_info=True,
                use_safetensors=safetensors,
            )  # fmt: skip
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "{folder}: a .bin file holds more than tensors and could run code, so it is refused. Get the "
            "checkpoint from its publisher.",
            folder=folder,
        ) from error
    except Exception as error:  # transformers, torch and safetensors have many kinds
        raise CheckpointError(
            "{folder}: the weights cannot be read ({error}). Copy the checkpoint again.",
            folder=folder,
            error=error,
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            "{folder}: {count} tensors are missing, the first is {missing}. Copy it again.",
            folder=folder,
            count=len(missing),
            missing=missing[0],
        )
    if unexpected := sorted(info["unexpected_keys"]):
        raise CheckpointError(
            "{folder}: unexpected tensor {unexpected}; config.json and weights do not belong together.",
            folder=folder,
            unexpected=unexpected[0],
        )
    _require_finite(model, folder, dtype)
    return model


def _require_finite(model: TelechatForCausalLM, folder: Path, dtype: torch.dtype) -> None:
    """Refuse float weights that hold NaN or infinity, in the file or in `dtype`: one pass, a sixth of the loading."""
    for name, value in model.named_parameters():
        if not is_finite(value):
            Shards(folder).require_finite()
            raise CheckpointError(
                "{folder}: {name} holds values that {dtype} cannot. Load it in a wider dtype.",
                folder=folder,
                name=name,
                dtype=dtype,
            )

"""Checkpoint folders, float and W8A8: what a folder holds, whether it is whole, and the model in it."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig

from telechat_kit.backends import resolve_device
from telechat_kit.errors import CheckpointError, DataError
from telechat_kit.files import read_json, resolve
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.int8 import RUNTIME_TENSORS, W8A8Linear
from telechat_kit.model.network import TelechatForCausalLM

W8A8_WEIGHTS = "quant_model_weight_w8a8.safetensors"
W8A8_DESCRIPTION = "quant_model_description_w8a8.json"
ORIGIN = "origin.json"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")


def load_model(
    folder: str | Path, device: str = "auto", dtype: torch.dtype | None = None
) -> TelechatForCausalLM:
    """The TeleChat model of a float or W8A8 checkpoint folder, in eval mode on `device`.

    Args:
        folder: an official checkpoint, the demo model, or a folder that the kit quantized.
        device: "auto", "cpu", or a device that is present.
        dtype: of the float tensors; None takes float32 on the CPU and the checkpoint's own elsewhere. Int8
            weights stay int8.

    Raises:
        CheckpointError: the folder is missing, incomplete, damaged or of another architecture.
        DeviceError: the device is not there.
    """
    folder, target = resolve(folder), resolve_device(device)
    config = read_config(folder)
    if dtype is None:
        dtype = torch.float32 if target.type == "cpu" else config.dtype or torch.float16
    model = _load_w8a8(folder, config, dtype) if is_w8a8(folder) else _load_float(folder, dtype)
    return model.to(target).eval()


def read_config(folder: Path) -> TelechatConfig:
    """The configuration of a TeleChat folder; anything else is a `CheckpointError`."""
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint folder {folder} does not exist. Correct the path, or put the weights there."
        )
    path = folder / "config.json"
    model_type = _read_object(path).get("model_type")
    if model_type != TelechatConfig.model_type:
        raise CheckpointError(
            f'{path}: model_type is "{model_type}", expected "telechat". Give a TeleChat checkpoint.'
        )
    try:
        return TelechatConfig.from_pretrained(folder)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} describes no TeleChat: {error}. Copy the file again.") from error


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; a `CheckpointError` if there is none."""
    try:
        values = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{path.parent} is no checkpoint folder: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object. Copy the file again.")
    return values


def is_w8a8(folder: Path) -> bool:
    """Whether `folder` says that its weights are W8A8."""
    return read_json(folder / "config.json").get("quantize") == "w8a8"


def origin(folder: Path) -> dict[str, Any]:
    """Where the weights come from, as `origin.json` of the folder says; empty when it has none."""
    return read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}


def weight_files(folder: Path) -> list[Path]:
    """Weight files of a folder, all present and not cut short; a `CheckpointError` names the first that is not."""
    files = [folder / W8A8_WEIGHTS] if is_w8a8(folder) else _float_files(folder)
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. The checkpoint is incomplete: copy the file again.")
        if damage := _damage(path):
            raise CheckpointError(f"{path} is damaged ({damage}). Copy the file again.")
    return files


def _float_files(folder: Path) -> list[Path]:
    for index in _INDEXES:
        if (folder / index).is_file():
            weight_map = _read_object(folder / index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointError(f"{folder / index} lists no weight files. Copy the file again.")
            return [folder / name for name in sorted(set(weight_map.values()))]
    for single in _SINGLE:
        if (folder / single).is_file():
            return [folder / single]
    raise CheckpointError(
        f"{folder} holds no weights: none of {', '.join(_INDEXES + _SINGLE)} is there. Copy the weights into it."
    )


def _damage(path: Path) -> str | None:
    """Why a weight file cannot be whole, from its own table of contents; None if it may be."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                file.keys()
        else:
            with zipfile.ZipFile(path) as archive:
                archive.infolist()
    except (SafetensorError, zipfile.BadZipFile, OSError, struct.error) as error:
        return str(error) or type(error).__name__
    return None


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


def _load_w8a8(folder: Path, config: TelechatConfig, dtype: torch.dtype) -> TelechatForCausalLM:
    weight_files(folder)
    kinds: dict[str, str] = _read_object(folder / W8A8_DESCRIPTION)
    tensors = load_file(folder / W8A8_WEIGHTS)
    with torch.device("meta"):
        model = TelechatForCausalLM(config)
    try:
        _place_int8(model, kinds, tensors)
        _place_float(model, tensors, dtype)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / W8A8_WEIGHTS} does not fit config.json: {error}. Quantize again."
        ) from error
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _place_int8(model: TelechatForCausalLM, kinds: dict[str, str], tensors: dict[str, Tensor]) -> None:
    for name, linear in list(model.named_modules()):
        stored = stored_name(name, model.config)
        if isinstance(linear, nn.Linear) and kinds.get(f"{stored}.weight") == "W8A8":
            parts = {part: tensors[f"{stored}.{part}"] for part in RUNTIME_TENSORS}
            if parts["weight"].shape != linear.weight.shape:
                raise KeyError(
                    f"{stored}.weight has shape {tuple(parts['weight'].shape)}, expected {tuple(linear.weight.shape)}"
                )
            model.set_submodule(name, W8A8Linear(parts))


def _place_float(model: TelechatForCausalLM, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Fill what is still on the meta device, tie the head, and give norms the bias of shifted channels."""
    for name, norm in model.named_modules():
        bias = tensors.get(f"{stored_name(name, model.config)}.bias")
        if getattr(norm, "epsilon", None) is not None and bias is not None and bool(bias.any()):
            norm.bias = nn.Parameter(bias.to(dtype))
    values = {
        name: nn.Parameter(tensors[stored_name(name, model.config)].to(dtype), requires_grad=False)
        for name, value in model.named_parameters()
        if value.device.type == "meta"
    }
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()


def stored_name(name: str, config: TelechatConfig) -> str:
    """Name in the file of the module or tensor `name`: a tied head (the 7B layout) goes without prefix."""
    return name.removeprefix("transformer.") if config.tie_word_embeddings else name


def linear_names(model: nn.Module) -> list[str]:
    """Names of the linears of a model or of one block, in the order of the network, without the head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | W8A8Linear) and name != "lm_head"
    ]

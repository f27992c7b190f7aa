"""The W8A8 checkpoint folder: safetensors and description with msModelSlim's names, beside config and tokenizer."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from telechat_kit.files import atomic_folder, read_json, require_space, write_json
from telechat_kit.model.checkpoint import W8A8_DESCRIPTION, W8A8_WEIGHTS, stored_name
from telechat_kit.model.folder import ASCEND_DESCRIPTION
from telechat_kit.model.network import TelechatForCausalLM, TelechatRMSNorm

#: What stands beside the weights in a checkpoint folder and is copied as it is
_WEIGHT_ENDINGS = (".safetensors", ".bin", ".index.json", ".npy", ".gguf")
_OWN_FILES = ("config.json", "quantize.json", "export.json", W8A8_DESCRIPTION, ASCEND_DESCRIPTION)


def checkpoint_tensors(
    model: TelechatForCausalLM, packed: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as on disk, and the type of each ("W8A8" or "FLOAT").

    `packed` maps the module names of the int8 linears to their tensors. Norms of the blocks and the final one
    get a zero bias, and the block norms a `.module` copy, as msModelSlim's loaders expect after outlier suppression.
    """
    tensors: dict[str, Tensor] = {}
    kinds: dict[str, str] = {"model_quant_type": "W8A8"}

    def put(name: str, value: Tensor, kind: str) -> None:
        tensors[name] = value.detach().contiguous().cpu()
        kinds[name] = kind

    for name, value in model.named_parameters():
        module, _, part = name.rpartition(".")
        if module not in packed:
            put(stored_name(name, model), value, "FLOAT")
        elif part == "weight":
            for key, tensor in packed[module].items():
                put(f"{stored_name(module, model)}.{key}", tensor, "FLOAT" if key == "bias" else "W8A8")
    _put_norm_biases(model, put)
    return tensors, kinds


def _put_norm_biases(model: TelechatForCausalLM, put: Callable[[str, Tensor, str], None]) -> None:
    for module, norm in model.named_modules():
        if isinstance(norm, TelechatRMSNorm):
            bias = norm.bias if norm.bias is not None else torch.zeros_like(norm.weight)
            name = stored_name(module, model)
            put(f"{name}.bias", bias, "FLOAT")
            if "layernorm" in name:
                put(f"{name}.module.weight", norm.weight.clone(), "W8A8")
                put(f"{name}.module.bias", bias.clone(), "W8A8")


def save_w8a8(
    folder: Path,
    source: Path,
    model: TelechatForCausalLM,
    packed: Mapping[str, Mapping[str, Tensor]],
    recipe: Mapping[str, Any],
) -> Path:
    """Write a W8A8 folder that stands alone: weights, description, config, `quantize.json`, and the tokenizer of `source`."""
    tensors, kinds = checkpoint_tensors(model, packed)
    require_space(folder, sum(tensor.nbytes for tensor in tensors.values()), "the W8A8 checkpoint")
    with atomic_folder(folder) as temporary:
        copy_beside(source, temporary)
        save_file(tensors, temporary / W8A8_WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / W8A8_DESCRIPTION, kinds)
        write_json(temporary / "config.json", w8a8_config(source, model))
        write_json(temporary / "quantize.json", recipe)
    return folder


def copy_beside(source: Path, folder: Path) -> None:
    """Copy into `folder` what stands beside the weights in `source`: tokenizer, generation config, license ..."""
    for path in source.iterdir():
        if path.is_file() and path.name not in _OWN_FILES and not path.name.endswith(_WEIGHT_ENDINGS):
            shutil.copyfile(path, folder / path.name)


def w8a8_config(source: Path, model: TelechatForCausalLM) -> dict[str, Any]:
    """The source's config plus what loaders look for: `quantize`, and the dtype under its older name too."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {**read_json(source / "config.json"), "quantize": "w8a8", "torch_dtype": dtype, "dtype": dtype}

"""Scenario two: int8 weights in msModelSlim's `.npy` dictionaries (2023-2024) beside a float folder.

The float folder has its outliers suppressed already. It gives the configuration, embedding, head, biases and the
linears that stayed in float; the dictionaries give the int8 linears and, in `anti_fp_norm.npy`, the folded norms.
"""

from pathlib import Path

from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.model.folder import load_tensors
from telechat_kit.model.int8_linears import RUNTIME_TENSORS
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.unpickling import read_dictionary
from telechat_kit.model.w8a8 import W8A8Weights, linear_names, norm_names, stored_name

#: Tensor of a linear -> file that holds it for all linears
FILES = {
    "weight": "quant_weight.npy",
    "input_scale": "input_scale.npy",
    "input_offset": "input_offset.npy",
    "quant_bias": "quant_bias.npy",
    "deq_scale": "deq_scale.npy",
    "weight_scale": "weight_scale.npy",
    "weight_offset": "weight_offset.npy",
}
NORMS = "anti_fp_norm.npy"


def read_numpy(folder: Path, float_folder: Path, model: TelechatForCausalLM) -> W8A8Weights:
    """The weights of `.npy` dictionaries in `folder` and the float weights after suppression in `float_folder`."""
    dictionaries = {part: _read(folder / name, model) for part, name in FILES.items()}
    linears = frozenset(dictionaries["input_scale"])
    _refuse_dynamic(folder, dictionaries)
    stored = {stored_name(name, model.config) for name in linear_names(model)}
    for part, values in dictionaries.items():
        _check_known(folder / FILES[part], part, values, stored)
    for part in RUNTIME_TENSORS:
        _check_whole(folder / FILES[part], dictionaries[part], linears, stored)
    _check_weights(folder / FILES["weight"], dictionaries["weight"], linears, model)
    tensors = {stored_name(name, model.config): value for name, value in load_tensors(float_folder).items()}
    tensors |= {
        f"{name}.{part}": values[name]
        for part, values in dictionaries.items()
        for name in linears & set(values)
    }
    return W8A8Weights(tensors | _read_norms(folder / NORMS, model), linears, folder / FILES["weight"])


def _read(path: Path, model: TelechatForCausalLM) -> dict[str, Tensor]:
    """The dictionary in `path` by stored names; the reference writes no file for an empty one."""
    values = read_dictionary(path) if path.is_file() else {}
    return {stored_name(name, model.config): value for name, value in values.items()}


def _refuse_dynamic(folder: Path, dictionaries: dict[str, dict[str, Tensor]]) -> None:
    """These dictionaries are known by the input's scale; nothing in them tells dynamic activations from a lost file."""
    if not dictionaries["input_scale"] and (scaled := dictionaries["weight_scale"]):
        raise CheckpointError(
            "{folder} holds weight scales ({scaled}, ...) and no {files}. If its activations are dynamic, "
            "get it as safe_tensor or ascendV1: .npy dictionaries are read with static ones only. If not, "
            "copy the folder again.",
            folder=folder,
            scaled=min(scaled),
            files=FILES["input_scale"],
        )


def _read_norms(path: Path, model: TelechatForCausalLM) -> dict[str, Tensor]:
    norms = _read(path, model)
    known = {f"{name}.{part}" for name in norm_names(model) for part in ("weight", "bias")}
    if unknown := sorted(set(norms) - known):
        raise CheckpointError(
            "{path} names {unknown}, which this model does not have as a norm.", path=path, unknown=unknown[0]
        )
    return norms


def _check_known(path: Path, part: str, values: dict[str, Tensor], stored: set[str]) -> None:
    """Refuse linears that the model does not have. msModelSlim's `quant_weight` may hold other modules too."""
    if part != "weight" and (unknown := set(values) - stored):
        raise CheckpointError(
            "{path} names {unknown}, which is no linear of this model. Give the float folder that belongs to "
            "it.",
            path=path,
            unknown=min(unknown),
        )


def _check_whole(path: Path, values: dict[str, Tensor], linears: frozenset[str], stored: set[str]) -> None:
    if missing := linears - set(values):
        raise CheckpointError(
            "{path} holds nothing for {missing}. Copy the folder again.", path=path, missing=min(missing)
        )
    # of a linear in float, the master branch keeps the float weight or bias in quant_weight
    if extra := [name for name in stored & set(values) - linears if not values[name].is_floating_point()]:
        scales = path.with_name(FILES["input_scale"])
        raise CheckpointError(
            "{scales} holds nothing for {extra}. Copy the folder again.", scales=scales, extra=min(extra)
        )


def _check_weights(
    path: Path, values: dict[str, Tensor], linears: frozenset[str], model: TelechatForCausalLM
) -> None:
    """Refuse the files of msModelSlim's master branch: there the bias of a linear takes the place of its weight."""
    for name in linear_names(model):
        stored = stored_name(name, model.config)
        if stored in linears and values[stored].is_floating_point() and values[stored].ndim == 1:
            raise CheckpointError(
                "{path} holds the bias of {stored} in place of its int8 weight (msModelSlim's master branch "
                "writes such files for linears with a bias). Export again as safe_tensor or ascendV1, or with a "
                "2024 version.",
                path=path,
                stored=stored,
            )

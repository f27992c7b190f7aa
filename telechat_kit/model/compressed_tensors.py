"""compressed-tensors, `int-quantized`: the format's scheme for W8A8, and its tensors as the kit's and back.

A linear has `weight` int8 `[out, in]`, `weight_scale` `[out, 1]`, `input_scale` `[1]`, `input_zero_point` int8 `[1]`
and its float `bias`. The input is `clamp(round(x / scale + zero_point), -128, 127)`, so the zero point is
msModelSlim's input_offset (github.com/neuralmagic/compressed-tensors, quantization/lifecycle/forward.py).
`quant_bias` and `deq_scale` are computed again; where that gives other bits they are stored as extra tensors.
With dynamic activations (strategy "token", symmetric) there are `weight`, `weight_scale` and `bias` only.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.messages import Message
from telechat_kit.model.config_files import read_object
from telechat_kit.model.folder import load_tensors, weight_files
from telechat_kit.model.int8_linears import (
    decode_scale,
    encode_scale,
    offset_correction,
    product_scale,
    quantized_bias,
)
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.w8a8 import W8A8Weights, linear_names, stored_name

#: A repeated group that holds a repeat: matching can take time exponential in the length of a name
_NESTED_REPEATS = re.compile(r"\([^()]*[*+}][^()]*\)\s*[*+{]")
_COMMON = {"num_bits": 8, "type": "int", "dynamic": False}
_WEIGHTS = {**_COMMON, "strategy": "channel", "symmetric": True}
_INPUTS = {**_COMMON, "strategy": "tensor", "symmetric": False}
_DYNAMIC_INPUTS = {**_COMMON, "dynamic": True, "strategy": "token", "symmetric": True}


def quantization_config(ignore: list[str], dynamic: bool = False) -> dict[str, Any]:
    """`quantization_config` of config.json; `ignore` are the modules that stay in float."""
    detail = {"group_size": None, "actorder": None, "block_structure": None, "observer": "minmax"}
    inputs = {**_DYNAMIC_INPUTS, **detail, "observer": None} if dynamic else {**_INPUTS, **detail}
    group = {
        "targets": ["Linear"],
        "weights": {**_WEIGHTS, **detail},
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def read_compressed(folder: Path, model: TelechatForCausalLM) -> W8A8Weights:
    """The weights of an `int-quantized` folder, with msModelSlim's tensors computed for its linears."""
    path = folder / "config.json"
    config = _checked(path, read_object(path)["quantization_config"])
    dynamic = _is_dynamic(path, config)
    first = weight_files(folder)[0]
    tensors = {stored_name(name, model.config): value for name, value in load_tensors(folder).items()}
    quantized = [
        name for name in linear_names(model) if not _ignored(name, config.get("ignore") or [], model)
    ]
    linears = frozenset(stored_name(name, model.config) for name in quantized)
    weights = W8A8Weights(tensors, linears, first, linears if dynamic else frozenset())
    for name in sorted(linears):
        if dynamic:
            tensors[f"{name}.weight_offset"] = torch.zeros_like(weights.tensor(f"{name}.weight_scale"))
        else:
            tensors |= _runtime_tensors(name, weights, _check_shapes(name, weights, model))
            tensors.pop(f"{name}.input_zero_point")
    return weights


def compressed_tensors(name: str, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the linear `name` in this format from msModelSlim's, all parts of `LINEAR_TENSORS` but the offset's."""
    result = {f"{name}.{part}": packed[part] for part in ("weight", "weight_scale", "input_scale")}
    result[f"{name}.input_zero_point"] = packed["input_offset"].to(torch.int8)
    if "bias" in packed:
        result[f"{name}.bias"] = packed["bias"]
    for part, value in computed(packed).items():
        if not _same(value, packed[part]):
            result[f"{name}.{part}"] = packed[part]
    return result


def dynamic_tensors(name: str, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the linear `name` with dynamic activations: the format finds the input's scales while it runs."""
    return {f"{name}.{part}": packed[part] for part in ("weight", "weight_scale", "bias") if part in packed}


def computed(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`quant_bias` and `deq_scale` that follow from a linear's other tensors."""
    scale = packed["weight_scale"]
    deq_scale = product_scale(packed["input_scale"], scale)
    return {
        "quant_bias": quantized_bias(packed["weight"], packed.get("bias"), deq_scale, packed["input_offset"]),
        "deq_scale": deq_scale if scale.dtype == torch.bfloat16 else encode_scale(deq_scale),
    }


def recovered_bias(packed: Mapping[str, Tensor]) -> Tensor:
    """float32 `[out]`: the bias that `quant_bias` holds, for files that store no other; exact to half a step."""
    correction = offset_correction(packed["weight"], packed["input_offset"])
    return (packed["quant_bias"].float() + correction) * decode_scale(packed["deq_scale"])


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


class _Group(BaseModel):
    """A group of linears that are quantized alike; what it says of them is looked at by `_check_part`."""

    weights: dict[str, Any] | None = None
    input_activations: dict[str, Any] | None = None


class _Quantization(BaseModel):
    """The types of `quantization_config`, as far as it is read."""

    config_groups: dict[str, _Group] = {}
    ignore: list[str] | None = None


def _checked(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """`config` if its values have their types and its patterns can be matched in no time."""
    try:
        found = _Quantization.model_validate(config)
        for pattern in (entry[3:] for entry in found.ignore or [] if entry.startswith("re:")):
            if len(pattern) > 200 or _NESTED_REPEATS.search(pattern):
                raise ValueError(
                    Message("ignore: the pattern {pattern!r} may take for ever", pattern=pattern[:60])
                )
            re.compile(pattern)
    except (ValueError, RecursionError, re.error) as error:
        told = " ".join(str(error).split())[:200]
        raise CheckpointError(
            "{path}: quantization_config cannot be read ({told}). Copy the file again from its publisher.",
            path=path,
            told=told,
        ) from error
    return config


def _is_dynamic(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether activations are quantized token by token. Other schemes than the kit's two are refused."""
    method, form = config.get("quant_method"), config.get("format")
    if (method, form) != ("compressed-tensors", "int-quantized"):
        raise CheckpointError(
            '{path}: quantization "{method}", format "{form}" cannot be read, only compressed-tensors '
            "int-quantized.",
            path=path,
            method=method,
            form=form,
        )
    groups = config.get("config_groups", {})
    dynamic = {bool((group.get("input_activations") or {}).get("dynamic")) for group in groups.values()}
    if len(dynamic) > 1:
        raise CheckpointError(
            "{path}: config_groups with static and with dynamic activations cannot be read.", path=path
        )
    inputs = _DYNAMIC_INPUTS if True in dynamic else _INPUTS
    for name, group in groups.items():
        _check_part(path, name, group, "weights", _WEIGHTS)
        _check_part(path, name, group, "input_activations", inputs)
    return True in dynamic


def _check_part(
    path: Path, name: str, group: Mapping[str, Any], part: str, expected: Mapping[str, Any]
) -> None:
    given = group.get(part) or {}
    for key, value in expected.items():
        if given.get(key, _COMMON.get(key)) != value:
            raise CheckpointError(
                "{path}: {part} of {name} has {key} {given!r}, only {value!r} can be read.",
                path=path,
                part=part,
                name=name,
                key=key,
                given=given.get(key),
                value=value,
            )


def _ignored(name: str, ignore: list[str], model: TelechatForCausalLM) -> bool:
    """Whether the format's `ignore`, names or `re:` patterns, leaves the linear in float."""
    names = (name, stored_name(name, model.config))
    return any(
        re.match(entry[3:], known) is not None if entry.startswith("re:") else entry == known
        for entry in ignore
        for known in names
    )


def _check_shapes(name: str, weights: W8A8Weights, model: TelechatForCausalLM) -> dict[str, Tensor]:
    module = model.config.layout.module_name(name)
    out, size = model.get_submodule(module).weight.shape
    packed = {
        "weight": weights.checked(f"{name}.weight", (out, size), (torch.int8,)),
        "weight_scale": weights.checked(f"{name}.weight_scale", (out, 1)),
        "input_scale": weights.checked(f"{name}.input_scale", (1,)),
        "zero_point": weights.checked(f"{name}.input_zero_point", (1,), (torch.int8, torch.int32)),
    }
    if f"{name}.bias" in weights.tensors or model.get_submodule(module).bias is not None:
        packed["bias"] = weights.checked(f"{name}.bias", (out,))
    return packed


def _runtime_tensors(name: str, weights: W8A8Weights, packed: dict[str, Tensor]) -> dict[str, Tensor]:
    packed["input_offset"] = packed.pop("zero_point").to(packed["input_scale"].dtype)
    packed["weight_offset"] = torch.zeros_like(packed["weight_scale"])
    packed |= computed(packed)
    return {f"{name}.{part}": weights.tensors.get(f"{name}.{part}", value) for part, value in packed.items()}

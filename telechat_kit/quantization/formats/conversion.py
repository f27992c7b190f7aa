"""A quantized folder in another tool's file format: `export(folder, target, format)`.

What the formats hold is told where they are read: `model/w8a8`, `model/numpy_files`, `model/compressed_tensors`.
"""

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.files import atomic_folder, read_json, require_space, resolve, write_json
from telechat_kit.model.checkpoint import config_folder, read_w8a8
from telechat_kit.model.compressed_tensors import (
    compressed_tensors,
    dynamic_tensors,
    quantization_config,
    recovered_bias,
)
from telechat_kit.model.folder import (
    ASCEND_DESCRIPTION,
    DYNAMIC,
    FLOAT,
    FLOAT_PART,
    QUANT_NAMES,
    STATIC,
    is_w8a8,
    read_config,
)
from telechat_kit.model.int8_linears import DYNAMIC_TENSORS, decode_scale
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.telechat3 import network_of
from telechat_kit.model.w8a8 import LINEAR_TENSORS, W8A8Weights, linear_names, norm_names, place, stored_name
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.formats.numpy_export import FloatWeights, save_dictionaries
from telechat_kit.quantization.formats.ownership import FILES, names_in, require_free
from telechat_kit.quantization.formats.w8a8_folder import copy_beside
from telechat_kit.quantization.tensor_file import Entry, whole_entry, write_tensor_file

SCHEMA = "telechat-kit/export/1"
RECORD = "export.json"
FORMATS = ("safetensors", "ascendV1", "numpy", "compressed-tensors")


@dataclass(frozen=True)
class ExportRecord:
    """What stands in an exported folder beside its weights, as `export.json`."""

    schema: str
    format: str
    source: str
    int8_linears: int
    dequantized: list[str]  # of "numpy": linears whose float weight is int8 weight times scale
    notes: list[str]


@dataclass(frozen=True)
class _Source:
    """A quantized model that has passed every check of reading, and the folder of its config and tokenizer."""

    folder: Path
    beside: Path
    model: TelechatForCausalLM
    weights: W8A8Weights

    @property
    def kind(self) -> str:
        """The type of the whole model: dynamic if all of its int8 linears are."""
        return DYNAMIC if self.weights.dynamic and not self.static else STATIC

    @property
    def static(self) -> frozenset[str]:
        """The int8 linears with static activations."""
        return self.weights.linears - self.weights.dynamic


def export(
    folder: str | Path,
    target: str | Path,
    format: str,
    model_path: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> ExportRecord:
    """Write the quantized `folder` into the new folder `target` in another format; its logits stay the same.

    Args:
        folder: a quantized folder in any format that `load_model` reads.
        target: the folder to write; an earlier export there is replaced.
        format: "safetensors" and "ascendV1" (msModelSlim, MindIE, vLLM-Ascend), "numpy" (the `.npy`
            dictionaries of 2024-08, and under `float` the float folder after outlier suppression), or
            "compressed-tensors" (`int-quantized`, vLLM).
        model_path: for "numpy" the float checkpoint that was quantized, so that `float` holds its weights and
            not int8 weights times scale. For a `folder` of `.npy` dictionaries their float folder.
        overwrite: whatever `target` holds may go, also what the kit did not write.

    Raises:
        CheckpointError, ParameterError: each names the cause and the remedy.

    Example:
        >>> exported = export("models/tiny-w8a8", "models/tiny-ascend", "ascendV1")
        >>> exported.format
        'ascendV1'
    """
    source_folder, target = resolve(folder), resolve(target)
    float_folder = None if model_path is None else resolve(model_path)
    if format not in FORMATS:
        raise ParameterError(f'format "{format}" is unknown. Use one of {", ".join(FORMATS)}.')
    target = target.resolve()
    require_free(target, RECORD, [source_folder, *([float_folder] if float_folder else [])], overwrite)
    source = _read(source_folder, float_folder)
    _check_activations(source, format)
    _check_rotation(source, format, float_folder)
    require_space(target, _room(source, format), f"the {format} checkpoint")
    record = ExportRecord(SCHEMA, format, source_folder.name, len(source.weights.linears), [], [])
    with atomic_folder(target) as temporary:
        if format == "numpy":
            record = _write_numpy(source, temporary, record, float_folder)
        elif format == "compressed-tensors":
            record = _write_compressed(source, temporary, record)
        else:
            _write_described(source, temporary, format)
        write_json(temporary / RECORD, {**asdict(record), FILES: names_in(temporary)})
    return record


def _read(folder: Path, float_folder: Path | None) -> _Source:
    """The source, once placed into a network: that is the check that it can be loaded."""
    needed = folder.is_dir() and not (folder / "config.json").is_file()
    beside = config_folder(folder, float_folder if needed else None)
    config = read_config(beside)
    if not is_w8a8(folder):
        raise CheckpointError(f"{folder} is not quantized. Quantize it first, then export.")
    with torch.device("meta"):
        model, probe = (network_of(config)(config) for _ in range(2))
    weights = read_w8a8(folder, beside, model)
    place(probe, weights, config.dtype or torch.float32)
    return _Source(folder, beside, model, weights)


def _check_activations(source: _Source, format: str) -> None:
    """Refuse dynamic activations where a format has no place for them."""
    if format == "numpy" and source.weights.dynamic:
        raise ParameterError(
            f"{source.folder} has dynamic activations. The .npy dictionaries hold static ones only: their readers know "
            "an int8 linear by its input_scale, quant_bias and deq_scale. Use safetensors, ascendV1 or "
            'compressed-tensors, or quantize with activations "static".'
        )
    if format == "compressed-tensors" and source.weights.dynamic and source.static:
        raise ParameterError(
            f"{source.folder} has linears with static and with dynamic activations. compressed-tensors is written "
            "with one scheme for all of them. Use safetensors or ascendV1."
        )


def _check_rotation(source: _Source, format: str, float_folder: Path | None) -> None:
    """Refuse weights that expect a turned input where readers would not turn it, and a float folder of other axes."""
    if format != "safetensors" and source.model.config.online_rotation:
        raise ParameterError(
            f"{source.folder} expects the input of down_proj turned as the model runs (online_rotation), which readers "
            f"of {format} do not do. Use safetensors with this kit, or quantize without that ingredient."
        )
    record = source.beside / "quantize.json"
    recipe = (read_json(record).get("recipe") or {}) if record.is_file() else {}
    if float_folder is not None and "rotation" in recipe.get("ingredients", []):
        raise ParameterError(
            f"{source.folder} was rotated, {float_folder} is not: their weights have no common axes. Leave model_path out."
        )


def _room(source: _Source, format: str) -> int:
    size = sum(tensor.nbytes for tensor in source.weights.tensors.values())
    return size * 5 if format == "numpy" else size


def _float_names(source: _Source) -> list[str]:
    """Stored names of the parameters that no int8 linear owns."""
    names = (stored_name(name, source.model.config) for name, _ in source.model.named_parameters())
    return [name for name in names if name.rpartition(".")[0] not in source.weights.linears]


def _packed(source: _Source, linear: str) -> dict[str, Tensor]:
    tensors = source.weights.tensors
    parts = DYNAMIC_TENSORS if linear in source.weights.dynamic else LINEAR_TENSORS
    return {part: tensors[f"{linear}.{part}"] for part in parts if f"{linear}.{part}" in tensors}


def _config(source: _Source) -> dict[str, Any]:
    """The source's config.json without what only its own format says, the dtype under both of its names."""
    config = read_json(source.beside / "config.json")
    embedding = source.weights.tensors[stored_name(source.model.config.layout.embedding, source.model.config)]
    dtype = str(embedding.dtype).removeprefix("torch.")
    dropped = ("quantize", "quantization_config")
    kept = {key: value for key, value in config.items() if key not in dropped}
    return {**kept, "torch_dtype": dtype, "dtype": dtype}


def _write_described(source: _Source, folder: Path, format: str) -> None:
    tensors = {name: source.weights.tensors[name] for name in _float_names(source)}
    kinds, names = dict.fromkeys(tensors, FLOAT), QUANT_NAMES[source.kind]
    for linear in sorted(source.weights.linears):
        kind = DYNAMIC if linear in source.weights.dynamic else STATIC
        for part, tensor in _packed(source, linear).items():
            tensors[f"{linear}.{part}"] = tensor
            kinds[f"{linear}.{part}"] = FLOAT if part == "bias" else kind
    for norm in norm_names(source.model):
        weight = tensors[f"{norm}.weight"]
        bias = source.weights.tensors.get(f"{norm}.bias", torch.zeros_like(weight))
        tensors[f"{norm}.bias"], kinds[f"{norm}.bias"] = bias, FLOAT
        if format == "safetensors" and "layernorm" in norm:
            tensors |= {f"{norm}.module.weight": weight.clone(), f"{norm}.module.bias": bias.clone()}
            kinds |= dict.fromkeys((f"{norm}.module.weight", f"{norm}.module.bias"), source.kind)
    head = {"version": "1.0.0"} if format == "ascendV1" else {}
    copy_beside(source.beside, folder)
    _save(folder / names.weights, tensors)
    description = ASCEND_DESCRIPTION if format == "ascendV1" else names.description
    write_json(folder / description, {**head, "model_quant_type": source.kind, **kinds})
    write_json(folder / "config.json", {**_config(source), "quantize": names.quantize})
    _copy_recipe(source, folder)


def _write_compressed(source: _Source, folder: Path, record: ExportRecord) -> ExportRecord:
    tensors = {name: source.weights.tensors[name] for name in _float_names(source)}
    tensors |= _shifts(source)
    notes = ["norms with the bias of shifted channels: other engines ignore it"] if _shifts(source) else []
    for linear in sorted(source.weights.linears):
        if linear in source.weights.dynamic:
            tensors |= dynamic_tensors(linear, _packed(source, linear))
            continue
        stored = compressed_tensors(linear, _complete(source, linear))
        if extra := {f"{linear}.quant_bias", f"{linear}.deq_scale"} & set(stored):
            notes.append(
                f"{', '.join(sorted(extra))} stored too: what follows from the other tensors differs"
            )
        tensors |= stored
    kept = [
        name
        for name in linear_names(source.model)
        if stored_name(name, source.model.config) not in source.weights.linears
    ]
    copy_beside(source.beside, folder)
    _save(folder / "model.safetensors", tensors)
    quantization = quantization_config(["lm_head", *kept], source.kind == DYNAMIC)
    write_json(folder / "config.json", {**_config(source), "quantization_config": quantization})
    _copy_recipe(source, folder)
    return replace(record, notes=notes)


def _complete(source: _Source, linear: str) -> dict[str, Tensor]:
    """Tensors of a linear with the scale and bias that some files leave out because their runtime needs none."""
    packed = _packed(source, linear)
    offset = packed["input_offset"]
    if not torch.equal(offset.float(), offset.float().round().clamp(-128, 127)):
        source.weights.refuse(f"{linear}.input_offset is {offset.item()}, no int8 number")
    if "weight_scale" not in packed:
        packed["weight_scale"] = (decode_scale(packed["deq_scale"]) / packed["input_scale"].float())[:, None]
    if "bias" not in packed and f"{linear}.bias" in _parameters(source):
        packed["bias"] = recovered_bias(packed)
    return packed


def _parameters(source: _Source) -> set[str]:
    return {stored_name(name, source.model.config) for name, _ in source.model.named_parameters()}


def _shifts(source: _Source) -> dict[str, Tensor]:
    biases = (
        (f"{norm}.bias", source.weights.tensors.get(f"{norm}.bias")) for norm in norm_names(source.model)
    )
    return {name: bias for name, bias in biases if bias is not None and bool(bias.any())}


def _write_numpy(
    source: _Source, folder: Path, record: ExportRecord, model_path: Path | None
) -> ExportRecord:
    if shifted := sorted(_shifts(source)):
        source.weights.refuse(f"{shifted[0]} shifts channels, which a float folder cannot hold")
    packed = {linear: _complete(source, linear) for linear in sorted(source.weights.linears)}
    original = None if model_path is None or is_w8a8(model_path) else model_path
    tensors = {name: source.weights.tensors[name] for name in _float_names(source)}
    floats = FloatWeights(source.weights, packed, Shards(original) if original else None)
    stored = {linear: _packed(source, linear) for linear in packed}
    save_dictionaries(folder, source.model, stored, tensors)
    (folder / FLOAT_PART).mkdir()
    copy_beside(source.beside, folder / FLOAT_PART)
    biases = {f"{linear}.bias": parts["bias"] for linear, parts in packed.items() if "bias" in parts}
    _save(folder / FLOAT_PART / "model.safetensors", tensors | biases, floats.entries())
    write_json(folder / FLOAT_PART / "config.json", _config(source))
    _copy_recipe(source, folder)
    return replace(record, dequantized=floats.dequantized())


def _save(path: Path, tensors: dict[str, Tensor], further: Iterable[Entry] = ()) -> None:
    """Write a piece at a time: `tensors` are mapped from the source's files as far as they are unchanged."""
    entries = (whole_entry(name, tensor) for name, tensor in tensors.items())
    write_tensor_file(path, [*entries, *further])


def _copy_recipe(source: _Source, folder: Path) -> None:
    if (source.folder / "quantize.json").is_file():
        shutil.copyfile(source.folder / "quantize.json", folder / "quantize.json")

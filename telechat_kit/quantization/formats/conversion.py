"""A folder in another tool's file format, and under Llama's names for engines: `export(folder, target, format)`.

What the formats hold is told where they are read: `model/w8a8`, `model/numpy_files`, `model/compressed_tensors`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.files import atomic_folder, read_json, require_space, resolve, write_json
from telechat_kit.messages import Message, marked
from telechat_kit.model.compressed_tensors import compressed_tensors, dynamic_tensors, quantization_config
from telechat_kit.model.folder import (
    ASCEND_DESCRIPTION,
    DYNAMIC,
    FLOAT,
    FLOAT_PART,
    QUANT_NAMES,
    STATIC,
    is_w8a8,
    weight_files,
)
from telechat_kit.model.hashes import WEIGHTS, require_recorded_weights, weight_hashes
from telechat_kit.model.layout import HEAD
from telechat_kit.model.w8a8 import norm_names
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.formats.export_source import Source, read_source
from telechat_kit.quantization.formats.llama_export import (
    finish_tokenizer,
    llama_source,
    notes_on,
    write_float_llama,
)
from telechat_kit.quantization.formats.numpy_export import FloatWeights, save_dictionaries
from telechat_kit.quantization.formats.ownership import FILES, names_in, require_free
from telechat_kit.quantization.formats.w8a8_folder import copy_beside
from telechat_kit.quantization.tensor_file import Entry, whole_entry, write_tensor_file

SCHEMA = "telechat-kit/export/1"
RECORD = "export.json"
FORMATS = ("safetensors", "ascendV1", "numpy", "compressed-tensors")
#: The format of a float folder
UNQUANTIZED = "float"
#: Whose names the tensors have: the family's own, or Llama's, which engines know
NAMES = ("own", "llama")
#: The formats under Llama's names: those that an engine of Llama reads
_LLAMA_FORMATS = ("ascendV1", "compressed-tensors", UNQUANTIZED)


@dataclass(frozen=True)
class ExportRecord:
    """What stands in an exported folder beside its weights, as `export.json`."""

    schema: str
    format: str
    source: str
    int8_linears: int
    dequantized: list[str]  # of "numpy": linears whose float weight is int8 weight times scale
    notes: list[str]
    names: str = "own"


def export(
    folder: str | Path,
    target: str | Path,
    format: str,
    model_path: str | Path | None = None,
    *,
    names: str = "own",
    max_length: int | None = None,
    overwrite: bool = False,
) -> ExportRecord:
    """Write `folder` into the new folder `target` in another format; its logits stay the same.

    Args:
        folder: a quantized folder in any format that `load_model` reads; for "float" a float one.
        target: the folder to write; an earlier export there is replaced.
        format: "safetensors" and "ascendV1" (msModelSlim, MindIE, vLLM-Ascend), "numpy" (the `.npy`
            dictionaries of 2024-08, and under `float` the float folder after outlier suppression), or
            "compressed-tensors" (`int-quantized`, vLLM), or "float" (safetensors; with `names` "llama").
        model_path: for "numpy" the float checkpoint that was quantized, so that `float` holds its weights and
            not int8 weights times scale. For a `folder` of `.npy` dictionaries their float folder.
        names: "llama" writes the Llama that the model is up to its trained length, for engines that do not know
            TeleChat: "ascendV1" (vLLM-Ascend), "compressed-tensors" and "float" (vLLM and others).
        max_length: with `names` "llama" the longest sequence to be served; None for the trained length.
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
    _check_request(format, names, max_length)
    target = target.resolve()
    require_free(target, RECORD, [source_folder, *([float_folder] if float_folder else [])], overwrite)
    if format == UNQUANTIZED:
        return _export_float(source_folder, target, max_length)
    source = read_source(source_folder, float_folder)
    require_recorded_weights(source_folder)
    _check_activations(source, format)
    _check_rotation(source, format, float_folder)
    notes: list[str] = []
    if names == "llama":
        notes = notes_on(source.model.config, max_length or source.model.config.training_seqlen)
        source = llama_source(source, max_length)
    require_space(target, _room(source, format), Message("the {format} checkpoint", format=format))
    int8_linears = len(source.weights.linears)
    record = ExportRecord(SCHEMA, format, source_folder.name, int8_linears, [], notes, names)
    with atomic_folder(target) as temporary:
        if format == "numpy":
            record = _write_numpy(source, temporary, record, float_folder)
        elif format == "compressed-tensors":
            record = _write_compressed(source, temporary, record)
        else:
            _write_described(source, temporary, format, names)
        if names == "llama":
            finish_tokenizer(temporary)
        _write_record(temporary, record)
    return record


def _check_request(format: str, names: str, max_length: int | None) -> None:
    for value, known, what in ((format, (*FORMATS, UNQUANTIZED), "format"), (names, NAMES, "names")):
        if value not in known:
            raise ParameterError(
                '{what} "{value}" is unknown. Use one of {known}.',
                what=what,
                value=value,
                known=", ".join(known),
            )
    if names == "llama" and format not in _LLAMA_FORMATS:
        raise ParameterError(
            "{format} is not read by engines of Llama. Use {llama_formats}, or the model's own names.",
            format=format,
            llama_formats=", ".join(_LLAMA_FORMATS),
        )
    if names == "own" and (format == UNQUANTIZED or max_length is not None):
        asked = marked("format float") if format == UNQUANTIZED else "max_length"
        raise ParameterError(
            '{asked} is for the names "llama" only. Add them (--names llama), or leave it out.', asked=asked
        )


def _export_float(folder: Path, target: Path, max_length: int | None) -> ExportRecord:
    """A float checkpoint under Llama's names."""
    if is_w8a8(folder):
        raise CheckpointError(
            "{folder} is quantized. Use ascendV1 or compressed-tensors, or give the float folder.",
            folder=folder,
        )
    require_space(
        target, sum(path.stat().st_size for path in weight_files(folder)), marked("the float checkpoint")
    )
    with atomic_folder(target) as temporary:
        copy_beside(folder, temporary)
        notes = write_float_llama(folder, temporary, max_length)
        finish_tokenizer(temporary)
        record = ExportRecord(SCHEMA, UNQUANTIZED, folder.name, 0, [], notes, "llama")
        _write_record(temporary, record)
    return record


def _write_record(folder: Path, record: ExportRecord) -> None:
    hashes = weight_hashes(folder)
    write_json(folder / RECORD, {**asdict(record), WEIGHTS: hashes, FILES: names_in(folder)})


def _check_activations(source: Source, format: str) -> None:
    """Refuse dynamic activations where a format has no place for them."""
    if format == "numpy" and source.weights.dynamic:
        raise ParameterError(
            "{folder} has dynamic activations. The .npy dictionaries hold static ones only: their readers "
            "know an int8 linear by its input_scale, quant_bias and deq_scale. Use safetensors, ascendV1 or "
            'compressed-tensors, or quantize with activations "static".',
            folder=source.folder,
        )
    if format == "compressed-tensors" and source.weights.dynamic and source.static:
        raise ParameterError(
            "{folder} has linears with static and with dynamic activations. compressed-tensors is written "
            "with one scheme for all of them. Use safetensors or ascendV1.",
            folder=source.folder,
        )


def _check_rotation(source: Source, format: str, float_folder: Path | None) -> None:
    """Refuse weights that expect a turned input where readers would not turn it, and a float folder of other axes."""
    if format != "safetensors" and source.model.config.online_rotation:
        raise ParameterError(
            "{folder} expects the input of down_proj turned as the model runs (online_rotation), which "
            "readers of {format} do not do. Use safetensors with this kit, or quantize without that "
            "ingredient.",
            folder=source.folder,
            format=format,
        )
    record = source.beside / "quantize.json"
    recipe = (read_json(record).get("recipe") or {}) if record.is_file() else {}
    if float_folder is not None and "rotation" in recipe.get("ingredients", []):
        raise ParameterError(
            "{folder} was rotated, {float_folder} is not: their weights have no common axes. Leave "
            "model_path out.",
            folder=source.folder,
            float_folder=float_folder,
        )


def _room(source: Source, format: str) -> int:
    size = sum(tensor.nbytes for tensor in source.weights.tensors.values())
    return size * 5 if format == "numpy" else size


def _write_described(source: Source, folder: Path, format: str, names: str) -> None:
    tensors = {name: source.weights.tensors[name] for name in source.float_names()}
    kinds, files = dict.fromkeys(tensors, FLOAT), QUANT_NAMES[source.kind]
    if names == "llama":
        kinds[HEAD] = FLOAT  # vLLM-Ascend asks for it, also where it is tied
    for linear in sorted(source.weights.linears):
        kind = DYNAMIC if linear in source.weights.dynamic else STATIC
        for part, tensor in source.packed(linear).items():
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
    _save(folder / files.weights, tensors)
    description = ASCEND_DESCRIPTION if format == "ascendV1" else files.description
    write_json(folder / description, {**head, "model_quant_type": source.kind, **kinds})
    source.write_config(folder, quantize=files.quantize)
    _copy_recipe(source, folder)


def _write_compressed(source: Source, folder: Path, record: ExportRecord) -> ExportRecord:
    tensors = {name: source.weights.tensors[name] for name in source.float_names()}
    shifts, notes = source.shifts(), list(record.notes)
    tensors |= shifts
    if shifts:
        notes.append(marked("norms with the bias of shifted channels: other engines ignore it"))
    for linear in sorted(source.weights.linears):
        if linear in source.weights.dynamic:
            tensors |= dynamic_tensors(linear, source.packed(linear))
            continue
        stored = compressed_tensors(linear, source.complete(linear))
        if extra := sorted({f"{linear}.quant_bias", f"{linear}.deq_scale"} & set(stored)):
            what = marked("what follows from the other tensors differs")
            if record.names == "llama":  # engines refuse a tensor that they do not know
                stored = {name: value for name, value in stored.items() if name not in extra}
                notes.append(Message("{extra} left out: {what}", extra=", ".join(extra), what=what))
            else:
                notes.append(Message("{extra} stored too: {what}", extra=", ".join(extra), what=what))
        tensors |= stored
    copy_beside(source.beside, folder)
    _save(folder / "model.safetensors", tensors)
    quantization = quantization_config(["lm_head", *source.float_linears()], source.kind == DYNAMIC)
    source.write_config(folder, quantization_config=quantization)
    _copy_recipe(source, folder)
    return replace(record, notes=notes)


def _write_numpy(source: Source, folder: Path, record: ExportRecord, model_path: Path | None) -> ExportRecord:
    if shifted := sorted(source.shifts()):
        source.weights.refuse(
            Message("{shifted} shifts channels, which a float folder cannot hold", shifted=shifted[0])
        )
    packed = {linear: source.complete(linear) for linear in sorted(source.weights.linears)}
    original = None if model_path is None or is_w8a8(model_path) else model_path
    tensors = {name: source.weights.tensors[name] for name in source.float_names()}
    floats = FloatWeights(source.weights, packed, Shards(original) if original else None)
    stored = {linear: source.packed(linear) for linear in packed}
    save_dictionaries(folder, source.model, stored, tensors)
    (folder / FLOAT_PART).mkdir()
    copy_beside(source.beside, folder / FLOAT_PART)
    biases = {f"{linear}.bias": parts["bias"] for linear, parts in packed.items() if "bias" in parts}
    _save(folder / FLOAT_PART / "model.safetensors", tensors | biases, floats.entries())
    source.write_config(folder / FLOAT_PART)
    _copy_recipe(source, folder)
    return replace(record, dequantized=floats.dequantized())


def _save(path: Path, tensors: dict[str, Tensor], further: Iterable[Entry] = ()) -> None:
    """Write a piece at a time: `tensors` are mapped from the source's files as far as they are unchanged."""
    entries = (whole_entry(name, tensor) for name, tensor in tensors.items())
    write_tensor_file(path, [*entries, *further])


def _copy_recipe(source: Source, folder: Path) -> None:
    """The recipe of the source, with the hashes of the files that hold its weights now."""
    if (source.folder / "quantize.json").is_file():
        recipe = read_json(source.folder / "quantize.json")
        write_json(folder / "quantize.json", {**recipe, WEIGHTS: weight_hashes(folder)})

"""Scenario two of the guide: W8A8 weights that are there already are checked and described, not made."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.files import read_json
from telechat_kit.messages import Message, marked
from telechat_kit.model.checkpoint import config_folder, needed_model_path, read_w8a8
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import DYNAMIC, STATIC, is_w8a8, read_config, weight_files, weights_format
from telechat_kit.model.hashes import require_recorded_weights
from telechat_kit.model.int8_linears import decode_scale
from telechat_kit.model.network_values import require_one_network
from telechat_kit.model.telechat3 import network_of
from telechat_kit.model.w8a8 import W8A8Weights, linear_names, place, stored_name
from telechat_kit.model.weight_shards import Shards
from telechat_kit.progress import track
from telechat_kit.quantization.formats.numpy_export import largest_deviation, rounding_slack
from telechat_kit.quantization.levels.fallback import FloatLinear
from telechat_kit.quantization.recipe import AppliedRecipe, LinearRecord

RECIPE = "quantize.json"


@dataclass(frozen=True)
class GivenWeights:
    """What a check of given W8A8 weights found.

    Attributes:
        format: "numpy", "safetensors" ..., as `weights_format` names it.
        tensors, bytes: number and size of the tensors of the W8A8 model, each checked for name, shape and type.
        rounded: number of int8 linears whose weight in the float folder rounds to the int8 weight.
        largest_deviation: of a weight in the float folder from the int8 weight, in steps of the int8 weight.
        notes: what a reader should know, a sentence each.
    """

    format: str
    tensors: int
    bytes: int
    rounded: int
    largest_deviation: float
    notes: list[str]


@dataclass(frozen=True)
class Checked:
    """Given weights as a record tells of them; `recipe` is None where nothing says how they were made."""

    given: GivenWeights
    linears: list[LinearRecord]
    float_linears: list[FloatLinear]
    recipe: AppliedRecipe | None


@dataclass(frozen=True)
class _Pair:
    """The quantized weights, placed into a network once, and the float folder that belongs to them."""

    folder: Path
    shards: Shards
    weights: W8A8Weights
    config: (
        TelechatConfig  # of the quantized weights: their head may be untied, their feed-forward part wider
    )
    names: list[str]  # of the linears, in the order of the network

    def stored(self, name: str) -> str:
        return stored_name(name, self.config)

    def is_dynamic(self, name: str) -> bool:
        return self.stored(name) in self.weights.dynamic

    def packed(self, name: str) -> dict[str, Tensor]:
        """Tensors of the int8 linear `name`, with the scale of its weight."""
        parts = ("weight", "input_scale", "input_offset", "deq_scale", "weight_scale")
        found = {part: self.weights.tensors.get(f"{self.stored(name)}.{part}") for part in parts}
        packed = {part: tensor for part, tensor in found.items() if tensor is not None}
        if self.is_dynamic(name):
            return packed
        deq_scale = decode_scale(packed["deq_scale"])
        if not bool(deq_scale.isfinite().all() & (deq_scale != 0).all()):
            self.weights.refuse(Message("{name}.deq_scale holds values that are 0 or not finite", name=name))
        if "weight_scale" not in packed:
            packed["weight_scale"] = (deq_scale / packed["input_scale"].float())[:, None]
        return packed


def check_given(float_folder: Path, quant_folder: Path) -> Checked:
    """Check that the W8A8 weights of `quant_folder` can be loaded and belong to `float_folder`.

    Raises:
        CheckpointError: a folder is missing or of the other kind, a tensor is missing, damaged or does not fit, or
            the float folder holds the weights before outlier suppression while linears in float need those after.
    """
    pair = _read(float_folder, quant_folder)
    _check_float_readers(pair)
    linears, deviations, wider = [], [], 0
    for name in track(pair.names, marked("check of linears")):
        if pair.stored(name) in pair.weights.linears:
            packed = pair.packed(name)
            if pair.shards.tensors[f"{name}.weight"].shape == packed["weight"].shape:
                weight = pair.shards.read([f"{name}.weight"], torch.device("cpu"))[f"{name}.weight"]
                deviations.append(largest_deviation(weight, packed))
            else:
                wider += 1
            linears.append(_int8_record(name, packed, pair.is_dynamic(name)))
        else:
            linears.append(LinearRecord(name, "FLOAT", None, None, None, None, None))
    require_recorded_weights(quant_folder)  # last: whatever else is wrong is told by tensor
    rounded = sum(deviation <= rounding_slack(pair.shards.dtype) for deviation in deviations)
    kept = [
        FloatLinear(row.name, None, marked("in float as given")) for row in linears if row.kind == "FLOAT"
    ]
    given = GivenWeights(
        format=weights_format(quant_folder),
        tensors=len(pair.weights.tensors),
        bytes=sum(tensor.nbytes for tensor in pair.weights.tensors.values()),
        rounded=rounded,
        largest_deviation=max(deviations, default=0.0),
        notes=list(_notes(rounded, len(deviations), wider, quant_folder)),
    )
    return _with_recipe(quant_folder / RECIPE, Checked(given, linears, kept, None))


def _read(float_folder: Path, quant_folder: Path) -> _Pair:
    """Both folders, each whole; the placing is the check that the quantized one can be loaded."""
    config = read_config(config_folder(quant_folder, needed_model_path(quant_folder, float_folder)))
    if not is_w8a8(quant_folder):
        raise CheckpointError(
            "{quant_folder} is not quantized. Give the folder of the W8A8 weights as quant_path, or leave "
            "given_weights out to have them made.",
            quant_folder=quant_folder,
        )
    if is_w8a8(float_folder):
        raise CheckpointError(
            "{float_folder} is quantized. Give the float weights as checkpoint_path.",
            float_folder=float_folder,
        )
    shards = Shards(float_folder)
    shards.require_finite()
    weight_files(quant_folder)
    with torch.device("meta"):
        model = network_of(config)(config)
    names = linear_names(model)
    weights = read_w8a8(quant_folder, float_folder, model)
    place(model, weights, shards.dtype)
    _require_one_model(shards, config, quant_folder)
    return _Pair(quant_folder, shards, weights, config, names)


def _require_one_model(shards: Shards, config: TelechatConfig, quant_folder: Path) -> None:
    """Refuse weights of another shape; only the feed-forward part may be wider, where its channels were split."""
    own = shards.config
    for key in ("model_type", "vocab_size", "hidden_size", "n_layer", "n_head", "kv_heads"):
        if getattr(own, key) != getattr(config, key):
            raise CheckpointError(
                "{folder} and {quant_folder} do not belong together: {key} is {one} and {other}. Give the "
                "float folder of these weights.",
                folder=shards.folder,
                quant_folder=quant_folder,
                key=key,
                one=getattr(own, key),
                other=getattr(config, key),
            )
    require_one_network(shards.folder, own, quant_folder, config)
    if config.ffn_hidden_size < own.ffn_hidden_size:
        raise CheckpointError(
            "{folder} and {quant_folder} do not belong together: ffn_hidden_size is {one} and "
            "{other}. Give the float folder of these weights.",
            folder=shards.folder,
            quant_folder=quant_folder,
            one=own.ffn_hidden_size,
            other=config.ffn_hidden_size,
        )


def _check_float_readers(pair: _Pair) -> None:
    """Refuse float linears that read a folded norm with weights from before outlier suppression."""
    if weights_format(pair.folder) != "numpy":
        return
    for block in range(pair.shards.config.n_layer):
        layout = pair.shards.config.layout
        prefix = layout.block(block)
        for norm, readers in zip(layout.norms, layout.shared_inputs, strict=True):
            kept = [r for r in readers if pair.stored(prefix + r) not in pair.weights.linears]
            name = f"{prefix}{norm}.weight"
            ours = pair.shards.read([name], torch.device("cpu"))[name]
            if kept and not torch.allclose(ours, pair.weights.tensor(pair.stored(name)).float(), rtol=1e-2):
                raise CheckpointError(
                    "{folder}: {name} is not the norm of the int8 weights, but {prefix}{kept}, which is in float, "
                    "reads it. Give the float folder after outlier suppression, not the original one.",
                    folder=pair.shards.folder,
                    name=name,
                    prefix=prefix,
                    kept=kept[0],
                )


def _int8_record(name: str, packed: dict[str, Tensor], dynamic: bool) -> LinearRecord:
    dead = int((packed["weight"] == 0).all(dim=1).sum())
    if dynamic:
        return LinearRecord(name, DYNAMIC, None, None, None, None, None, dead_outputs=dead)
    scale, offset = packed["input_scale"].float().item(), int(packed["input_offset"].item())
    return LinearRecord(
        name=name,
        kind=STATIC,
        score=None,
        low=(-128 - offset) * scale,
        high=(127 - offset) * scale,
        input_scale=scale,
        input_offset=offset,
        dead_outputs=dead,
    )


def _notes(rounded: int, int8: int, wider: int, quant_folder: Path) -> Iterator[str]:
    if wider:
        yield (
            Message(
                "{wider} int8 weights have more channels than the float ones, as method best splits them, and "
                "were not compared with them.",
                wider=wider,
            )
        )
    if rounded < int8:
        yield (
            Message(
                "{differing} of {all} int8 weights are not the rounded weights of the float folder: that one is "
                "from before outlier suppression, or another rounding was used.",
                differing=int8 - rounded,
                all=int8,
            )
        )
    if not (quant_folder / RECIPE).is_file():
        yield marked("Nothing tells how these weights were made, nor which texts they were calibrated on.")


def _with_recipe(path: Path, checked: Checked) -> Checked:
    """`checked` with what the `quantize.json` beside the weights says, if it is about these weights."""
    if not path.is_file():
        return checked
    values = read_json(path)
    try:
        recipe = TypeAdapter(AppliedRecipe).validate_python(values["recipe"])
        linears = TypeAdapter(list[LinearRecord]).validate_python(values["linears"])
        kept = TypeAdapter(list[FloatLinear]).validate_python(values["float_linears"])
    except (ValidationError, TypeError, KeyError) as error:
        checked.given.notes.append(
            Message(
                "{name} beside the weights cannot be read: {one_line}.",
                name=path.name,
                one_line=_one_line(error),
            )
        )
        return checked
    if not _same(linears, checked.linears):
        checked.given.notes.append(
            Message("{name} beside the weights tells of other weights and is left out.", name=path.name)
        )
        return checked
    return Checked(checked.given, linears, kept, recipe)


def _same(told: list[LinearRecord], found: list[LinearRecord]) -> bool:
    """Whether both tell of the same linears, with the same scales up to the rounding of 16-bit ones."""
    return [(row.name, row.kind, row.input_offset) for row in told] == [
        (row.name, row.kind, row.input_offset) for row in found
    ] and all(
        a.input_scale == b.input_scale or math.isclose(a.input_scale or 0, b.input_scale or 0, rel_tol=1e-2)
        for a, b in zip(told, found, strict=True)
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

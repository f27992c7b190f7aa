"""Writing scenario two: the `.npy` dictionaries of msModelSlim 2024-08, and the float weights that belong to them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.numpy_files import FILES, NORMS
from telechat_kit.model.w8a8 import W8A8Weights, linear_names, stored_name
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.tensor_file import Entry, tensor_entry, whole_entry


def save_dictionaries(
    folder: Path,
    model: TelechatForCausalLM,
    packed: Mapping[str, Mapping[str, Tensor]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Write one file a kind of tensor, int8 linears only, and the norms of the blocks; none is empty."""
    modules = {stored_name(name, model.config): name for name in linear_names(model)}
    for part, file in FILES.items():
        values = {modules[name]: parts[part] for name, parts in packed.items() if part in parts}
        if values or part == "weight":  # by this file the folder is known
            _save(folder / file, values)
    norms: dict[str, Tensor] = {}
    for block in range(model.config.n_layer):
        for norm in model.config.layout.norms:
            name = model.config.layout.block(block) + norm
            norms[f"{name}.weight"] = tensors[stored_name(f"{name}.weight", model.config)]
            norms[f"{name}.bias"] = torch.zeros_like(norms[f"{name}.weight"])
    _save(folder / NORMS, norms)


def _save(path: Path, values: dict[str, Tensor]) -> None:
    # a view would take its whole storage into the file
    owned = {name: value.clone() for name, value in values.items()}
    np.save(path, np.array(owned, dtype=object), allow_pickle=True)


@dataclass(frozen=True)
class FloatWeights:
    """Float weight of every int8 linear after outlier suppression, each computed when it is asked for.

    It is the one of the checkpoint `original` times the smoothing scale that its norm tells. Where that does not
    round to the int8 weight (another method changed it) or without `original` it is int8 times scale.
    """

    weights: W8A8Weights
    packed: Mapping[str, Mapping[str, Tensor]]
    original: Shards | None

    def entries(self) -> Iterator[Entry]:
        """The weights as tensors of a file to be written, one in memory at a time."""
        for name, parts in self.packed.items():
            dtype = self.original.dtype if self.original else parts["weight_scale"].dtype
            yield tensor_entry(
                f"{name}.weight", dtype, parts["weight"].shape, partial(self._pieces, name, dtype)
            )

    def dequantized(self) -> list[str]:
        """Names of the linears whose float weight is int8 weight times scale."""
        return [name for name in self.packed if self._suppressed(name) is None]

    def _pieces(self, name: str, dtype: torch.dtype) -> Iterable[bytes]:
        weight, parts = self._suppressed(name), self.packed[name]
        if weight is None:
            weight = parts["weight"].to(parts["weight_scale"].dtype) * parts["weight_scale"]
        return whole_entry(name, weight.to(dtype)).chunks()

    def _suppressed(self, name: str) -> Tensor | None:
        if self.original is None:
            return None
        weight = _suppressed(name, self.weights, self.original)
        close = largest_deviation(weight, self.packed[name]) <= rounding_slack(weight.dtype)
        return weight if close else None


def _suppressed(name: str, weights: W8A8Weights, original: Shards) -> Tensor:
    """Weight of the original checkpoint times the smoothing scale: the original norm over the folded one."""
    weight = _original(f"{name}.weight", weights, original)
    layout = original.config.layout
    for norm, group in zip(layout.norms, layout.shared_inputs, strict=True):
        reader = next((linear for linear in group if name.endswith(linear)), None)
        if reader is not None:
            key = f"{name.removesuffix(reader)}{norm}.weight"
            old, new = _original(key, weights, original), weights.tensors[key]
            return weight * torch.where(new == 0, torch.ones_like(new), old.to(new.dtype) / new)
    return weight


def _original(name: str, weights: W8A8Weights, original: Shards) -> Tensor:
    """The tensor of the float checkpoint that a quantized model stores under `name`, in its dtype there."""
    key = original.config.layout.module_name(name)
    stored = original.tensors.get(key)
    if stored is None or stored.shape != weights.tensors[name].shape:
        raise CheckpointError(
            "{folder} has no {name} of the quantized shape. Give the float checkpoint of it.",
            folder=original.folder,
            name=name,
        )
    return original.read([key], torch.device("cpu"))[key].to(stored.dtype)


def largest_deviation(weight: Tensor, parts: Mapping[str, Tensor]) -> float:
    """How far a float weight `[out, in]` is from the int8 one at most, in steps of the int8 one."""
    steps = weight.float() / parts["weight_scale"].float()
    return float((steps - parts["weight"]).abs().max())


def rounding_slack(dtype: torch.dtype) -> float:
    """Largest deviation of a weight that was rounded, with what `dtype` may have changed of it before."""
    return 0.5 + 127 * 4 * torch.finfo(dtype).eps

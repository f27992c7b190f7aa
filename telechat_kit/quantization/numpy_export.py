"""Writing scenario two: the `.npy` dictionaries of msModelSlim 2024-08, and the float weights that belong to them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.model.folder import load_tensors
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.numpy_files import FILES, NORMS
from telechat_kit.model.w8a8 import PAIR_NORMS, SHARED_INPUTS, W8A8Weights, linear_names, stored_name


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
        for norm in PAIR_NORMS:
            name = f"transformer.h.{block}.{norm}"
            norms[f"{name}.weight"] = tensors[stored_name(f"{name}.weight", model.config)]
            norms[f"{name}.bias"] = torch.zeros_like(norms[f"{name}.weight"])
    _save(folder / NORMS, norms)


def _save(path: Path, values: dict[str, Tensor]) -> None:
    # a view would take its whole storage into the file
    owned = {name: value.clone() for name, value in values.items()}
    np.save(path, np.array(owned, dtype=object), allow_pickle=True)


def float_tensors(
    model: TelechatForCausalLM,
    weights: W8A8Weights,
    packed: Mapping[str, Mapping[str, Tensor]],
    original: Path | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Float weight and bias of every int8 linear after outlier suppression, and the linears that were dequantized.

    The weight is the one of the checkpoint `original` times the smoothing scale that its norm tells. Where that
    does not round to the int8 weight (another method changed it) or without `original` it is int8 times scale.
    """
    source = {} if original is None else load_tensors(original)
    source = {stored_name(name, model.config): value for name, value in source.items()}
    result: dict[str, Tensor] = {}
    dequantized = []
    for name, parts in packed.items():
        dtype = parts["weight_scale"].dtype
        weight = parts["weight"].to(dtype) * parts["weight_scale"]
        if "bias" in parts:
            result[f"{name}.bias"] = parts["bias"]
        suppressed = _suppressed(name, weights, source, original) if original else None
        if suppressed is not None and largest_deviation(suppressed, parts) <= rounding_slack(
            suppressed.dtype
        ):
            weight = suppressed
        else:
            dequantized.append(name)
        result[f"{name}.weight"] = weight
    return result, dequantized


def _suppressed(name: str, weights: W8A8Weights, source: Mapping[str, Tensor], original: Path) -> Tensor:
    """Weight of the original checkpoint times the smoothing scale: the original norm over the folded one."""
    needed = f"{name}.weight"
    if needed not in source or source[needed].shape != weights.tensors[needed].shape:
        raise CheckpointError(
            f"{original} has no {needed} of the quantized shape. Give the float checkpoint of it."
        )
    weight = source[needed]
    for norm, pair in zip(PAIR_NORMS, SHARED_INPUTS, strict=True):
        reader = next((linear for linear in pair if name.endswith(linear)), None)
        if reader is not None:
            prefix = name.removesuffix(reader)
            old, new = source.get(f"{prefix}{norm}.weight"), weights.tensors[f"{prefix}{norm}.weight"]
            if old is None or old.shape != new.shape:
                raise CheckpointError(f"{original} has no {prefix}{norm}.weight of the quantized shape.")
            scale = torch.where(new == 0, torch.ones_like(new), old.to(new.dtype) / new)
            return weight * scale
    return weight


def largest_deviation(weight: Tensor, parts: Mapping[str, Tensor]) -> float:
    """How far a float weight `[out, in]` is from the int8 one at most, in steps of the int8 one."""
    steps = weight.float() / parts["weight_scale"].float()
    return float((steps - parts["weight"]).abs().max())


def rounding_slack(dtype: torch.dtype) -> float:
    """Largest deviation of a weight that was rounded, with what `dtype` may have changed of it before."""
    return 0.5 + 127 * 4 * torch.finfo(dtype).eps

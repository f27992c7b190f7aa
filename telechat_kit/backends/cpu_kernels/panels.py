"""Int8 weights as the kernels stream them: panels of 16 outputs, 4 inputs of each side by side.

A permutation of the bytes on disk, padded with zeros to multiples of 16 outputs and 4 inputs, so it takes their
place in memory and can be undone.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

#: Floats in the kernels' vectors
LANES = 16
#: Outputs of a panel, and inputs that one dot product takes
OUTPUTS, INPUTS = LANES, 4


def pack_weight(weight: Tensor) -> Tensor:
    """`[out, in]` int8 -> `[out / 16, in / 4, 16, 4]`."""
    out, size = weight.shape
    padded = functional.pad(weight, (0, -size % INPUTS, 0, -out % OUTPUTS))
    panels = padded.view(-1, OUTPUTS, padded.shape[1] // INPUTS, INPUTS)
    return panels.transpose(1, 2).contiguous()


def unpack_weight(panels: Tensor, out: int, size: int) -> Tensor:
    """The `[out, size]` int8 weight of these panels."""
    rows = panels.transpose(1, 2).reshape(panels.shape[0] * OUTPUTS, -1)
    return rows[:out, :size].contiguous()


def pack_linear(tensors: Mapping[str, Tensor], shift: int) -> dict[str, Tensor]:
    """Tensors of a W8A8 linear with its weight in panels and, in the bias, what `shift` adds to every product."""
    weight = tensors["weight"]
    return {
        **tensors,
        "weight": pack_weight(weight),
        "quant_bias": tensors["quant_bias"] - shift * weight.sum(1, dtype=torch.int32),
    }


def unpack_linear(tensors: Mapping[str, Tensor], out: int, size: int, shift: int) -> dict[str, Tensor]:
    """What `pack_linear` was given."""
    weight = unpack_weight(tensors["weight"], out, size)
    bias = tensors["quant_bias"] + shift * weight.sum(1, dtype=torch.int32)
    return {**tensors, "weight": weight, "quant_bias": bias}

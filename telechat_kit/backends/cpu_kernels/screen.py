"""An int8 copy of the float head that tells which few rows can hold the largest logit.

A row's true logit lies within `error * |x|` of what the copy gives (Cauchy-Schwarz), so only rows whose upper bound
reaches the best lower bound need the float weight: the choice is exact, at a quarter of the bytes read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from telechat_kit.backends.cpu_kernels.huge_pages import empty
from telechat_kit.backends.cpu_kernels.library import Linear, activation_shift
from telechat_kit.backends.cpu_kernels.panels import OUTPUTS, pack_weight

#: Rows copied at a time: bounds the float copies in memory
ROWS = 1 << 14
#: Room for the rounding of the norms themselves
MARGIN = 1 + 1e-5


@dataclass(frozen=True)
class Screen:
    """The copy, `weight` in panels with one `scale` a row, and the Euclidean norms that bound its error."""

    weight: Tensor  # int8 [vocab / 16, hidden / 4, 16, 4]
    scale: Tensor  # float32 [vocab]
    bias: Tensor  # int32 [vocab]: takes off what the kernels' shift adds
    error: Tensor  # float32 [vocab]: |row - copy|
    norm: Tensor  # float32 [vocab]: |row|
    inputs: int

    @property
    def nbytes(self) -> int:
        """Bytes read to screen all rows."""
        tensors = (self.weight, self.scale, self.bias, self.error, self.norm)
        return sum(tensor.nbytes for tensor in tensors)

    def record(self) -> Linear:
        """As the kernels read it. It holds addresses: the screen must outlive it."""
        addresses = (self.weight.data_ptr(), self.bias.data_ptr(), self.scale.data_ptr())
        return Linear(*addresses, None, 1.0, 0.0, self.inputs, len(self.scale))


def screen_of(head: Tensor) -> Screen:
    """The screen of a float head `[vocab, hidden]`."""
    parts = [_rows(head[start : start + ROWS].float()) for start in range(0, len(head), ROWS)]
    assert ROWS % OUTPUTS == 0
    weight, scale, bias, error, norm = (_joined(column) for column in zip(*parts, strict=True))
    return Screen(weight, scale, bias, error, norm, head.shape[1])


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    shape = sum(map(len, parts)), *parts[0].shape[1:]
    return torch.cat(parts, out=empty(shape, parts[0].dtype))


def _rows(rows: Tensor) -> tuple[Tensor, ...]:
    scale = rows.abs().amax(1).div_(127).clamp_(min=1e-30)
    copy = torch.round(rows / scale[:, None])
    error = torch.linalg.vector_norm(rows - copy * scale[:, None], dim=1) * MARGIN
    norm = torch.linalg.vector_norm(rows, dim=1) * MARGIN
    copy = copy.to(torch.int8)
    return pack_weight(copy), scale, -activation_shift() * copy.sum(1, dtype=torch.int32), error, norm

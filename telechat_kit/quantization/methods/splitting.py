"""Channel splitting: a channel that dominates down_proj's rows becomes several equal ones, each with a part of it.

Outlier channel splitting (Zhao et al., ICML 2019), of weights: copies of a feed-forward channel compute the same
activation, so the columns that read them may share its weight. The function stays; int8 rows get finer steps.
"""

import torch
from torch import Tensor, nn

from telechat_kit.errors import CheckpointError
from telechat_kit.quantization.blocks import Block

#: Feed-forward channels that method best adds: 32, in which the NPU's matrix format counts
SPLIT_CHANNELS = 32


def channel_copies(weight: Tensor, extra: int) -> Tensor:
    """How many times each input channel `[in]` of `weight [out, in]` is to be there, `in + extra` in all.

    One copy at a time goes to the channel whose next copy lowers the squared row maxima most: the step of an int8
    row is its maximum over 127.
    """
    magnitudes, copies = weight.abs(), weight.new_ones(weight.shape[1])
    for _ in range(extra):
        (largest, second), leaders = _two_largest(magnitudes / copies)
        held = copies[leaders]
        lowered = torch.maximum(second, largest * held / (held + 1))
        gain = torch.zeros_like(copies).index_add_(0, leaders, largest**2 - lowered**2)
        copies[gain.argmax()] += 1
    return copies.long()


def _two_largest(rows: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Largest and second value of each row, and where the largest is."""
    top = rows.topk(2, dim=1)
    return (top.values[:, 0], top.values[:, 1]), top.indices[:, 0]


def split_channels(block: Block, extra: int) -> Tensor:
    """Widen the feed-forward of `block` by `extra` channels, in place; which channel each one is, `[ffn + extra]`.

    The function of the block stays: copies have the rows of gate_proj and up_proj, and share the column of down_proj.
    """
    copies = channel_copies(block.module.mlp.down_proj.weight.data, extra)
    channels = torch.repeat_interleave(torch.arange(len(copies), device=copies.device), copies)
    copy_channels(block, channels)
    return channels


def copied_channels(rows: Tensor, width: int) -> Tensor:
    """Which of `width` channels each of the `rows` of a split gate_proj, `[ffn + extra, in]`, belongs to.

    Copies stand side by side and are equal.

    Raises:
        CheckpointError: there are not as many equal neighbors as there are rows more than channels.
    """
    fresh = (rows[1:] != rows[:-1]).any(dim=1)
    channels = torch.cat([fresh.new_zeros(1), fresh]).long().cumsum(0)
    if int(channels[-1]) != width - 1:
        raise CheckpointError(
            "gate_proj has {count} rows, the float checkpoint {width}: not by splitting channels. Give the "
            "float checkpoint that was quantized.",
            count=len(rows),
            width=width,
        )
    return channels


def copy_channels(block: Block, channels: Tensor) -> None:
    """Give the feed-forward of `block` the `channels [ffn + extra]` of itself, in place; copies share a column."""
    mlp = block.module.mlp
    copies = torch.bincount(channels)
    for name in ("gate_proj", "up_proj"):
        mlp.set_submodule(name, _linear(getattr(mlp, name).weight.data[channels], None))
    shared = mlp.down_proj.weight.data / copies
    bias = mlp.down_proj.bias
    mlp.down_proj = _linear(shared[:, channels], None if bias is None else bias.data)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear

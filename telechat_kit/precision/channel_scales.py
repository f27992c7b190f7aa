"""The channels of a quantized block beside those of its float block: what outlier suppression scaled, found again.

Suppression scales what norms, `up_proj` and the values of attention give, and may split feed-forward channels into
copies. To hold an int8 linear beside its float one, both must see the same values: here are the factors, and a linear
that converts on its way in and out.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from telechat_kit.model.int8_linears import DynamicW8A8Linear, W8A8Linear
from telechat_kit.model.network import TelechatRMSNorm
from telechat_kit.quantization.blocks import Block
from telechat_kit.quantization.calibration.groups import value_columns, value_rows
from telechat_kit.quantization.calibration.passes import fold
from telechat_kit.quantization.methods.rotation import turn_products
from telechat_kit.quantization.methods.splitting import copied_channels, copy_channels


@dataclass(frozen=True)
class Basis:
    """How the quantized block stores what a linear reads and gives, channel by channel.

    `x_quantized = x_float / scale + shift`, `y_float = y_quantized * out`; scalars 1, 0, 1 where nothing changed.
    """

    scale: Tensor
    shift: Tensor
    out: Tensor


class Converted(nn.Module):
    """A linear of one block with the inputs and outputs of the other."""

    def __init__(
        self, linear: nn.Module, factor: Tensor, shift: Tensor, out: Tensor, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.linear, self.factor, self.shift, self.out, self.dtype = linear, factor, shift, out, dtype

    def convert(self, x: Tensor) -> Tensor:
        """`x [..., in]` as the inner linear expects it."""
        return (x * self.factor + self.shift).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(self.convert(x)) * self.out).to(x.dtype)


def quantized_in_float(linear: nn.Module, basis: Basis, dtype: torch.dtype) -> Converted:
    """A linear of the quantized block in place of the float block's; `dtype` is that of its activations."""
    return Converted(linear, 1 / basis.scale, basis.shift, basis.out, dtype)


def float_in_quantized(linear: nn.Module, basis: Basis) -> Converted:
    """A linear of the float block in place of the quantized block's: that linear kept in float."""
    return Converted(linear, basis.scale, -basis.shift * basis.scale, 1 / basis.out, torch.float32)


def split_alike(block: Block, quantized: Block) -> None:
    """Give the float block the copies of feed-forward channels that the quantized one has, or turn them as it does."""
    if quantized.module.mlp.rotation is not None:
        up = block.prefix + block.layout.up
        fold(block, {up: block_bases(block, quantized)[block.layout.up].out})
        turn_products(block)
        return
    width = block.module.mlp.down_proj.weight.shape[1]
    rows = dense_weight(quantized.module.get_submodule(block.layout.gate))
    if rows.shape[0] > width:
        copy_channels(block, copied_channels(rows, width))


def block_bases(block: Block, quantized: Block) -> dict[str, Basis]:
    """The basis of each linear by its name in the block.

    What norms give changes the inputs of their readers; rows of `up_proj` and of the values change what those two
    give and what `down_proj` and `dense` read.
    """
    layout, before, after = block.layout, block.module, quantized.module
    device = next(before.parameters()).device
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    bases: dict[str, Basis] = {}
    for norm, readers in zip(layout.norms, layout.shared_inputs, strict=True):
        scale, shift = _norm_change(before.get_submodule(norm), after.get_submodule(norm))
        bases |= {reader: Basis(scale, shift, one) for reader in readers}

    def row_factors(name: str) -> Tensor:
        return _row_factors(before.get_submodule(name), after.get_submodule(name), bases[name].scale)

    out, rows, values = row_factors(layout.up), row_factors(layout.value), value_rows(block)
    scaled = torch.ones_like(rows)
    scaled[values] = rows[values]
    bases[layout.up] = replace(bases[layout.up], out=out)
    bases[layout.value] = replace(bases[layout.value], out=scaled)
    read = scaled[values][value_columns(block)]
    return bases | {layout.down: Basis(out, zero, one), layout.dense: Basis(read, zero, one)}


def _norm_change(norm: nn.Module, quantized: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift `[H]` between what two norms give for the same hidden states."""
    assert isinstance(norm, TelechatRMSNorm) and isinstance(quantized, TelechatRMSNorm)
    weight, folded = norm.weight.float(), quantized.weight.float()
    scale = torch.where((folded == 0) | (weight == 0), torch.ones_like(weight), weight / folded)
    biases = [torch.zeros_like(weight) if n.bias is None else n.bias.float() for n in (norm, quantized)]
    return scale, biases[1] - biases[0] / scale


def _row_factors(linear: nn.Module, quantized: nn.Module, scale: Tensor) -> Tensor:
    """What the rows of the quantized weight were divided by, `[out]`, by least squares over their columns."""
    expected, found = dense_weight(linear) * scale, dense_weight(quantized)
    product, square = (expected * found).sum(1), (found * found).sum(1)
    return torch.where((square == 0) | (product == 0), torch.ones_like(square), product / square)


def dense_weight(linear: nn.Module) -> Tensor:
    """float32 `[out, in]` of a linear; of an int8 one its values times their scales."""
    if isinstance(linear, W8A8Linear):
        return linear.stored_tensors()["weight"].float() * (linear.deq_scale / linear.input_scale)[:, None]
    if isinstance(linear, DynamicW8A8Linear):
        return linear.stored_tensors()["weight"].float() * linear.weight_scale[:, None]
    return linear.get_parameter("weight").detach().float()

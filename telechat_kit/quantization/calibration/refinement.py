"""What method `best` does to weights beyond scaling: they are rounded with calibration, biases corrected.

Both look at the inputs as int8 leaves them. Tokens count by their error relative to the residual stream that
the linear adds to. The few tokens whose stream is far larger than the others' (attention sinks, for one the first)
count a thousandfold: every other token attends to them, so the network bears no error there.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from telechat_kit.quantization.blocks import Block
from telechat_kit.quantization.calibration.passes import Observer
from telechat_kit.quantization.int8.observers import fake_quantize, fake_quantize_per_token
from telechat_kit.quantization.int8.packing import quantize_weight, weight_scale
from telechat_kit.quantization.methods.rounding import add_moment, gptq_round

#: A token is massive when the energy of its residual stream is this many times the median one; how much it counts then
MASSIVE_ENERGY, MASSIVE_WEIGHT = 16.0, 1000.0

QuantizeInput = Callable[[Tensor], Tensor]


def input_quantizer(observer: Observer | None) -> QuantizeInput:
    """How an int8 linear's input is quantized: within the range of its `observer`, or, without one, token by token."""
    if observer is None:
        return fake_quantize_per_token
    scale, offset = observer.parameters()
    return lambda x: fake_quantize(x, scale, offset)


def token_weights(energies: Sequence[Tensor], relative: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """How much the tokens of each sample count, `[T]`: in the mean error, and in the second moment.

    Args:
        energies: of the residual stream, `[T]` by sample.
        relative: whether an error counts relative to it, as that of a linear does which adds to the stream.
    """
    limit = MASSIVE_ENERGY * torch.cat(list(energies)).median()
    for energy in energies:
        weight = energy.clamp(min=1e-12).reciprocal() if relative else torch.ones_like(energy)
        yield weight, torch.where(energy > limit, weight * MASSIVE_WEIGHT, weight)


class InputMoments:
    """Weighted second moment `[in, in]` of a quantized input (its upper triangle), and what int8 changes of its mean."""

    def __init__(self, second: bool = True) -> None:
        """`second`: whether the second moment is wanted."""
        self.wanted = second
        self.second: Tensor | None = None
        self.exact = self.quantized = torch.zeros(())
        self.total = 0.0

    def update(self, x: Tensor, x_q: Tensor, weight: Tensor, counted: Tensor) -> None:
        """Take in inputs `[T, in]`, exact and quantized, with their weights `[T]` in the mean and in the moment."""
        self.exact = self.exact + weight @ x
        self.quantized = self.quantized + weight @ x_q
        self.total += float(weight.sum())
        if self.wanted:
            if self.second is None:
                self.second = x.new_zeros(x.shape[-1], x.shape[-1])
            add_moment(self.second, x_q * counted.sqrt()[:, None])


def rounded_together(block: Block, names: Sequence[str], second: Tensor | None) -> dict[str, Tensor]:
    """Int8 weights of linears that read one input: rounded by its second moment, or to the nearest without one."""
    weights = [block.parameter(f"{name}.weight").data for name in names]
    if second is None:
        return {name: quantize_weight(weight)[0] for name, weight in zip(names, weights, strict=True)}
    scales = [weight_scale(weight) for weight in weights]
    together = gptq_round(torch.cat(weights), torch.cat(scales), second)
    return dict(zip(names, together.split([len(weight) for weight in weights]), strict=True))


def bias_error(moments: InputMoments, weight: Tensor, rounded: Tensor) -> Tensor:
    """Mean error `[out]` of the product with `weight [out, in]` when inputs and weight are int8."""
    error = functional.linear(moments.quantized, rounded * weight_scale(weight))
    return (error - functional.linear(moments.exact, weight)) / moments.total

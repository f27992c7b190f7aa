"""How well int8 suits each linear: figures of its input and its product, taken while it is calibrated.

They cost a fraction of the calibration: products are compared on some tokens of each sample only.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from telechat_kit.errors import DataError
from telechat_kit.model.layout import EXITS, LAYOUTS
from telechat_kit.quantization.blocks import Block

#: Tokens of a sample whose products are compared with float ones
TOKENS = 64

#: Linear of a block -> the linear through which its output reaches the residual stream
EXIT_OF = {
    name: exit_
    for layout in LAYOUTS
    for readers, exit_ in zip(layout.shared_inputs, layout.exits, strict=True)
    for name in (*readers, exit_)
}


class LinearFigures:
    """Streaming figures of one linear. Only numbers are kept: some for each sample and for each compared token.

    Attributes:
        absolute_maximum: of the input over all samples.
        signal: energy of the float output, of each compared token.
        noise: energy of what int8 changes in it; empty for a linear in float.
    """

    def __init__(self) -> None:
        self.absolute_maximum = 0.0
        self.signal: list[float] = []
        self.noise: list[float] = []
        self._bounds = (0.0, 0.0)
        self._samples = self._clipped = self._elements = 0

    def take_input(self, x: Tensor) -> None:
        """Take in the float input `x [..., in]` of one sample.

        Raises:
            DataError: it is not finite.
        """
        low, high = (bound.item() for bound in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError("the activations are not finite (NaN or infinity). Check the float checkpoint.")
        self._bounds = low, high
        self.absolute_maximum = max(self.absolute_maximum, high, -low)

    def take_range(self, x: Tensor, scale: Tensor, offset: Tensor) -> None:
        """Count what of `x`, the sample just taken in, lies beyond the int8 grid of `scale [1]`, `offset [1]`."""
        low = (-128.5 - offset.item()) * scale.item()
        high = (127.5 - offset.item()) * scale.item()
        self._elements += x.numel()
        if self._bounds[0] < low or self._bounds[1] > high:
            self._clipped += int(torch.count_nonzero(x < low)) + int(torch.count_nonzero(x > high))

    def take_output(self, exact: Tensor, output: Tensor | None) -> None:
        """Compare outputs `[tokens, out]` of the same input: the float linear's and, unless in float, the int8 one's."""
        self._samples += 1
        self.signal += exact.double().square().sum(-1).tolist()
        if output is not None:
            self.noise += (output.double() - exact.double()).square().sum(-1).tolist()

    def some_tokens(self, x: Tensor) -> Tensor:
        """About `TOKENS` rows of `x [..., T, width]`, others in each sample, so that the first token weighs as any."""
        return some_tokens(x, self._samples)

    @property
    def output_snr_db(self) -> float | None:
        """Signal to noise of the int8 output in dB; None in float, and where there is no signal or no noise."""
        signal, noise = sum(self.signal), sum(self.noise)
        return 10 * math.log10(signal / noise) if signal and noise else None

    @property
    def clipped_share(self) -> float | None:
        """Share of the input's values that the range known at their time cut off; None without a static range."""
        return self._clipped / self._elements if self._elements else None


def some_tokens(x: Tensor, sample: int) -> Tensor:
    """About `TOKENS` evenly spaced rows of `x [..., T, width]`, `[tokens, width]`; the first moves with `sample`."""
    rows = x.reshape(-1, x.shape[-1])
    step = max(1, rows.shape[0] // TOKENS)
    return rows[sample % step :: step]


#: What a linear gives in float
Product = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def watched(
    block: Block, figures: Mapping[str, LinearFigures], exact: Mapping[str, Product]
) -> Iterator[None]:
    """While active, `figures[name]` takes in what the linear `name` reads and gives, beside its `exact` product.

    To be entered before inputs are quantized. A linear without a product in `exact` is one in float.
    """
    hooks = []
    for name, taken in figures.items():
        hooks += _watch(name, block.submodule(name), taken, exact.get(name))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def float_products(block: Block, names: Collection[str]) -> dict[str, Product]:
    """The products of the linears `names` with the weights that they have now."""

    def product(linear: nn.Module) -> Product:
        weights = {name: parameter.data for name, parameter in linear.named_parameters()}
        return lambda x: functional.linear(x, **weights)

    return {name: product(block.submodule(name)) for name in names}


def _watch(
    name: str, linear: nn.Module, taken: LinearFigures, exact: Product | None
) -> list[torch.utils.hooks.RemovableHandle]:
    rows: list[Tensor] = []  # of the float input, from before the product to after it

    def before(_: nn.Module, inputs: tuple[Tensor]) -> None:
        try:
            taken.take_input(inputs[0])
        except DataError as error:
            raise DataError("input of {name}: {error}", name=name, error=error) from error
        if exact is not None:
            rows.append(taken.some_tokens(inputs[0]))

    def after(_: nn.Module, __: tuple[Tensor], output: Tensor) -> None:
        output = taken.some_tokens(output)
        if exact is None:
            taken.take_output(output, None)
        else:
            taken.take_output(exact(rows.pop()), output)

    return [linear.register_forward_pre_hook(before), linear.register_forward_hook(after)]


def residual_noise(
    block: Block, figures: Mapping[str, LinearFigures], after: Sequence[Tensor]
) -> dict[str, float]:
    """Estimated noise energy that each int8 linear adds to the residual stream, relative to it, mean over tokens.

    A linear's noise is taken to reach the stream in the proportion that it has in its own output:
    noise / signal * signal of the exit / stream. Exact for `dense` and `down_proj`, a guess for the others.

    Args:
        after: hidden states after the block, each `[1, T, H]`, in the order of the samples taken in.
    """
    stream = [
        energy
        for sample, x in enumerate(after)
        for energy in some_tokens(x, sample).double().square().sum(-1).tolist()
    ]
    shares = {}
    for name, taken in figures.items():
        if taken.noise:
            exit_signal = figures[block.prefix + EXIT_OF[name.removeprefix(block.prefix)]].signal
            parts = zip(taken.noise, taken.signal, exit_signal, stream, strict=True)
            shares[name] = sum(n / s * e / r for n, s, e, r in parts if s and r) / len(stream)
    return shares


def noisiest_first(noise: Mapping[str, float]) -> list[str]:
    """Linears by residual `noise`, the noisiest first; those that write to the stream before all others.

    The noise of the others is a guess, and too high where theirs spreads over channels that their exit hardly reads.
    """
    return sorted(noise, key=lambda name: (not name.endswith(EXITS), -noise[name]))

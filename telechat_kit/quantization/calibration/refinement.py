"""What method `best` does to a block beyond scaling: weights rounded with calibration, biases corrected.

Both look at the inputs as int8 leaves them. Tokens count by their error relative to the residual stream that
the linear adds to. The few tokens whose stream is far larger than the others' (attention sinks, for one the first)
count a thousandfold: every other token attends to them, so the network bears no error there.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from telechat_kit.model.layout import EXITS, SHARED_INPUTS
from telechat_kit.quantization.blocks import Block
from telechat_kit.quantization.calibration.passes import (
    Observer,
    observed,
    with_weights,
)
from telechat_kit.quantization.int8.observers import fake_quantize, fake_quantize_per_token
from telechat_kit.quantization.int8.packing import fake_quantize_weight, quantize_weight, weight_scale
from telechat_kit.quantization.methods.rounding import add_moment, gptq_round

#: A token is massive when the energy of its residual stream is this many times the median one; how much it counts then
MASSIVE_ENERGY, MASSIVE_WEIGHT = 16.0, 1000.0

#: Linears of a block that read the same input
INPUTS = (*SHARED_INPUTS, *((exit_,) for exit_ in EXITS))

QuantizeInput = Callable[[Tensor], Tensor]

#: Energy of the residual stream of each token of a sample, `[T]`: before the block, after attention, after the block
Energies = tuple[Tensor, Tensor, Tensor]


def input_quantizer(observer: Observer | None) -> QuantizeInput:
    """How an int8 linear's input is quantized: within the range of its `observer`, or, without one, token by token."""
    if observer is None:
        return fake_quantize_per_token
    scale, offset = observer.parameters()
    return lambda x: fake_quantize(x, scale, offset)


@dataclass(frozen=True)
class Refined:
    """Int8 weights `[out, in]` by linear, and corrected biases `[out]` of those that have one."""

    weights: dict[str, Tensor]
    biases: dict[str, Tensor]


class InputMoments:
    """Weighted second moment `[in, in]` of a quantized input (upper triangle), and what quantization changes of its mean."""

    def __init__(self) -> None:
        self.second: Tensor | None = None
        self.exact = self.quantized = torch.zeros(())
        self.total = 0.0

    def update(self, x: Tensor, x_q: Tensor, relative: Tensor, massive: Tensor) -> None:
        """Take in inputs `[T, in]`, exact and quantized, with their weights `[T]`, and which tokens are massive."""
        counted = torch.where(massive, relative * MASSIVE_WEIGHT, relative)
        if self.second is None:
            self.second = x.new_zeros(x.shape[-1], x.shape[-1])
        add_moment(self.second, x_q * counted.sqrt()[:, None])
        self.exact = self.exact + relative @ x
        self.quantized = self.quantized + relative @ x_q
        self.total += float(relative.sum())


@contextmanager
def attention_watched(block: Block) -> Iterator[list[Tensor]]:
    """While active, the list takes in what attention adds to the residual stream, `[1, T, H]`, sample by sample."""
    mixed: list[Tensor] = []
    hook = block.module.self_attention.register_forward_hook(lambda _, __, output: mixed.append(output[0]))
    try:
        yield mixed
    finally:
        hook.remove()


def stream_energies(
    block: Block, states: Sequence[Tensor], mixed: Sequence[Tensor], after: Sequence[Tensor]
) -> list[Energies]:
    """Energies by sample, from the states before and after the block, each `[1, T, H]`, and what attention added."""
    found = []
    for x, attention, y in zip(states, mixed, after, strict=True):
        residual = block.module.input_layernorm(x) if block.module.residual_after_norm else x
        found.append((_energy(x), _energy(residual + attention), _energy(y)))
    return found


def _energy(state: Tensor) -> Tensor:
    return state.square().sum(-1)[0]


def refine(
    block: Block,
    states: Sequence[Tensor],
    energies: Sequence[Energies],
    inputs: Mapping[str, QuantizeInput],
    rounding: bool,
    bias: bool,
) -> Refined:
    """Round the weights of the linears in `inputs` and correct the biases of the exits among them.

    Args:
        states: hidden states before the block, each `[1, T, H]`.
        energies: of the residual stream, by sample.
        inputs: how the input of each int8 linear is quantized.
        rounding: by GPTQ instead of to the nearest.
        bias: less the mean error that int8 brings.
    """
    nearest = {name: fake_quantize_weight(block.parameter(f"{name}.weight").data) for name in inputs}
    moments = _moments(block, states, nearest, inputs, energies)
    weights: dict[str, Tensor] = {}
    biases = {}
    for reader, found in moments.items():
        names = [name for name in inputs if _reader(block, name, inputs) == reader]
        weights |= _rounded(block, names, found.second if rounding else None)
    for name in inputs:
        if bias and name.endswith(EXITS) and block.submodule(name).bias is not None:
            found, weight = moments[name], block.parameter(f"{name}.weight").data
            scale = weight_scale(weight)
            error = functional.linear(found.quantized, weights[name] * scale)
            error = (error - functional.linear(found.exact, weight)) / found.total
            biases[name] = block.parameter(f"{name}.bias").data - error
    return Refined(weights, biases)


def _rounded(block: Block, names: Sequence[str], second: Tensor | None) -> dict[str, Tensor]:
    """Int8 weights of linears that read one input: rounded together by its moment, or to the nearest without one."""
    weights = [block.parameter(f"{name}.weight").data for name in names]
    if second is None:
        return {name: quantize_weight(weight)[0] for name, weight in zip(names, weights, strict=True)}
    scales = [weight_scale(weight) for weight in weights]
    together = gptq_round(torch.cat(weights), torch.cat(scales), second)
    return dict(zip(names, together.split([len(weight) for weight in weights]), strict=True))


def run_refined(
    block: Block, states: Sequence[Tensor], inputs: Mapping[str, QuantizeInput], refined: Refined
) -> list[Tensor]:
    """The states after the block with int8 weights and inputs, and the biases that it has.

    The block's own weights come back afterwards: scales are found from them.
    """
    weights = {
        name: weight * weight_scale(block.parameter(f"{name}.weight").data)
        for name, weight in refined.weights.items()
    }
    with with_weights(block, weights), observed(block, inputs):
        return block.run(states)


def correct_biases(block: Block, refined: Refined) -> None:
    """Give the block its corrected biases."""
    for name, bias in refined.biases.items():
        block.parameter(f"{name}.bias").data = bias


def _reader(block: Block, name: str, inputs: Collection[str]) -> str:
    """The first int8 linear that reads the same input as `name`: it stands for all of them."""
    for group in INPUTS:
        members = [block.prefix + linear for linear in group if block.prefix + linear in inputs]
        if name in members:
            return members[0]
    raise KeyError(name)


def _moments(
    block: Block,
    states: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, QuantizeInput],
    energies: Sequence[Energies],
) -> dict[str, InputMoments]:
    """Moments of the input of each linear that stands for its group, one sample after the other."""
    limits = [MASSIVE_ENERGY * torch.cat(found).median() for found in zip(*energies, strict=True)]
    moments = {name: InputMoments() for name in inputs if _reader(block, name, inputs) == name}
    current: list[Energies] = []

    def taking(name: str, quantize: QuantizeInput) -> QuantizeInput:
        at = _stream_of(name)

        def update(x: Tensor) -> Tensor:
            x_q = quantize(x)
            if name in moments:
                energy = current[0][at]
                relative = (
                    energy.clamp(min=1e-12).reciprocal() if name.endswith(EXITS) else torch.ones_like(energy)
                )
                moments[name].update(x[0], x_q[0], relative, energy > limits[at])
            return x_q

        return update

    with with_weights(block, weights), observed(block, {n: taking(n, q) for n, q in inputs.items()}):
        for state, found in zip(states, energies, strict=True):
            current[:] = [found]
            block.run([state])
    return moments


def _stream_of(name: str) -> int:
    """Which energy a linear's error is relative to: that of the stream which its norm reads, or that it adds to."""
    if name.endswith("mlp.down_proj"):
        return 2
    return 1 if ".mlp." in name or name.endswith(EXITS) else 0

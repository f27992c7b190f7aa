"""Where the loss comes from: every linear and block of the W8A8 model beside the float one.

The float blocks come from their files one at a time, so the float model need not be in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from telechat_kit.inference.model_pair import Pair
from telechat_kit.messages import marked
from telechat_kit.model.int8_linears import DynamicW8A8Linear, W8A8Linear
from telechat_kit.model.network import TelechatBlock, TelechatForCausalLM
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.weight_shards import Shards
from telechat_kit.precision.channel_scales import (
    Converted,
    block_bases,
    float_in_quantized,
    quantized_in_float,
    split_alike,
)
from telechat_kit.precision.positions import Reference, compare_with, reference_of
from telechat_kit.progress import track
from telechat_kit.quantization.blocks import Block, embed, load_block
from telechat_kit.quantization.levels.fallback import input_groups
from telechat_kit.quantization.methods.rotation import open_shards
from telechat_kit.statistics import Estimate, bootstrap, mean_over_sequences
from telechat_kit.token_samples import Block as TextBlock


@dataclass(frozen=True)
class LinearSource:
    """One linear on the inputs that it has in the float model.

    `output_snr` in dB, None for a linear in float; `clipped` is the share of its input values outside the int8
    range `low .. high`, `largest` the farthest value seen, in the quantized model's units. `effect` is the relative
    change of the residual stream after its block if this linear alone is int8 (mean square); `estimated_share` its
    part of the sum of all effects: an estimate that knows nothing of what later blocks make of it.
    """

    name: str
    kind: str  # "W8A8", "W8A8_DYNAMIC" or "FLOAT"
    output_snr: float | None
    clipped: float | None
    low: float | None
    high: float | None
    largest: float
    effect: float
    estimated_share: float = 0.0


@dataclass(frozen=True)
class BlockSource:
    """Divergence of the residual stream after a block: |W8A8 - float| / |float| of a token's vector."""

    block: int
    relative_error: Estimate  # root of the mean square over tokens
    median: float


@dataclass(frozen=True)
class KeptInFloat:
    """The W8A8 model with some linears of one input put back to float, measured."""

    names: list[str]
    estimated_share: float
    kl_mean: Estimate
    kl_change: Estimate  # paired with the W8A8 model as it is


@dataclass(frozen=True)
class Sources:
    """Where the divergence of the W8A8 model comes from, on `sequences` beginnings of the evaluated ones."""

    sequences: int
    tokens: int
    kl_mean: Estimate
    linears: list[LinearSource]
    blocks: list[BlockSource]
    kept: list[KeptInFloat]


def measure_sources(
    pair: Pair, blocks: Sequence[TextBlock], sequences: int = 8, tokens: int = 128, candidates: int = 6
) -> Sources:
    """Look at every linear and block over the first `tokens` of the first `sequences` of `blocks`.

    The `candidates` inputs with the largest estimated share are put back to float one by one, and measured.
    """
    text = [
        TextBlock(b.start, min(b.stop, b.start + tokens), b.ids[:tokens]) for b in list(blocks)[:sequences]
    ]
    with reference_of(pair, text) as reference, pair.model("w8a8") as model:
        walk = _Walk(pair, model, text)
        with torch.inference_mode():
            linears, residual = walk.run()
        base = _kl_rows(reference, model)
        kept = []
        for names in track(_candidates(linears, candidates), marked("kept in float")):
            with walk.kept(names):
                rows = _kl_rows(reference, model)
            share = sum(linear.estimated_share for linear in linears if linear.name in names)
            change = mean_over_sequences(rows - base)
            kept.append(KeptInFloat(names, share, _kl(rows), change))
    return Sources(len(text), sum(len(b.ids) - 1 for b in text), _kl(base), linears, residual, kept)


def _shards(pair: Pair) -> Shards:
    """The float checkpoint, turned as the W8A8 one was."""
    recipe = pair.recipe
    return open_shards(pair.float_folder, recipe.get("ingredients", []), recipe.get("seed", 0))


class _Walk:
    """Both networks block by block on the same tokens."""

    def __init__(self, pair: Pair, model: TelechatForCausalLM, text: Sequence[TextBlock]) -> None:
        self.model, self.device = model, pair.device
        self.shards = _shards(pair)
        self.rotary = Rotary(self.shards.config)
        self.samples = [torch.tensor([block.ids]) for block in text]
        self.dtype = model.get_input_embeddings().weight.dtype

    def load(self, index: int) -> tuple[Block, Block]:
        """Float block from its files, and the W8A8 block of the model."""
        block = load_block(self.shards, index, self.rotary, self.device)
        own = self.model.transformer.h[index]
        assert isinstance(own, TelechatBlock)
        quantized = Block(index, own, self.rotary)
        split_alike(block, quantized)
        return block, quantized

    def run(self) -> tuple[list[LinearSource], list[BlockSource]]:
        """Every linear on the float model's inputs; the residual streams of both networks side by side."""
        states = embed(self.shards, self.samples, self.device)
        own = [state.to(self.dtype) for state in states]
        linears, residual = [], []
        for index in track(range(self.shards.config.n_layer), marked("where the loss comes from")):
            block, quantized = self.load(index)
            found, after = _block_linears(block, quantized, states, self.dtype)
            linears += found
            states, own = after, quantized.run(own)
            squares = [_relative_squares(a, b).cpu().numpy() for a, b in zip(states, own, strict=True)]
            means = np.array([[sample.mean()] for sample in squares])
            error = bootstrap(means, lambda mean: np.sqrt(mean[..., 0])).clip(low=0.0)
            residual.append(BlockSource(index, error, float(np.median(np.sqrt(np.concatenate(squares))))))
        total = sum(linear.effect for linear in linears) or 1.0
        return [replace(linear, estimated_share=linear.effect / total) for linear in linears], residual

    @contextmanager
    def kept(self, names: Sequence[str]) -> Iterator[None]:
        """The model with the linears `names` of one block computing in float."""
        block, quantized = self.load(int(names[0].split(".")[2]))
        bases = block_bases(block, quantized)
        swapped: dict[str, nn.Module] = {
            name: float_in_quantized(block.submodule(name), bases[name.removeprefix(block.prefix)])
            for name in names
        }
        originals = {name: quantized.submodule(name) for name in names}
        try:
            for name, linear in swapped.items():
                self.model.set_submodule(name, linear)
            yield
        finally:
            for name, linear in originals.items():
                self.model.set_submodule(name, linear)


class _Statistics:
    """What one pass of a float block shows of one linear and its quantized form."""

    def __init__(self, converted: Converted) -> None:
        self.converted, self.linear = converted, converted.linear
        self.signal = self.noise = self.largest = 0.0
        self.clipped = self.count = 0

    def update(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x = self.converted.convert(inputs[0]).float()
        self.largest = max(self.largest, float(x.abs().max()))
        self.signal += float(output.double().square().sum())
        self.noise += float((output - self.converted(inputs[0])).double().square().sum())
        if isinstance(self.linear, W8A8Linear):
            rounded = torch.round(x / self.linear.input_scale) + self.linear.input_offset
            self.clipped += int(((rounded < -128) | (rounded > 127)).sum())
            self.count += x.numel()

    def _output_snr(self) -> float | None:
        return 10 * float(np.log10(self.signal / self.noise)) if self.noise else None

    def source(self, name: str, effect: float) -> LinearSource:
        if isinstance(self.linear, DynamicW8A8Linear):
            return LinearSource(
                name, "W8A8_DYNAMIC", self._output_snr(), None, None, None, self.largest, effect
            )
        if not isinstance(self.linear, W8A8Linear):
            return LinearSource(name, "FLOAT", None, None, None, None, self.largest, 0.0)
        scale, offset = float(self.linear.input_scale), float(self.linear.input_offset)
        return LinearSource(
            name=name,
            kind="W8A8",
            output_snr=self._output_snr(),
            clipped=self.clipped / self.count,
            low=(-128 - offset) * scale,
            high=(127 - offset) * scale,
            largest=self.largest,
            effect=effect,
        )


def _block_linears(
    block: Block, quantized: Block, states: Sequence[Tensor], dtype: torch.dtype
) -> tuple[list[LinearSource], list[Tensor]]:
    """The linears of a block on the float model's states, and the states after the float block."""
    bases = block_bases(block, quantized)
    statistics = {
        name: _Statistics(
            quantized_in_float(quantized.submodule(name), bases[name.removeprefix(block.prefix)], dtype)
        )
        for name in block.linear_names
    }
    handles = [
        block.submodule(name).register_forward_hook(found.update) for name, found in statistics.items()
    ]
    after = block.run(states)
    for handle in handles:
        handle.remove()
    return [
        found.source(name, _effect(block, name, found.converted, states, after))
        for name, found in statistics.items()
    ], after


def _effect(
    block: Block, name: str, converted: Converted, states: Sequence[Tensor], after: Sequence[Tensor]
) -> float:
    """Mean over tokens of |change|^2 / |state|^2 after the block, if `name` alone is quantized."""
    if not isinstance(converted.linear, (W8A8Linear, DynamicW8A8Linear)):
        return 0.0
    inner, original = name.removeprefix(block.prefix), block.submodule(name)
    block.module.set_submodule(inner, converted)
    try:
        changed = block.run(states)
    finally:
        block.module.set_submodule(inner, original)
    return float(torch.cat([_relative_squares(a, b) for a, b in zip(after, changed, strict=True)]).mean())


def _relative_squares(reference: Tensor, other: Tensor) -> Tensor:
    """|other - reference|^2 / |reference|^2 of every token, `[T]` float64, from `[1, T, H]`."""
    reference, other = reference[0].double(), other[0].double()
    return (other - reference).square().sum(-1) / reference.square().sum(-1).clamp(min=1e-30)


def _candidates(linears: Sequence[LinearSource], count: int) -> list[list[str]]:
    """Int8 linears in groups that read the same input, those with the largest estimated share first."""
    effects = {linear.name: linear.effect for linear in linears if linear.kind != "FLOAT"}
    groups = input_groups(effects)
    return sorted(groups, key=lambda names: -sum(effects[name] for name in names))[:count]


def _kl_rows(reference: Reference, model: TelechatForCausalLM) -> np.ndarray:
    """Mean KL of each sequence, `[sequences, 1]`."""
    return np.array([[figures.row("kl").mean()] for figures in compare_with(reference, model)])


def _kl(rows: np.ndarray) -> Estimate:
    return mean_over_sequences(rows).clip(low=0.0)

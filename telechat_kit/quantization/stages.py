"""A block of method best, quantized input by input while all samples wait there.

Each input of the block's linears is met once, as the int8 linears before it leave it: its channels are scaled, its
range is found, the weights that read it are rounded on it, and multiplied. One pass through the block does what would
take a pass for each of these. A scale that goes into the rows of the linear before comes after that linear is rounded:
a row's int8 values do not depend on the size of the row, only on its sign.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from telechat_kit.backends import backend_for
from telechat_kit.errors import DataError
from telechat_kit.model.int8_linears import int8_linear_of
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.blocks import Block
from telechat_kit.quantization.calibration.channels import ChannelMaxima
from telechat_kit.quantization.calibration.groups import (
    BEST,
    all_groups,
    by_channel,
    reader_scales,
    value_rows,
)
from telechat_kit.quantization.calibration.linear_quality import LinearFigures, float_products, watched
from telechat_kit.quantization.calibration.passes import (
    SENSITIVITY_SAMPLES,
    Observer,
    fold,
    group_scale,
    observed,
)
from telechat_kit.quantization.calibration.refinement import (
    InputMoments,
    bias_error,
    input_quantizer,
    rounded_together,
    token_weights,
)
from telechat_kit.quantization.calibration.sensitivity import SensitivityScore
from telechat_kit.quantization.formats.w8a8_folder import as_stored
from telechat_kit.quantization.int8.observers import make_observer
from telechat_kit.quantization.int8.packing import pack
from telechat_kit.quantization.methods.evening import scale_for_range, scale_for_tokens
from telechat_kit.quantization.methods.rotation import turn_products
from telechat_kit.quantization.methods.smoothing import GroupStatistics
from telechat_kit.quantization.methods.splitting import split_channels
from telechat_kit.quantization.recipe import BIAS, ONLINE_ROTATION, ROUNDING, SIGNS, AppliedRecipe


@dataclass
class Stages:
    """What becomes of one block, filled in by `run`. The block's own weights are scaled and split, and stay float.

    Attributes:
        samples: so many of the states are of the calibration set. The others, of random tokens, count for ranges only.
        scales: of the channels of each group, by its feeder.
        scores: sensitivity of each linear's input.
        rounded: int8 weights `[out, in]`.
        observers: of the inputs, where ranges are static.
        split: which feed-forward channel each one is, if some were split.
    """

    block: Block
    recipe: AppliedRecipe
    shards: Shards
    samples: int
    scales: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    rounded: dict[str, Tensor] = field(default_factory=dict)
    observers: dict[str, Observer] = field(default_factory=dict)
    figures: dict[str, LinearFigures] = field(default_factory=dict)
    split: Tensor | None = None

    def __post_init__(self) -> None:
        self.channels = ChannelMaxima(self.block.linear_names)

    @torch.inference_mode()
    def run(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Quantize the block; the hidden states `[1, T, H]` after it, as its int8 linears leave them."""
        block, layout = self.block, self.block.layout
        attention, mlp, rotary = block.module.self_attention, block.module.mlp, block.rotary
        halves: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
            (layout.value, lambda x: attention(x, rotary.rows(0, x.shape[1], x), None, None)[0]),
            (layout.up, mlp),
        )
        for norm, readers, exit_, (feeder, through) in zip(
            layout.norms, layout.shared_inputs, layout.exits, halves, strict=True
        ):
            names = [block.prefix + reader for reader in readers]
            inputs, last = self._normed(block.prefix + norm, states), block.prefix + exit_
            residual = inputs if block.module.residual_after_norm else states
            self._quantize(names, inputs, [_energy(x) for x in states[: self.samples]])
            with block.having({last: nn.Identity()}):  # what it reads is wanted
                inner = self._multiplied(names, inputs, through)
            energies = self._energies_after(last, residual, inner)
            self._rescale(block.prefix + feeder, inner, energies)
            self._quantize([last], inner, energies)
            added = self._multiplied([last], inner, partial(self._through, last))
            states = [x.add_(y) for x, y in zip(added, residual, strict=True)]
        return list(states)

    def _through(self, name: str, x: Tensor) -> Tensor:
        """What stands in the place of the linear `name` now makes of `x`."""
        y: Tensor = self.block.submodule(name)(x)
        return y

    def _normed(self, norm: str, states: Sequence[Tensor]) -> list[Tensor]:
        """What `norm` makes of the states, its channels scaled."""
        module, weight = self.block.submodule(norm), self.block.parameter(f"{norm}.weight")
        self._scale(norm, [module(x) for x in states])
        weight.data = as_stored(f"{norm}.weight", weight.data, self.shards).float()
        return [module(x) for x in states]

    def _scale(self, feeder: str, inputs: Sequence[Tensor]) -> None:
        """Find the scale of what `feeder` gives, `inputs [1, T, in]` of the linears behind it, and fold it."""
        statistics = GroupStatistics()
        try:
            statistics.update(by_channel(self.block, feeder, _bounds(inputs)))
        except DataError as error:
            raise DataError(
                "input of {all_groups}: {error}", all_groups=all_groups(self.block)[feeder][0], error=error
            ) from error
        signs = SIGNS in self.recipe.ingredients
        scale = group_scale(self.block, feeder, statistics, BEST, signs, self.recipe.spread)
        self.scales[feeder] = scale
        fold(self.block, {feeder: scale})

    def _rescale(self, feeder: str, inputs: list[Tensor], energies: Sequence[Tensor]) -> None:
        """Scale the channels that the linear `feeder` gives, and split or turn them, in the block and in `inputs`."""
        block, up = self.block, self.block.prefix + self.block.layout.up
        if feeder == up and ONLINE_ROTATION in self.recipe.ingredients:
            self._turn(up, inputs, energies)
            return
        if not feeder.endswith(self.recipe.unscaled or ("-",)):
            self._scale(feeder, inputs)
            scale = self.scales[feeder]
            rows = torch.arange(len(scale), device=scale.device) if feeder == up else value_rows(block)
            self.rounded[feeder][rows] *= scale.sign()[:, None].to(torch.int8)
            columns = reader_scales(block, {feeder: scale})[all_groups(block)[feeder][0]]
            for x in inputs:
                x.div_(columns)
        if feeder == up and self.recipe.split_channels:
            channels = self.split = split_channels(block, self.recipe.split_channels)
            for name in (up, block.prefix + block.layout.gate):
                self.rounded[name] = self.rounded[name][channels]
            inputs[:] = [x.index_select(2, channels) for x in inputs]

    def _turn(self, up: str, inputs: list[Tensor], energies: Sequence[Tensor]) -> None:
        """Even the channels that `up` gives out, and turn them (R4)."""
        block, down = self.block, self.block.prefix + self.block.layout.down
        weight = block.parameter(f"{down}.weight").data
        if self.recipe.activations == "static":
            scale = scale_for_range(inputs, weight)
        else:
            counts = [count for _, count in token_weights(energies, relative=True)]
            scale = scale_for_tokens(inputs[: self.samples], counts, weight)
        self.channels.before[down] = _bounds(inputs[: self.samples]).abs().amax(0)
        self.scales[up] = scale
        fold(block, {up: scale})
        rotation = turn_products(block)
        inputs[:] = [backend_for(x.device.type).turn(x.div_(scale), rotation) for x in inputs]

    def _energies_after(
        self, exit_: str, residual: Sequence[Tensor], inner: Sequence[Tensor]
    ) -> list[Tensor]:
        """Energy `[T]` of the residual stream behind the linear `exit_` in float, sample by sample."""
        if not (self.recipe.refined or ONLINE_ROTATION in self.recipe.ingredients):
            return []
        weights = dict(self.block.submodule(exit_).named_parameters())
        pairs = zip(residual[: self.samples], inner[: self.samples], strict=True)
        return [_energy(functional.linear(x, **weights).add_(before)) for before, x in pairs]

    def _quantize(self, names: Sequence[str], inputs: Sequence[Tensor], energies: Sequence[Tensor]) -> None:
        """Range of an input and int8 weights of the linears `names` that read it.

        `energies` are those of the residual stream that their errors are relative to, `[T]` by sample.
        """
        samples, probes = inputs[: self.samples], inputs[self.samples :]
        score = SensitivityScore()
        for x in samples[:SENSITIVITY_SAMPLES]:
            score.update(x)
        bounds = _bounds(samples)
        for name in names:
            self.channels.updates()[name](bounds)
            self.scores[name], self.figures[name] = score.value(), LinearFigures()
        observer = None
        if self.recipe.activations == "static":
            observer = make_observer(self.recipe.act_method, score.value(), widest=True)
            for x in (*probes, *samples):
                observer.update(x)
            self.observers |= dict.fromkeys(names, observer)
        self._round(names, samples, energies, observer)

    def _round(
        self,
        names: Sequence[str],
        samples: Sequence[Tensor],
        energies: Sequence[Tensor],
        observer: Observer | None,
    ) -> None:
        used, exit_ = self.recipe.ingredients, names[0] if len(names) == 1 else None
        biased = BIAS in used and exit_ is not None and self.block.submodule(exit_).bias is not None
        moments = InputMoments(second=ROUNDING in used)
        if ROUNDING in used or biased:
            quantize = input_quantizer(observer)
            for x, taken in zip(samples, token_weights(energies, relative=exit_ is not None), strict=True):
                moments.update(x[0], quantize(x)[0], *taken)
        self.rounded |= rounded_together(self.block, names, moments.second)
        if biased and exit_ is not None:
            bias = self.block.parameter(f"{exit_}.bias")
            weight = self.block.parameter(f"{exit_}.weight").data
            bias.data = bias.data - bias_error(moments, weight, self.rounded[exit_])

    def _multiplied(
        self, names: Sequence[str], inputs: Sequence[Tensor], through: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """What `through` makes of the inputs with the linears `names` in int8; their figures are taken."""
        block, observer = self.block, self.observers.get(names[0])
        input_range = observer.parameters() if observer else None
        packed = {name: pack(block.submodule(name), input_range, self.rounded[name]) for name in names}
        exact, figures = float_products(block, names), {name: self.figures[name] for name in names}
        cut: dict[str, Callable[[Tensor], None]] = {}
        if input_range is not None:
            scale, offset = input_range
            cut = {name: partial(of.take_range, scale=scale, offset=offset) for name, of in figures.items()}
        with block.having({name: int8_linear_of(tensors) for name, tensors in packed.items()}):
            with watched(block, figures, exact), observed(block, cut):
                after = [through(x) for x in inputs[: self.samples]]
            return after + [through(x) for x in inputs[self.samples :]]


def _bounds(inputs: Sequence[Tensor]) -> Tensor:
    """Smallest and largest value of every channel of `inputs`, each `[1, T, in]`: `[2, in]`."""
    low = torch.stack([x.amin(dim=(0, 1)) for x in inputs]).amin(dim=0)
    return torch.stack([low, torch.stack([x.amax(dim=(0, 1)) for x in inputs]).amax(dim=0)])


def _energy(state: Tensor) -> Tensor:
    return state.square().sum(-1)[0]

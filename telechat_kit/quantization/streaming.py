"""Passes over the blocks of a checkpoint, one block in memory at a time: analyze all, then quantize all.

The second pass needs what the first one finds of the whole network: which linears are the most sensitive. Level
`auto` adds four: a quantization at L0, two in which `measured_levels` measures on it, and a last measurement.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from telechat_kit.model.folder import DYNAMIC, FLOAT
from telechat_kit.model.int8_linears import decode_scale
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.blocks import Block, stream
from telechat_kit.quantization.calibration.channels import ChannelMaxima
from telechat_kit.quantization.calibration.groups import BEST, norm_groups
from telechat_kit.quantization.calibration.linear_quality import LinearFigures, noisiest_first, residual_noise
from telechat_kit.quantization.calibration.passes import (
    FIRST_SAMPLE_ONLY,
    SENSITIVITY_SAMPLES,
    Observer,
    calibrate,
    calibrate_dynamic,
    fold,
    observed,
    sensitivity,
    smoothing_scales,
)
from telechat_kit.quantization.calibration.refinement import (
    Energies,
    QuantizeInput,
    Refined,
    attention_watched,
    correct_biases,
    input_quantizer,
    refine,
    run_refined,
    stream_energies,
)
from telechat_kit.quantization.calibration.samples import random_samples
from telechat_kit.quantization.formats.w8a8_folder import as_stored, block_tensors
from telechat_kit.quantization.int8.observers import make_observer
from telechat_kit.quantization.int8.packing import pack_dynamic_linear, pack_linear
from telechat_kit.quantization.levels.fallback import AUTO, FloatLinear, choose_float_linears
from telechat_kit.quantization.levels.hidden_states import VariantPass
from telechat_kit.quantization.levels.measured_levels import MeasuredLevel, choose_measured
from telechat_kit.quantization.methods.splitting import split_channels
from telechat_kit.quantization.partial import Pass
from telechat_kit.quantization.recipe import BIAS, ROUNDING, SIGNS, AppliedRecipe, LinearRecord


@dataclass(frozen=True)
class Quantized:
    """The quantized blocks, as files of a pass, and what became of each linear."""

    blocks: Pass
    linears: list[LinearRecord]
    float_linears: list[FloatLinear]
    measured: MeasuredLevel | None


def quantize_blocks(
    shards: Shards, samples: Sequence[Tensor], recipe: AppliedRecipe, folder: Path, device: torch.device
) -> Quantized:
    """Quantize every block on `samples` (ids `[1, T]`), each written to the work `folder` when it is finished.

    What is finished in `folder` already is kept. Memory holds one block in float32 and the hidden states.
    """
    count, analysis = shards.config.n_layer, Pass(folder, "analysis")
    # level auto measures in four more passes, a choice by noise needs a quantization at L0
    passes = 6 if recipe.level == AUTO else 3 if recipe.by_noise else 2
    probes = (
        random_samples(samples, recipe.random_vocabulary, recipe.seed) if recipe.random_vocabulary else []
    )
    looked_at = SENSITIVITY_SAMPLES if recipe.anti_outlier in FIRST_SAMPLE_ONLY else len(samples)
    analyzer = _Analyzer(shards, recipe, analysis, device)
    stream(analyzer, [*samples[:looked_at], *probes], f"1 of {passes}, analysis of blocks")
    scores = {name: score for index in range(count) for name, score in analysis.details(index).items()}

    tried = recipe.unrefined if recipe.by_noise else recipe  # noise needs no refined weights
    at_l0 = _Quantizer(shards, tried, analysis, frozenset(), Pass(folder, "trial"), device, len(samples))
    noise = {}
    if passes > 2:
        stream(at_l0, [*samples, *probes], f"2 of {passes}, quantization at L0")
        noise = {row.name: row.residual_noise or 0.0 for row in _linear_records(at_l0.results, count)}
    float_linears, measured = _choose(at_l0, samples, recipe, scores, noise)

    kept = frozenset(linear.name for linear in float_linears)
    blocks = Pass(folder, "trial" if passes > 2 and not kept else "block")  # at L0 the trial is the result
    quantizer = replace(at_l0, recipe=recipe, float_linears=kept, results=blocks)
    number = passes - 1 if measured else passes
    stream(quantizer, [*samples, *probes], f"{number} of {passes}, quantization of blocks")
    if measured:
        check = _variant_pass(quantizer, "check", measured.samples)
        kl = check.measure(samples[: measured.samples], "6 of 6, check of blocks")
        measured = replace(measured, kl_written=kl[()])

    linears = [
        replace(row, residual_noise=noise[row.name]) if noise and row.name in kept else row
        for row in _linear_records(blocks, count)
    ]
    return Quantized(blocks, linears, float_linears, measured)


def _choose(
    at_l0: "_Quantizer",
    samples: Sequence[Tensor],
    recipe: AppliedRecipe,
    scores: Mapping[str, float],
    noise: Mapping[str, float],
) -> tuple[list[FloatLinear], MeasuredLevel | None]:
    """The linears to keep in float, and what was measured to find them, of level auto.

    `noise` is that of the trial at L0, empty without one.
    """
    if recipe.level == AUTO:
        few = samples[: recipe.budget_samples]
        candidates = _variant_pass(at_l0, "candidates", len(few))
        return choose_measured(candidates, few, noise, scores, recipe.budget, recipe.group_fallback)
    order = noisiest_first(noise) if recipe.by_noise else None
    return choose_float_linears(scores, recipe.level, recipe.group_fallback, order), None


def _linear_records(blocks: Pass, count: int) -> list[LinearRecord]:
    return [LinearRecord(**row) for index in range(count) for row in blocks.details(index)["linears"]]


def _variant_pass(quantizer: "_Quantizer", name: str, samples: int) -> VariantPass:
    """A pass through the blocks that `quantizer` wrote, all their int8 linears in int8."""
    shards, device, packed = quantizer.shards, quantizer.device, quantizer.results
    return VariantPass(shards, Pass(packed.folder, name), device, packed, quantizer.prepare, [()], samples)


@dataclass(frozen=True)
class _Analyzer:
    """First pass: smoothing scales and sensitivity scores of a block, from the states of the float network."""

    shards: Shards
    recipe: AppliedRecipe
    results: Pass
    device: torch.device

    def step(self, block: Block, states: Sequence[Tensor]) -> list[Tensor]:
        """Write what is found of `block`; the states after it."""
        signs = SIGNS in self.recipe.ingredients
        scales, after = smoothing_scales(
            block, states, self.recipe.anti_outlier, signs, self.recipe.activations
        )
        scales = {name: scale for name, scale in scales.items() if not name.endswith(self.recipe.unscaled)}
        fold(block, scales)
        self.results.write(block.index, scales, sensitivity(block, states), after)
        return after


@dataclass(frozen=True)
class _Quantizer:
    """Second pass: the tensors of a block as on disk, from the states of the quantized network.

    The first `samples` states are of the calibration set. The others, of random tokens, count for ranges only.
    """

    shards: Shards
    recipe: AppliedRecipe
    analysis: Pass
    float_linears: Collection[str]
    results: Pass
    device: torch.device
    samples: int

    def step(self, block: Block, states: Sequence[Tensor]) -> list[Tensor]:
        """Write the quantized `block`; the states after it, with the int8 error of all blocks so far."""
        scores = self.analysis.details(block.index)
        split = self.prepare(block, self.float_linears)
        int8 = {name: score for name, score in scores.items() if name not in self.float_linears}
        figures = {name: LinearFigures() for name in scores}
        channels = ChannelMaxima(block.linear_names)
        refined, (samples, probes) = None, (states[: self.samples], states[self.samples :])
        observers = self._observers(int8)
        probed = calibrate(block, probes, observers, {name: LinearFigures() for name in scores})
        with observed(block, channels.updates()), attention_watched(block) as mixed:
            if self.recipe.kind == DYNAMIC:
                after = calibrate_dynamic(block, samples, int8, figures)
            else:
                after = calibrate(block, samples, observers, figures)
        if self.recipe.refined:
            energies = stream_energies(block, samples, mixed, after)
            refined, inputs = self._refine(block, samples, energies, int8, observers)
            after, probed = (run_refined(block, part, inputs, refined) for part in (samples, probes))
        noise = residual_noise(block, figures, after)
        packed = {name: self._pack(block, name, observers.get(name), refined) for name in int8}
        tensors, kinds = block_tensors(block, packed, self.shards, self.recipe.kind)
        found = channels.facts(block, self.analysis.tensors(block.index), split)
        linears = [
            asdict(self._linear_record(name, score, observers.get(name), figures[name]))
            | found[name]
            | {"residual_noise": noise.get(name)}
            for name, score in scores.items()
        ]
        after += probed
        self.results.write(block.index, tensors, {"kinds": kinds, "linears": linears}, after)
        return after

    def _observers(self, scores: Mapping[str, float]) -> dict[str, Observer]:
        """Observers of the inputs of the linears in `scores`; none where activations are dynamic."""
        if self.recipe.kind == DYNAMIC:
            return {}
        widest = self.recipe.anti_outlier == BEST
        return {name: make_observer(self.recipe.act_method, score, widest) for name, score in scores.items()}

    def _refine(
        self,
        block: Block,
        states: Sequence[Tensor],
        energies: Sequence[Energies],
        names: Iterable[str],
        observers: Mapping[str, Observer],
    ) -> tuple[Refined, dict[str, QuantizeInput]]:
        """What method best makes of the linears `names`, and how their inputs are quantized."""
        inputs = {name: input_quantizer(observers.get(name)) for name in names}
        used = self.recipe.ingredients
        refined = refine(
            block,
            states,
            energies,
            inputs,
            rounding=ROUNDING in used,
            bias=BIAS in used,
        )
        correct_biases(block, refined)
        return refined, inputs

    def prepare(self, block: Block, float_linears: Collection[str]) -> Tensor | None:
        """Fold the scales into `block`. Its norms and `float_linears` become what will be stored of them.

        Where channels are split: which channel each one is.
        """
        scales = self.analysis.tensors(block.index)
        fold(block, {name: scale.to(self.device) for name, scale in scales.items()})
        split = split_channels(block, self.recipe.split_channels) if self.recipe.split_channels else None
        for name in [*norm_groups(block), *float_linears]:
            if name.startswith(block.prefix):
                weight = block.parameter(f"{name}.weight")
                weight.data = as_stored(f"{name}.weight", weight.data, self.shards).float()
        return split

    def _pack(
        self, block: Block, name: str, observer: Observer | None, refined: Refined | None
    ) -> dict[str, Tensor]:
        """Tensors of an int8 linear; without an observer its activations are dynamic."""
        parts = dict(block.submodule(name).named_parameters())
        bias = parts["bias"].data if "bias" in parts else None
        rounded = refined.weights[name] if refined else None
        if observer is None:
            return pack_dynamic_linear(parts["weight"].data, bias, rounded)
        packed = pack_linear(parts["weight"].data, bias, *observer.parameters(), rounded)
        if self.shards.dtype == torch.bfloat16:  # loaders of bfloat16 models expect float32, not bit patterns
            packed["deq_scale"] = decode_scale(packed["deq_scale"])
        return packed

    def _linear_record(
        self, name: str, score: float, observer: Observer | None, figures: LinearFigures
    ) -> LinearRecord:
        low = high = scale = offset = None
        if observer is not None:
            low, high = (bound.item() for bound in observer.range())
            scale, offset = (parameter.item() for parameter in observer.parameters())
        return LinearRecord(
            name=name,
            kind=FLOAT if name in self.float_linears else self.recipe.kind,
            score=score,
            low=low,
            high=high,
            input_scale=scale,
            input_offset=None if offset is None else int(offset),
            clipped_share=figures.clipped_share,
            output_snr_db=figures.output_snr_db,
        )

"""Passes over the blocks of a checkpoint, one block in memory at a time: analyze all, then quantize all.

The second pass needs what the first one finds of the whole network: which linears are the most sensitive. Level
`auto` adds four: a quantization at L0, two in which `measured_levels` measures on it, and a last measurement.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from telechat_kit.errors import ParameterError
from telechat_kit.model.folder import DYNAMIC, FLOAT, STATIC
from telechat_kit.model.int8 import decode_scale
from telechat_kit.model.shards import Shards
from telechat_kit.quantization.blocks import Block, stream
from telechat_kit.quantization.calibration import (
    BEST,
    FIRST_SAMPLE_ONLY,
    KEY_VALUE,
    SENSITIVITY_SAMPLES,
    UP,
    Observer,
    calibrate,
    calibrate_dynamic,
    fold,
    norm_groups,
    observed,
    sensitivity,
    smoothing_scales,
)
from telechat_kit.quantization.channels import ChannelMaxima
from telechat_kit.quantization.fallback import AUTO, FloatLinear, choose_float_linears
from telechat_kit.quantization.figures import LinearFigures, residual_noise
from telechat_kit.quantization.flow import Flow
from telechat_kit.quantization.formats import as_stored, block_tensors
from telechat_kit.quantization.measured_levels import MeasuredLevel, choose_measured
from telechat_kit.quantization.packing import pack_dynamic_linear, pack_linear
from telechat_kit.quantization.partial import Pass
from telechat_kit.quantization.refinement import Refined, correct_biases, input_quantizer, refine, run_refined
from telechat_kit.quantization.splitting import split_channels

#: What method best can be made of beside scaled norms; all by default
UP_PROJ, VALUES, SPLITTING, ROUNDING, BIAS = INGREDIENTS = (
    "up_proj",
    "values",
    "splitting",
    "rounding",
    "bias",
)


def parse_ingredients(text: str) -> list[str]:
    """The ingredients of method best that a parameter names: "all", "none", or some separated by commas."""
    if text in ("all", "none"):
        return list(INGREDIENTS) if text == "all" else []
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in INGREDIENTS]:
        known = ", ".join(INGREDIENTS)
        raise ParameterError(f'ingredient "{unknown[0]}" is unknown. Use all, none, or some of {known}.')
    return [name for name in INGREDIENTS if name in names]


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint was quantized. Equal recipes on equal weights give equal files.

    `calibration_blocks` are the ranges of the text's joined tokens that calibration has seen.
    """

    level: str
    anti_outlier: str
    act_method: int
    group_fallback: bool
    calibration_source: str
    calibration_sha256: str
    calibration_blocks: list[tuple[int, int]]
    seed: int
    source_weights: str
    source_tokenizer: str
    activations: str = "static"
    ingredients: list[str] = field(default_factory=list)  # of method best
    split_channels: int = 0  # feed-forward channels added by splitting
    budget: str = ""  # of level auto
    budget_samples: int = 0  # calibration samples that level auto measures on
    calibration_format: str = "blocks"  # "blocks", "lines", "chat"
    calibration_lines: list[int] = field(default_factory=list)  # number in the file of each sample's line
    calibration_cut: list[tuple[int, int]] = field(default_factory=list)  # line cut, its tokens before
    calibration_sample_tokens: list[int] = field(default_factory=list)
    calibration_samples_sha256: str = ""  # of the token ids

    @property
    def kind(self) -> str:
        """What descriptions call the int8 linears."""
        return DYNAMIC if self.activations == "dynamic" else STATIC

    @property
    def unscaled(self) -> tuple[str, ...]:
        """Feeders that method best leaves alone, for want of an ingredient."""
        if self.anti_outlier != BEST:
            return ()
        feeders = {UP_PROJ: UP, VALUES: KEY_VALUE}
        return tuple(feeder for name, feeder in feeders.items() if name not in self.ingredients)

    @property
    def refined(self) -> bool:
        """Whether blocks are refined after calibration."""
        return not {ROUNDING, BIAS}.isdisjoint(self.ingredients)


@dataclass(frozen=True)
class LinearRecord:
    """One block linear after calibration; None is what was not measured.

    The `input_` figures are of its input as the linear reads it, `raw_` ones of the same without outlier
    suppression. A channel counts by its largest absolute value over the calibration samples.
    """

    name: str
    kind: str  # "W8A8", "W8A8_DYNAMIC" or "FLOAT"
    score: float | None
    low: float | None  # of the static range, as are the next three
    high: float | None
    input_scale: float | None
    input_offset: int | None
    input_absmax: float | None = None  # of the largest channel
    input_median: float | None = None  # median over the channels
    raw_absmax: float | None = None
    raw_median: float | None = None
    dead_inputs: int = 0  # channels of the input that were 0 on every sample
    dead_outputs: int = 0  # rows of the weight that are 0
    output_snr_db: float | None = None  # energy of the float output over that of its int8 error, dB
    clipped_share: float | None = None  # of the input's values, by the range known when they came
    residual_noise: float | None = None  # energy of that error over that of the residual stream, estimated


@dataclass(frozen=True)
class Quantized:
    """The quantized blocks, as files of a pass, and what became of each linear."""

    blocks: Pass
    linears: list[LinearRecord]
    float_linears: list[FloatLinear]
    measured: MeasuredLevel | None


def quantize_blocks(
    shards: Shards, samples: Sequence[Tensor], recipe: Recipe, folder: Path, device: torch.device
) -> Quantized:
    """Quantize every block on `samples` (ids `[1, T]`), each written to the work `folder` when it is finished.

    What is finished in `folder` already is kept. Memory holds one block in float32 and the hidden states.
    """
    count, analysis = shards.config.n_layer, Pass(folder, "analysis")
    passes = 6 if recipe.level == AUTO else 2
    looked_at = SENSITIVITY_SAMPLES if recipe.anti_outlier in FIRST_SAMPLE_ONLY else len(samples)
    analyzer = _Analyzer(shards, recipe, analysis, device)
    stream(analyzer, samples[:looked_at], f"1 of {passes}, analysis of blocks")
    scores = {name: score for index in range(count) for name, score in analysis.details(index).items()}
    at_l0 = _Quantizer(shards, recipe, analysis, frozenset(), Pass(folder, "trial"), device)
    if recipe.level == AUTO:
        float_linears, measured = _measure(at_l0, samples, recipe, scores)
    else:
        float_linears, measured = choose_float_linears(scores, recipe.level, recipe.group_fallback), None
    kept = frozenset(linear.name for linear in float_linears)
    blocks = Pass(folder, "trial" if measured and not kept else "block")  # at L0 the trial is the result
    quantizer = replace(at_l0, float_linears=kept, results=blocks)
    stream(quantizer, samples, f"{passes - 1 if measured else 2} of {passes}, quantization of blocks")
    if measured:
        measured = replace(measured, kl_written=_written_kl(quantizer, samples[: measured.samples]))
    return Quantized(blocks, _linear_records(blocks, count), float_linears, measured)


def _linear_records(blocks: Pass, count: int) -> list[LinearRecord]:
    return [LinearRecord(**row) for index in range(count) for row in blocks.details(index)["linears"]]


def _measure(
    quantizer: "_Quantizer", samples: Sequence[Tensor], recipe: Recipe, scores: Mapping[str, float]
) -> tuple[list[FloatLinear], MeasuredLevel]:
    """Level auto: quantize at L0, then measure what candidates for float bring."""
    stream(quantizer, samples, "2 of 6, quantization at L0")
    linears = _linear_records(quantizer.results, quantizer.shards.config.n_layer)
    noise = {linear.name: linear.residual_noise or 0.0 for linear in linears}
    few = samples[: recipe.budget_samples]
    flow = _flow(quantizer, "candidates", len(few))
    return choose_measured(flow, few, noise, scores, recipe.budget, recipe.group_fallback)


def _written_kl(quantizer: "_Quantizer", samples: Sequence[Tensor]) -> float:
    """KL of the quantized blocks as written."""
    return _flow(quantizer, "check", len(samples)).measure(samples, "6 of 6, check of blocks")[()]


def _flow(quantizer: "_Quantizer", name: str, samples: int) -> Flow:
    shards, device, packed = quantizer.shards, quantizer.device, quantizer.results
    return Flow(shards, Pass(packed.folder, name), device, packed, quantizer.prepare, [()], samples)


@dataclass(frozen=True)
class _Analyzer:
    """First pass: smoothing scales and sensitivity scores of a block, from the states of the float network."""

    shards: Shards
    recipe: Recipe
    results: Pass
    device: torch.device

    def step(self, block: Block, states: Sequence[Tensor]) -> list[Tensor]:
        """Write what is found of `block`; the states after it."""
        scales, after = smoothing_scales(block, states, self.recipe.anti_outlier)
        scales = {name: scale for name, scale in scales.items() if not name.endswith(self.recipe.unscaled)}
        fold(block, scales)
        self.results.write(block.index, scales, sensitivity(block, states), after)
        return after


@dataclass(frozen=True)
class _Quantizer:
    """Second pass: the tensors of a block as on disk, from the states of the quantized network."""

    shards: Shards
    recipe: Recipe
    analysis: Pass
    float_linears: Collection[str]
    results: Pass
    device: torch.device

    def step(self, block: Block, states: Sequence[Tensor]) -> list[Tensor]:
        """Write the quantized `block`; the states after it, with the int8 error of all blocks so far."""
        scores = self.analysis.details(block.index)
        split = self.prepare(block, self.float_linears)
        int8 = {name: score for name, score in scores.items() if name not in self.float_linears}
        figures = {name: LinearFigures() for name in scores}
        channels = ChannelMaxima(block.linear_names)
        refined = None
        with observed(block, channels.updates()):
            observers, after = self._calibrate(block, states, int8, figures)
            if self.recipe.refined:
                refined, after = self._refine(block, states, int8, observers)
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
        self.results.write(block.index, tensors, {"kinds": kinds, "linears": linears}, after)
        return after

    def _calibrate(
        self,
        block: Block,
        states: Sequence[Tensor],
        scores: Mapping[str, float],
        figures: Mapping[str, LinearFigures],
    ) -> tuple[dict[str, Observer], list[Tensor]]:
        """Observers of the linears in `scores`, none where activations are dynamic, and the states after the block."""
        if self.recipe.kind == DYNAMIC:
            return {}, calibrate_dynamic(block, states, scores, figures)
        widest = self.recipe.anti_outlier == BEST
        return calibrate(block, states, scores, self.recipe.act_method, figures, widest)

    def _refine(
        self, block: Block, states: Sequence[Tensor], names: Iterable[str], observers: Mapping[str, Observer]
    ) -> tuple[Refined, list[Tensor]]:
        """What method best makes of the linears `names`, and the states after the block with it."""
        inputs = {name: input_quantizer(observers.get(name)) for name in names}
        used = self.recipe.ingredients
        refined = refine(block, states, inputs, rounding=ROUNDING in used, bias=BIAS in used)
        correct_biases(block, refined)
        return refined, run_refined(block, states, inputs, refined)

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

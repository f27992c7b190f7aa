"""Passes over the blocks of a checkpoint, one block in memory at a time.

Methods of the reference analyze all blocks, then quantize all: the second pass needs what the first one finds of the
whole network, which linears are the most sensitive. Method best quantizes all in one pass (`stages`), and gives those
linears back to float that int8 made the most noise in. Level `auto` adds passes: two in which `measured_levels`
measures on a quantization at L0, for methods of the reference that quantization too, and a last measurement.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from telechat_kit.messages import Message, marked
from telechat_kit.model.folder import DYNAMIC, FLOAT
from telechat_kit.model.int8_linears import decode_scale
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.w8a8 import stored_name
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.blocks import Block, load_block, stream
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
from telechat_kit.quantization.calibration.samples import random_samples
from telechat_kit.quantization.formats.w8a8_folder import as_stored, block_tensors
from telechat_kit.quantization.int8.observers import make_observer
from telechat_kit.quantization.int8.packing import pack
from telechat_kit.quantization.levels.fallback import AUTO, FloatLinear, choose_float_linears
from telechat_kit.quantization.levels.hidden_states import VariantPass
from telechat_kit.quantization.levels.measured_levels import MeasuredLevel, choose_measured
from telechat_kit.quantization.methods.rotation import turn_products
from telechat_kit.quantization.methods.splitting import split_channels
from telechat_kit.quantization.partial import Pass
from telechat_kit.quantization.recipe import ONLINE_ROTATION, AppliedRecipe, LinearRecord
from telechat_kit.quantization.stages import Stages


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

    What is finished in `folder` already is kept. Memory holds one block in float32, the hidden states and, for method
    best, the input of one linear.
    """
    if recipe.anti_outlier == BEST:
        return _quantize_by_inputs(shards, samples, recipe, folder, device)
    count, analysis, passes = (
        shards.config.n_layer,
        Pass(folder, "analysis"),
        6 if recipe.level == AUTO else 2,
    )
    looked_at = SENSITIVITY_SAMPLES if recipe.anti_outlier in FIRST_SAMPLE_ONLY else len(samples)
    analyzer = Analyzer(shards, recipe, analysis, device)
    stream(analyzer, samples[:looked_at], Message("1 of {passes}, analysis of blocks", passes=passes))
    scores = {name: score for index in range(count) for name, score in analysis.details(index).items()}

    at_l0 = Quantizer(shards, recipe, analysis, frozenset(), Pass(folder, "trial"), device, len(samples))
    if recipe.level == AUTO:
        stream(at_l0, samples, marked("2 of 6, quantization at L0"))
        rows = _linear_records(at_l0.results, count)
        float_linears, measured = _measured_choice(at_l0, samples, rows, ("3 of 6", "4 of 6"))
    else:
        rows, measured = [], None
        float_linears = choose_float_linears(scores, recipe.level, recipe.group_fallback)

    kept = frozenset(linear.name for linear in float_linears)
    blocks = Pass(folder, "trial" if rows and not kept else "block")  # at L0 the trial is the result
    quantizer = replace(at_l0, float_linears=kept, results=blocks)
    stream(
        quantizer,
        samples,
        Message(
            "{number} of {passes}, quantization of blocks",
            number=passes - 1 if measured else passes,
            passes=passes,
        ),
    )
    noise = {row.name: row.residual_noise for row in rows if row.name in kept}
    linears = [
        replace(row, residual_noise=noise.get(row.name, row.residual_noise))
        for row in _linear_records(blocks, count)
    ]
    measured = _checked(quantizer, samples, measured, "6 of 6")
    return Quantized(blocks, linears, float_linears, measured)


def _quantize_by_inputs(
    shards: Shards, samples: Sequence[Tensor], recipe: AppliedRecipe, folder: Path, device: torch.device
) -> Quantized:
    """`quantize_blocks` of method best: all linears in int8, then those that stay in float are given back."""
    count, passes = shards.config.n_layer, 4 if recipe.level == AUTO else 1
    probes = (
        random_samples(samples, recipe.random_vocabulary, recipe.seed) if recipe.random_vocabulary else []
    )
    analysis, blocks = Pass(folder, "analysis"), Pass(folder, "block")
    quantizer = Quantizer(shards, recipe, analysis, frozenset(), blocks, device, len(samples))
    stream(quantizer, [*samples, *probes], Message("1 of {passes}, quantization of blocks", passes=passes))
    rows = _linear_records(blocks, count)
    if recipe.level == AUTO:
        float_linears, measured = _measured_choice(quantizer, samples, rows, ("2 of 4", "3 of 4"))
    else:
        scores = {row.name: row.score or 0.0 for row in rows}
        order = noisiest_first(_noise(rows)) if recipe.by_noise else None
        float_linears = choose_float_linears(scores, recipe.level, recipe.group_fallback, order)
        measured = None
    kept = frozenset(linear.name for linear in float_linears)
    for index in range(count):
        quantizer.give_back(index, kept)
    measured = _checked(quantizer, samples, measured, "4 of 4")
    return Quantized(blocks, _linear_records(blocks, count), float_linears, measured)


def _measured_choice(
    at_l0: "Quantizer", samples: Sequence[Tensor], rows: Sequence[LinearRecord], numbers: tuple[str, str]
) -> tuple[list[FloatLinear], MeasuredLevel]:
    """The linears that level auto keeps in float, and what was measured to find them on the blocks of `at_l0`."""
    recipe = at_l0.recipe
    few, scores = samples[: recipe.budget_samples], {row.name: row.score or 0.0 for row in rows}
    candidates = variant_pass(at_l0, "candidates", len(few))
    return choose_measured(
        candidates, few, _noise(rows), scores, recipe.budget, recipe.group_fallback, numbers
    )


def _checked(
    quantizer: "Quantizer", samples: Sequence[Tensor], measured: MeasuredLevel | None, number: str
) -> MeasuredLevel | None:
    """What level auto measured, and the KL of the blocks as they were written."""
    if measured is None:
        return None
    check = variant_pass(quantizer, "check", measured.samples)
    kl = check.measure(samples[: measured.samples], Message("{number}, check of blocks", number=number))
    return replace(measured, kl_written=kl[()])


def _noise(rows: Iterable[LinearRecord]) -> dict[str, float]:
    return {row.name: row.residual_noise or 0.0 for row in rows}


def _linear_records(blocks: Pass, count: int) -> list[LinearRecord]:
    return [LinearRecord(**row) for index in range(count) for row in blocks.details(index)["linears"]]


def variant_pass(quantizer: "Quantizer", name: str, samples: int) -> VariantPass:
    """A pass through the blocks that `quantizer` wrote, all their int8 linears in int8."""
    shards, device, packed = quantizer.shards, quantizer.device, quantizer.results
    return VariantPass(shards, Pass(packed.folder, name), device, packed, quantizer.prepare, [()], samples)


@dataclass(frozen=True)
class Analyzer:
    """First pass: smoothing scales and sensitivity scores of a block, from the states of the float network."""

    shards: Shards
    recipe: AppliedRecipe
    results: Pass
    device: torch.device

    def step(self, block: Block, states: Sequence[Tensor]) -> list[Tensor]:
        """Write what is found of `block`; the states after it."""
        scales, after = smoothing_scales(block, states, self.recipe.anti_outlier)
        fold(block, scales)
        self.results.write(block.index, scales, sensitivity(block, states), after)
        return after


@dataclass(frozen=True)
class _Calibrated:
    """What the samples tell of a block, whose weights are ready to be packed: figures of its linears, by name.

    `after` are the states behind it; `rounded` the int8 weights, empty where they are rounded to the nearest.
    """

    after: list[Tensor]
    scores: Mapping[str, float]
    observers: Mapping[str, Observer]
    figures: Mapping[str, LinearFigures]
    channels: Mapping[str, Mapping[str, float | int]]
    rounded: Mapping[str, Tensor]


@dataclass(frozen=True)
class Quantizer:
    """The tensors of a block as on disk, from the states of the quantized network.

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
        by_inputs = self.recipe.anti_outlier == BEST
        found = self._by_inputs(block, states) if by_inputs else self._calibrated(block, states)
        noise = residual_noise(block, found.figures, found.after[: self.samples])
        int8 = [name for name in found.scores if name not in self.float_linears]
        packed = {
            name: self._pack(block, name, found.observers.get(name), found.rounded.get(name)) for name in int8
        }
        tensors, kinds = block_tensors(block, packed, self.shards, self.recipe.kind)
        linears = [
            asdict(self._linear_record(name, score, found.observers.get(name), found.figures[name]))
            | dict(found.channels[name])
            | {"residual_noise": noise.get(name)}
            for name, score in found.scores.items()
        ]
        self.results.write(block.index, tensors, {"kinds": kinds, "linears": linears}, found.after)
        return found.after

    def _calibrated(self, block: Block, states: Sequence[Tensor]) -> _Calibrated:
        """As the reference does it, in the ranges and with the scales that its methods find."""
        scores = self.analysis.details(block.index)
        self.prepare(block, self.float_linears)
        int8 = {name: score for name, score in scores.items() if name not in self.float_linears}
        figures = {name: LinearFigures() for name in scores}
        channels, observers = ChannelMaxima(block.linear_names), dict[str, Observer]()
        with observed(block, channels.updates()):
            if self.recipe.kind == DYNAMIC:
                after = calibrate_dynamic(block, states, int8, figures)
            else:
                method = self.recipe.act_method
                observers = {name: make_observer(method, score) for name, score in int8.items()}
                after = calibrate(block, states, observers, figures)
        facts = channels.facts(block, self.analysis.tensors(block.index))
        return _Calibrated(after, scores, observers, figures, facts, {})

    def _by_inputs(self, block: Block, states: Sequence[Tensor]) -> _Calibrated:
        """As method best does it. Its scales and scores are kept for those who need the block once more."""
        stages = Stages(block, self.recipe, self.shards, self.samples)
        after = stages.run(states)
        self.analysis.keep(block.index, stages.scales, stages.scores)
        facts = stages.channels.facts(block, stages.scales, stages.split)
        return _Calibrated(after, stages.scores, stages.observers, stages.figures, facts, stages.rounded)

    def give_back(self, index: int, names: Collection[str]) -> None:
        """Store those linears of block `index` that `names` has in float instead of int8, scaled as they were."""
        rows = [LinearRecord(**row) for row in self.results.details(index)["linears"]]
        if not any(row.name in names and row.kind != FLOAT for row in rows):
            return
        tensors, kinds = self.results.tensors(index), dict(self.results.details(index)["kinds"])
        block = load_block(self.shards, index, Rotary(self.shards.config), self.device)
        self.prepare(block, names)
        floats, _ = block_tensors(block, {}, self.shards, self.recipe.kind)
        for name in (row.name for row in rows if row.name in names):
            stored = stored_name(name, self.shards.config)
            for key in [key for key in tensors if key.rpartition(".")[0] == stored]:
                del tensors[key], kinds[key]
            own = {key: value for key, value in floats.items() if key.rpartition(".")[0] == stored}
            tensors |= own
            kinds |= dict.fromkeys(own, FLOAT)
        linears = [asdict(row.in_float() if row.name in names else row) for row in rows]
        self.results.keep(index, tensors, {"kinds": kinds, "linears": linears})

    def prepare(self, block: Block, float_linears: Collection[str]) -> Tensor | None:
        """Fold the scales into `block`. Its norms and `float_linears` become what will be stored of them.

        Where channels are split: which channel each one is.
        """
        scales = self.analysis.tensors(block.index)
        fold(block, {name: scale.to(self.device) for name, scale in scales.items()})
        split = split_channels(block, self.recipe.split_channels) if self.recipe.split_channels else None
        if ONLINE_ROTATION in self.recipe.ingredients:
            turn_products(block)
        for name in [*norm_groups(block), *float_linears]:
            if name.startswith(block.prefix):
                weight = block.parameter(f"{name}.weight")
                weight.data = as_stored(f"{name}.weight", weight.data, self.shards).float()
        return split

    def _pack(
        self, block: Block, name: str, observer: Observer | None, rounded: Tensor | None
    ) -> dict[str, Tensor]:
        """Tensors of an int8 linear; without an observer its activations are dynamic."""
        packed = pack(block.submodule(name), observer.parameters() if observer else None, rounded)
        if "deq_scale" in packed and self.shards.dtype == torch.bfloat16:
            # loaders of bfloat16 models expect float32, not bit patterns
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

"""Two passes over the blocks of a checkpoint, one block in memory at a time: analyze all, then quantize all.

The second pass needs what the first one finds of the whole network: which linears are the most sensitive.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from telechat_kit.model.folder import DYNAMIC, FLOAT, STATIC
from telechat_kit.model.int8 import decode_scale
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.shards import Shards
from telechat_kit.progress import track
from telechat_kit.quantization.blocks import Block, embed, load_block
from telechat_kit.quantization.calibration import (
    FIRST_SAMPLE_ONLY,
    SENSITIVITY_SAMPLES,
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
from telechat_kit.quantization.fallback import FloatLinear, choose_float_linears
from telechat_kit.quantization.formats import as_stored, block_tensors
from telechat_kit.quantization.packing import pack_dynamic_linear, pack_linear
from telechat_kit.quantization.partial import Pass


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
    calibration_format: str = "blocks"  # "blocks", "lines", "chat"
    calibration_lines: list[int] = field(default_factory=list)  # number in the file of each sample's line
    calibration_cut: list[tuple[int, int]] = field(default_factory=list)  # line cut, its tokens before
    calibration_sample_tokens: list[int] = field(default_factory=list)
    calibration_samples_sha256: str = ""  # of the token ids

    @property
    def kind(self) -> str:
        """What descriptions call the int8 linears."""
        return DYNAMIC if self.activations == "dynamic" else STATIC


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
    output_snr_db: float | None = None  # signal to int8 error of its output, dB
    clipped_share: float | None = None  # of its input's values, beyond the range


@dataclass(frozen=True)
class Quantized:
    """The quantized blocks, as files of a pass, and what became of each linear."""

    blocks: Pass
    linears: list[LinearRecord]
    float_linears: list[FloatLinear]


def quantize_blocks(
    shards: Shards, samples: Sequence[Tensor], recipe: Recipe, folder: Path, device: torch.device
) -> Quantized:
    """Quantize every block on `samples` (ids `[1, T]`), each written to the work `folder` when it is finished.

    What is finished in `folder` already is kept. Memory holds one block in float32 and the hidden states.
    """
    count = shards.config.n_layer
    analysis, blocks = Pass(folder, "analysis"), Pass(folder, "block")
    analyzer = _Analyzer(shards, recipe.anti_outlier, analysis, device)
    looked_at = SENSITIVITY_SAMPLES if recipe.anti_outlier in FIRST_SAMPLE_ONLY else len(samples)
    _stream(analyzer, samples[:looked_at], "1 of 2, analysis of blocks")
    scores = {name: score for index in range(count) for name, score in analysis.details(index).items()}
    float_linears = choose_float_linears(scores, recipe.level, recipe.group_fallback)
    kept = {linear.name for linear in float_linears}
    quantizer = _Quantizer(shards, recipe, analysis, kept, blocks, device)
    _stream(quantizer, samples, "2 of 2, quantization of blocks")
    linears = [LinearRecord(**row) for index in range(count) for row in blocks.details(index)["linears"]]
    return Quantized(blocks, linears, float_linears)


@dataclass(frozen=True)
class _Analyzer:
    """First pass: smoothing scales and sensitivity scores of a block, from the states of the float network."""

    shards: Shards
    method: str
    results: Pass
    device: torch.device

    def step(self, block: Block, states: Sequence[Tensor]) -> list[Tensor]:
        """Write what is found of `block`; the states after it."""
        scales, after = smoothing_scales(block, states, self.method)
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
        scales = self.analysis.tensors(block.index)
        fold(block, {name: scale.to(self.device) for name, scale in scales.items()})
        self._round_float_parts(block)
        int8 = {name: score for name, score in scores.items() if name not in self.float_linears}
        observers: dict[str, Observer] = {}
        channels = ChannelMaxima(block.linear_names)
        with observed(block, channels.updates()):
            if self.recipe.kind == DYNAMIC:
                after = calibrate_dynamic(block, states, int8)
            else:
                observers, after = calibrate(block, states, int8, self.recipe.act_method)
        packed = {name: self._pack(block, name, observers.get(name)) for name in int8}
        tensors, kinds = block_tensors(block, packed, self.shards, self.recipe.kind)
        found = channels.facts(block, scales)
        linears = [
            asdict(self._linear_record(name, score, observers)) | found[name]
            for name, score in scores.items()
        ]
        self.results.write(block.index, tensors, {"kinds": kinds, "linears": linears}, after)
        return after

    def _round_float_parts(self, block: Block) -> None:
        """Calibration shall see the folded norms and float linears as they will be stored."""
        for name in [*norm_groups(block), *self.float_linears]:
            if name.startswith(block.prefix):
                weight = block.parameter(f"{name}.weight")
                weight.data = as_stored(f"{name}.weight", weight.data, self.shards).float()

    def _pack(self, block: Block, name: str, observer: Observer | None) -> dict[str, Tensor]:
        """Tensors of an int8 linear; without an observer its activations are dynamic."""
        parts = dict(block.submodule(name).named_parameters())
        bias = parts["bias"].data if "bias" in parts else None
        if observer is None:
            return pack_dynamic_linear(parts["weight"].data, bias)
        packed = pack_linear(parts["weight"].data, bias, *observer.parameters())
        if self.shards.dtype == torch.bfloat16:  # loaders of bfloat16 models expect float32, not bit patterns
            packed["deq_scale"] = decode_scale(packed["deq_scale"])
        return packed

    def _linear_record(self, name: str, score: float, observers: Mapping[str, Observer]) -> LinearRecord:
        if name not in observers:
            kind = FLOAT if name in self.float_linears else self.recipe.kind
            return LinearRecord(name, kind, score, None, None, None, None)
        (low, high), (scale, offset) = observers[name].range(), observers[name].parameters()
        return LinearRecord(name, STATIC, score, low.item(), high.item(), scale.item(), int(offset.item()))


def _stream(stage: _Analyzer | _Quantizer, samples: Sequence[Tensor], description: str) -> None:
    """Run the blocks that are not finished, each on the states that the one before it left."""
    shards, results, count = stage.shards, stage.results, stage.shards.config.n_layer
    start, rotary = results.finished, Rotary(stage.shards.config)
    if start == count:
        return
    states = (
        [state.to(stage.device) for state in results.states(start - 1)]
        if start
        else embed(shards, samples, stage.device)
    )
    for index in track(range(start, count), description, total=count, done=start):
        states = stage.step(load_block(shards, index, rotary, stage.device), states)

"""Float checkpoint -> W8A8 checkpoint: suppress outliers, choose the float linears, calibrate, pack, save."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from telechat_kit.backends import backend_for
from telechat_kit.data import load_text, token_blocks
from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.model.checkpoint import (
    W8A8_DESCRIPTION,
    is_w8a8,
    linear_names,
    load_model,
    read_config,
    weight_files,
)
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.provenance import Conditions, conditions, tokenizer_hash, weights_hash
from telechat_kit.quantization.calibration import calibrate, sensitivity, smooth
from telechat_kit.quantization.fallback import FloatLinear, choose_float_linears, parse_level
from telechat_kit.quantization.formats import save_w8a8
from telechat_kit.quantization.observers import HistogramObserver, MinMaxObserver
from telechat_kit.quantization.packing import pack_linear
from telechat_kit.quantization.smoothing import METHODS

SCHEMA = "telechat-kit/quantize/1"


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint was quantized. Equal recipes on equal weights give equal files."""

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


@dataclass(frozen=True)
class LinearRecord:
    """One block linear after calibration."""

    name: str
    kind: str  # "W8A8" or "FLOAT"
    score: float
    low: float | None
    high: float | None
    input_scale: float | None
    input_offset: int | None


@dataclass(frozen=True)
class QuantizeRecord:
    """What `02_quantize` did, and what came out."""

    schema: str
    checkpoint_path: str
    quant_path: str
    recipe: Recipe
    linears: list[LinearRecord]
    float_linears: list[FloatLinear]
    calibration_tokens: int
    float_bytes: int
    w8a8_bytes: int
    seconds: float
    peak_memory_bytes: int
    conditions: Conditions


def quantize(
    checkpoint_path: str | Path,
    quant_path: str | Path,
    *,
    level: str = "L5",
    anti_outlier: str = "m1",
    act_method: int = 1,
    group_fallback: bool = True,
    calibration: str = "pydoc_data.topics",
    samples: int = 16,
    tokens: int = 512,
    seed: int = 0,
    device: str = "auto",
) -> QuantizeRecord:
    """Quantize the float checkpoint folder `checkpoint_path` into the W8A8 folder `quant_path`.

    Args:
        level: "L0", "L5" ...: how many of the most sensitive linears stay in float.
        anti_outlier: "none", "m1" (SmoothQuant), "m2" (outlier suppression with threshold search) or "m4".
        act_method: range of activations: 1 min-max, 2 histogram, 3 automatic.
        group_fallback: linears that read the same input stay in float together.
        calibration: a text file, a jsonl file, or "pydoc_data.topics".
        samples, tokens: number of calibration samples and tokens in each, drawn by `seed`.

    Raises:
        CheckpointError, DataError, ParameterError, DeviceError: each names the cause and the remedy.
    """
    start = time.perf_counter()
    source, target = resolve(checkpoint_path), resolve(quant_path)
    _check_request(source, target, level, anti_outlier)
    text = load_text(calibration)
    blocks = token_blocks(load_tokenizer(source), text, tokens, samples, seed)
    recipe = Recipe(
        level=level,
        anti_outlier=anti_outlier,
        act_method=act_method,
        group_fallback=group_fallback,
        calibration_source=text.source,
        calibration_sha256=text.sha256,
        calibration_blocks=[(block.start, block.stop) for block in blocks],
        seed=seed,
        source_weights=weights_hash(source),
        source_tokenizer=tokenizer_hash(source),
    )
    model = load_model(source, device)
    calibrated = quantize_model(model, [torch.tensor([block.ids]) for block in blocks], recipe)
    details = {"schema": SCHEMA, "recipe": asdict(recipe), **asdict(calibrated.summary())}
    save_w8a8(target, source, model, calibrated.packed, details)
    return QuantizeRecord(
        schema=SCHEMA,
        checkpoint_path=relative(source),
        quant_path=relative(target),
        recipe=recipe,
        linears=calibrated.linears,
        float_linears=calibrated.float_linears,
        calibration_tokens=samples * tokens,
        float_bytes=_bytes(source),
        w8a8_bytes=_bytes(target),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=backend_for(model.device.type).peak_memory_bytes(),
        conditions=conditions(model.device, float=source, w8a8=target),
    )


@dataclass(frozen=True)
class LayerSummary:
    """What the checkpoint's own `quantize.json` says of the linears."""

    linears: list[LinearRecord]
    float_linears: list[FloatLinear]


@dataclass(frozen=True)
class Calibrated:
    """Tensors of the int8 linears by module name, and the record of every block linear."""

    packed: dict[str, dict[str, Tensor]]
    linears: list[LinearRecord]
    float_linears: list[FloatLinear]

    def summary(self) -> LayerSummary:
        return LayerSummary(self.linears, self.float_linears)


def quantize_model(model: TelechatForCausalLM, samples: Sequence[Tensor], recipe: Recipe) -> Calibrated:
    """Calibrate `model` on `samples` (ids `[1, T]`) and pack its int8 linears. Smoothing is folded in place."""
    names = linear_names(model)
    smooth(model, samples, recipe.anti_outlier)
    scores = sensitivity(model, samples, names)
    float_linears = choose_float_linears(scores, recipe.level, recipe.group_fallback)
    kept = {linear.name for linear in float_linears}
    observers = calibrate(
        model, samples, {name: score for name, score in scores.items() if name not in kept}, recipe.act_method
    )
    packed = {name: _pack(model, name, observer) for name, observer in observers.items()}
    linears = [_linear_record(name, scores[name], observers) for name in names]
    return Calibrated(packed, linears, float_linears)


def _pack(
    model: TelechatForCausalLM, name: str, observer: MinMaxObserver | HistogramObserver
) -> dict[str, Tensor]:
    linear = model.get_submodule(name)
    bias = linear.bias.data if linear.bias is not None else None
    return pack_linear(linear.weight.data, bias, *observer.parameters())


def _linear_record(
    name: str, score: float, observers: Mapping[str, MinMaxObserver | HistogramObserver]
) -> LinearRecord:
    if name not in observers:
        return LinearRecord(name, "FLOAT", score, None, None, None, None)
    (low, high), (scale, offset) = observers[name].range(), observers[name].parameters()
    return LinearRecord(name, "W8A8", score, low.item(), high.item(), scale.item(), int(offset.item()))


def _check_request(source: Path, target: Path, level: str, anti_outlier: str) -> None:
    """Refuse what cannot work before the minutes of loading and calibration."""
    config = read_config(source)
    weight_files(source)
    if is_w8a8(source):
        raise CheckpointError(f"{source} is quantized already. Give the float checkpoint as checkpoint_path.")
    if source == target:
        raise CheckpointError(
            f"quant_path is checkpoint_path ({source}). Give the W8A8 weights a folder of their own."
        )
    if target.exists() and not (target / W8A8_DESCRIPTION).is_file() and any(target.iterdir()):
        raise CheckpointError(f"{target} holds other files. Give the W8A8 weights a folder of their own.")
    parse_level(level, 6 * config.n_layer)
    if anti_outlier not in ("none", *METHODS):
        known = ", ".join(("none", *METHODS))
        raise ParameterError(f'anti_outlier "{anti_outlier}" is unknown. Use one of {known}.')


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))

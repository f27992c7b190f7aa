"""Float checkpoint -> W8A8 checkpoint: suppress outliers, choose the float linears, calibrate, pack, save."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat_kit.backends import backend_for, resolve_device
from telechat_kit.data import load_text, token_blocks
from telechat_kit.errors import CheckpointError, DataError, ParameterError
from telechat_kit.files import relative, require_space, resolve
from telechat_kit.memory import explained
from telechat_kit.model.checkpoint import W8A8_DESCRIPTION, is_w8a8, read_config, weight_files
from telechat_kit.model.shards import Shards
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.provenance import (
    Conditions,
    code_hash,
    combined_hash,
    conditions,
    file_hash,
    tokenizer_hash,
    weights_hash,
)
from telechat_kit.quantization.calibration import BEST
from telechat_kit.quantization.fallback import FloatLinear, parse_level
from telechat_kit.quantization.formats import needed_bytes, write_w8a8_folder
from telechat_kit.quantization.observers import make_observer
from telechat_kit.quantization.partial import open_partial, partial_folder
from telechat_kit.quantization.smoothing import METHODS
from telechat_kit.quantization.streaming import LinearRecord, Quantized, Recipe, quantize_blocks

SCHEMA = "telechat-kit/quantize/1"


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
        anti_outlier: "none", "m1" (SmoothQuant), "m2" (outlier suppression with threshold search), "m4", or
            "best" (SmoothQuant with searched exponents, up_proj -> down_proj smoothed too).
        act_method: range of activations: 1 min-max, 2 histogram, 3 automatic.
        group_fallback: linears that read the same input stay in float together.
        calibration: a text file, a jsonl file, or "pydoc_data.topics".
        samples, tokens: number of calibration samples and tokens in each, drawn by `seed`.

    Raises:
        CheckpointError, DataError, ParameterError, DeviceError: each names the cause and the remedy.
    """
    start = time.perf_counter()
    source, target = resolve(checkpoint_path), resolve(quant_path)
    torch_device = resolve_device(device)
    _check_request(source, target, level, anti_outlier, act_method)
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
    samples_ids = [torch.tensor([block.ids]) for block in blocks]
    quantized = _quantize(Shards(source), target, samples_ids, recipe, torch_device)
    return QuantizeRecord(
        schema=SCHEMA,
        checkpoint_path=relative(source),
        quant_path=relative(target),
        recipe=recipe,
        linears=quantized.linears,
        float_linears=quantized.float_linears,
        calibration_tokens=samples * tokens,
        float_bytes=_bytes(source),
        w8a8_bytes=_bytes(target),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=backend_for(torch_device.type).peak_memory_bytes(),
        conditions=conditions(torch_device, float=source, w8a8=target),
    )


def _quantize(
    shards: Shards, target: Path, samples: Sequence[Tensor], recipe: Recipe, device: torch.device
) -> Quantized:
    """Write the W8A8 folder `target`, going on with what an interrupted run of the same work has finished."""
    folder = partial_folder(target)
    require_space(target, needed_bytes(shards), "the W8A8 checkpoint")
    open_partial(folder, _work_key(shards, recipe, device))
    try:
        with explained("calibration", backend_for(device.type)):
            quantized = quantize_blocks(shards, samples, recipe, folder, device)
        write_w8a8_folder(target, shards, quantized.blocks, _details(recipe, quantized))
    except (CheckpointError, DataError):  # the input is at fault: there is nothing to go on with
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
    return quantized


def _details(recipe: Recipe, quantized: Quantized) -> dict[str, Any]:
    """What the checkpoint's own `quantize.json` says."""
    return {
        "schema": SCHEMA,
        "recipe": asdict(recipe),
        "linears": [asdict(linear) for linear in quantized.linears],
        "float_linears": [asdict(linear) for linear in quantized.float_linears],
    }


def _work_key(shards: Shards, recipe: Recipe, device: torch.device) -> str:
    """What must be equal for finished blocks to be kept: recipe, source, arithmetic."""
    config = file_hash(shards.folder / "config.json")
    return combined_hash([json.dumps(asdict(recipe)), config, code_hash(), torch.__version__, device.type])


def _check_request(source: Path, target: Path, level: str, anti_outlier: str, act_method: int) -> None:
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
    make_observer(act_method)
    if anti_outlier not in ("none", *METHODS, BEST):
        known = ", ".join(("none", *METHODS, BEST))
        raise ParameterError(f'anti_outlier "{anti_outlier}" is unknown. Use one of {known}.')


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))

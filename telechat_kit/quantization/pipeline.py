"""Float checkpoint -> W8A8 checkpoint: suppress outliers, choose the float linears, calibrate, pack, save."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat_kit.backends import backend_for, resolve_device
from telechat_kit.errors import CheckpointError, DataError, ParameterError
from telechat_kit.files import relative, require_space, resolve, working_in
from telechat_kit.inference.conditions import conditions
from telechat_kit.inference.memory import explained
from telechat_kit.messages import marked
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import is_w8a8, read_config, weight_files
from telechat_kit.model.hashes import tokenizer_hash, weights_hash
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.model.weight_shards import Shards
from telechat_kit.progress import resumable
from telechat_kit.provenance import Conditions, code_hash, combined_hash, file_hash
from telechat_kit.quantization.beside_m1 import SAMPLES, TOKENS, BesideM1, beside_m1
from telechat_kit.quantization.blocks import model_linear_names
from telechat_kit.quantization.calibration.groups import BEST
from telechat_kit.quantization.calibration.samples import CalibrationSet, calibration_set, held_back_samples
from telechat_kit.quantization.formats.given import GivenWeights, check_given
from telechat_kit.quantization.formats.ownership import require_free
from telechat_kit.quantization.formats.w8a8_folder import RECIPE, needed_bytes, write_w8a8_folder
from telechat_kit.quantization.int8.observers import make_observer
from telechat_kit.quantization.levels.fallback import AUTO, FloatLinear, check_level
from telechat_kit.quantization.levels.measured_levels import MeasuredLevel, parse_budget
from telechat_kit.quantization.methods.rotation import open_shards, why_not_r1
from telechat_kit.quantization.methods.smoothing import METHODS
from telechat_kit.quantization.methods.splitting import SPLIT_CHANNELS
from telechat_kit.quantization.partial import open_partial, partial_folder
from telechat_kit.quantization.recipe import (
    ONLINE_ROTATION,
    RANDOM_TOKENS,
    ROTATION,
    SETS,
    SPLITTING,
    AppliedRecipe,
    LinearRecord,
    parse_ingredients,
)
from telechat_kit.quantization.request import Calibration, Recipe
from telechat_kit.quantization.streaming import Quantized, quantize_blocks
from telechat_kit.records import finite

ACTIVATIONS = ("static", "dynamic")

SCHEMA = "telechat-kit/quantize/1"


@dataclass(frozen=True)
class QuantizeRecord:
    """What `02_quantize` did, and what came out.

    `recipe` is None where the weights were given and do not say how they were made; `given` is what a check of
    given weights found, None where the kit quantized. `calibration_tokens` counts the tokens of all samples.
    """

    schema: str
    checkpoint_path: str
    quant_path: str
    recipe: AppliedRecipe | None
    linears: list[LinearRecord]
    float_linears: list[FloatLinear]
    calibration_tokens: int
    float_bytes: int
    w8a8_bytes: int
    seconds: float
    peak_memory_bytes: int
    conditions: Conditions
    recipe_sha256: str = ""
    given: GivenWeights | None = None
    measured: MeasuredLevel | None = None  # of level auto
    beside_m1: BesideM1 | None = None  # of method best, where calibration left text to measure on


@resumable(
    marked(
        "The blocks that are done stand beside the W8A8 folder: run the cell again, and it goes on from there."
    )
)
def quantize(
    checkpoint_path: str | Path,
    quant_path: str | Path,
    recipe: Recipe = Recipe(),
    calibration: Calibration = Calibration(),
    *,
    device: str = "auto",
    given_weights: bool = False,
    overwrite: bool = False,
) -> QuantizeRecord:
    """Quantize the float checkpoint folder `checkpoint_path` into the W8A8 folder `quant_path`.

    Args:
        recipe: how: what stays in float, how outliers are suppressed, what the activations' ranges are.
        calibration: on which text.
        device: that the passes over the network run on.
        given_weights: `quant_path` holds W8A8 weights already: `check_given_weights` instead of quantizing.
        overwrite: whatever `quant_path` holds may go, also what the kit did not write.

    Raises:
        CheckpointError, DataError, ParameterError, DeviceError: each names the cause and the remedy.
        KitError: another process is quantizing into `quant_path`.

    Example:
        >>> quantized = quantize("models/tiny", "models/tiny-w8a8", recipe, calibration, device="cpu")
        >>> len(quantized.linears), quantized.w8a8_bytes < quantized.float_bytes
        (24, True)
    """
    if given_weights:
        return check_given_weights(checkpoint_path, quant_path, device=device)
    start = time.perf_counter()
    source, target = resolve(checkpoint_path), resolve(quant_path)
    torch_device = resolve_device(device)
    context = _check_request(source, target, recipe).training_seqlen
    require_free(target.resolve(), RECIPE, [source], overwrite)
    tokenizer = load_tokenizer(source)
    chosen = calibration_set(
        tokenizer, calibration.source,
        format=calibration.calibration_format, lines=calibration.calibration_lines,
        samples=calibration.calibration_samples, tokens=calibration.calibration_tokens,
        seed=calibration.seed, context=context,
    )  # fmt: skip
    # both refuse what cannot be before files are hashed
    asked = _measured_by(source, recipe, len(chosen.ids)) | _made_of(source, recipe, len(tokenizer))
    applied = AppliedRecipe(
        level=recipe.level, anti_outlier=recipe.anti_outlier, act_method=recipe.act_method,
        group_fallback=recipe.group_fallback, activations=recipe.activations, seed=calibration.seed,
        source_weights=weights_hash(source), source_tokenizer=tokenizer_hash(source),
        **asked, **chosen.recipe(),
    )  # fmt: skip
    shards = open_shards(source, applied.ingredients, calibration.seed)
    if ONLINE_ROTATION in applied.ingredients:
        shards.config_changes |= {"online_rotation": True}
    samples, held = chosen.tensors(), _held_back(tokenizer, chosen, calibration, applied)
    quantized, beside = _quantize(shards, target.resolve(), samples, held, applied, torch_device)
    record = _record(source, target, quantized.linears, quantized.float_linears, applied, start, torch_device)
    return replace(record, measured=quantized.measured, beside_m1=beside)


def _held_back(
    tokenizer: Any, chosen: CalibrationSet, calibration: Calibration, recipe: AppliedRecipe
) -> list[Tensor]:
    """What method best is compared with m1 on."""
    if recipe.anti_outlier != BEST:
        return []
    tokens = min(TOKENS, calibration.calibration_tokens)
    return held_back_samples(tokenizer, chosen, SAMPLES, tokens, calibration.seed)


def check_given_weights(
    checkpoint_path: str | Path, quant_path: str | Path, *, device: str = "auto"
) -> QuantizeRecord:
    """Check W8A8 weights that are there already, and describe them as `quantize` describes its own.

    This is scenario two of the guide. Nothing is quantized and nothing is written.

    Args:
        checkpoint_path: the float folder that belongs to them; for `.npy` dictionaries the one after outlier
            suppression.
        quant_path: the quantized folder, in any format that `load_model` reads.

    Raises:
        CheckpointError: a tensor is missing, damaged or does not fit, or the folders do not belong together.
    """
    start = time.perf_counter()
    source, target = resolve(checkpoint_path), resolve(quant_path)
    torch_device = resolve_device(device)
    found = check_given(source, target)
    record = _record(source, target, found.linears, found.float_linears, found.recipe, start, torch_device)
    return replace(record, given=found.given, w8a8_bytes=found.given.bytes)


def _record(
    source: Path,
    target: Path,
    linears: list[LinearRecord],
    float_linears: list[FloatLinear],
    recipe: AppliedRecipe | None,
    start: float,
    device: torch.device,
) -> QuantizeRecord:
    return QuantizeRecord(
        schema=SCHEMA,
        checkpoint_path=relative(source),
        quant_path=relative(target),
        recipe=recipe,
        linears=linears,
        float_linears=float_linears,
        calibration_tokens=sum(recipe.calibration_sample_tokens) if recipe else 0,
        float_bytes=_bytes(source),
        w8a8_bytes=_bytes(target),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=backend_for(device.type).peak_memory_bytes(),
        conditions=conditions(device, float=source, w8a8=target),
        recipe_sha256=recipe_hash(recipe) if recipe else "",
    )


def _quantize(
    shards: Shards,
    target: Path,
    samples: Sequence[Tensor],
    held: Sequence[Tensor],
    recipe: AppliedRecipe,
    device: torch.device,
) -> tuple[Quantized, BesideM1 | None]:
    """Write the W8A8 folder `target`, going on with what an interrupted run of the same work has finished."""
    folder = partial_folder(target)
    require_space(
        target, needed_bytes(shards, trial=recipe.level == AUTO or bool(held)), "the W8A8 checkpoint"
    )
    shards.require_finite()
    with working_in(folder):
        open_partial(folder, _work_key(shards, recipe, device))
        try:
            with explained("calibration", backend_for(device.type)):
                quantized = quantize_blocks(shards, samples, recipe, folder, device)
                beside = beside_m1(shards, held, samples, recipe, quantized, device)
            width = shards.config.ffn_hidden_size + recipe.split_channels
            details = _details(recipe, quantized, beside)
            write_w8a8_folder(target, shards, quantized.blocks, details, recipe.kind, width)
        except (CheckpointError, DataError, ParameterError):  # the input is at fault: nothing to go on with
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)
    return quantized, beside


def _details(recipe: AppliedRecipe, quantized: Quantized, beside: BesideM1 | None) -> dict[str, Any]:
    """What the checkpoint's own `quantize.json` says."""
    return {
        "schema": SCHEMA,
        "recipe": asdict(recipe),
        "recipe_sha256": recipe_hash(recipe),
        "linears": [finite(asdict(linear)) for linear in quantized.linears],
        "float_linears": [finite(asdict(linear)) for linear in quantized.float_linears],
        **({"measured": asdict(quantized.measured)} if quantized.measured else {}),
        **({"beside_m1": asdict(beside)} if beside else {}),
    }


def recipe_hash(recipe: AppliedRecipe) -> str:
    """One hash for all that a recipe says: source, calibration and choices."""
    return combined_hash([json.dumps(asdict(recipe), sort_keys=True)])


def _work_key(shards: Shards, recipe: AppliedRecipe, device: torch.device) -> str:
    """What must be equal for finished blocks to be kept: recipe, source, arithmetic."""
    config = file_hash(shards.folder / "config.json")
    return combined_hash([recipe_hash(recipe), config, code_hash(), torch.__version__, device.type])


def _check_request(source: Path, target: Path, recipe: Recipe) -> TelechatConfig:
    """The configuration; what cannot work is refused before the minutes of loading and calibration."""
    config = read_config(source)
    weight_files(source)
    if is_w8a8(source):
        raise CheckpointError(
            "{source} is quantized already. Give the float checkpoint as checkpoint_path.", source=source
        )
    if source == target:
        raise CheckpointError(
            "quant_path is checkpoint_path ({source}). Give the W8A8 weights a folder of their own.",
            source=source,
        )
    check_level(recipe.level, model_linear_names(config))
    make_observer(recipe.act_method)
    if recipe.activations not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ParameterError(
            'activations "{activations}" is unknown. Use one of {known}.',
            activations=recipe.activations,
            known=known,
        )
    if recipe.anti_outlier not in ("none", *METHODS, BEST):
        known = ", ".join(("none", *METHODS, BEST))
        raise ParameterError(
            'anti_outlier "{anti_outlier}" is unknown. Use one of {known}.',
            anti_outlier=recipe.anti_outlier,
            known=known,
        )
    return config


def _measured_by(source: Path, recipe: Recipe, samples: int) -> dict[str, Any]:
    """The fields of an `AppliedRecipe` that level auto measures by; a budget that it cannot work with is refused."""
    if recipe.level != AUTO:
        return {}
    parse_budget(recipe.budget, len(model_linear_names(read_config(source))))
    if recipe.budget_samples < 1:
        raise ParameterError(
            "budget_samples {budget_samples}: level auto measures on at least 1 sample.",
            budget_samples=recipe.budget_samples,
        )
    return {"budget": recipe.budget, "budget_samples": min(recipe.budget_samples, samples)}


def _made_of(source: Path, recipe: Recipe, vocabulary: int) -> dict[str, Any]:
    """The fields of an `AppliedRecipe` that say what method best is made of; the other methods have no such choice.

    Sets of them go without rotation where the network forbids it.
    """
    if recipe.anti_outlier != BEST:
        return {}
    used = parse_ingredients(recipe.ingredients, recipe.activations)
    if recipe.ingredients in SETS and ROTATION in used and why_not_r1(read_config(source)):
        used.remove(ROTATION)
    return {
        "ingredients": used,
        "split_channels": SPLIT_CHANNELS if SPLITTING in used else 0,
        "random_vocabulary": vocabulary if RANDOM_TOKENS in used else 0,
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))

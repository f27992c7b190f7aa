"""The kit's own recipes for the loss table, as `02_quantize` makes them."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from loss_row import Levels, Network, Quantized
from torch import Tensor

from telechat_kit import load_model
from telechat_kit.inference.whole_sequences import hidden_states
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.provenance import combined_hash
from telechat_kit.quantization import Calibration, Recipe
from telechat_kit.quantization import quantize as quantize_folder

PACKAGES = ("telechat-kit",)
#: Of both sides: an int8 tensor has no more values, and the kit's products take int8
LEVELS = 256


def load(folder: Path) -> Path:
    """The folder: the kit reads a block at a time."""
    return folder


def network(model: Path) -> Network:
    """The model of the folder."""
    return of_model(load_model(model, "cpu"))


def of_model(model: TelechatForCausalLM) -> Network:
    def states(ids: Tensor) -> Tensor:
        return torch.stack([hidden_states(model, [row])[0] for row in ids.tolist()])

    return Network(states, model.lm_head)


def quantize(model: Path, samples: Sequence[Sequence[int]], calibration: str, **recipe: Any) -> Quantized:
    """By the recipe, on `calibration`, which must give the samples that the other tools get."""
    scratch = TemporaryDirectory()  # goes with the process: the model is loaded when it is judged
    target = Path(scratch.name) / "w8a8"
    record = quantize_folder(model, target, Recipe(**recipe), Calibration(calibration), device="cpu")
    expected = combined_hash(" ".join(map(str, ids)) for ids in samples)
    if record.recipe is None or record.recipe.calibration_samples_sha256 != expected:
        raise ValueError("the kit calibrated on other ids than the other tools")
    int8 = sum(linear.kind != "FLOAT" for linear in record.linears)

    def judged() -> Network:
        with scratch:
            return of_model(load_model(target, "cpu"))

    return Quantized(judged, Levels(int8, LEVELS, LEVELS))

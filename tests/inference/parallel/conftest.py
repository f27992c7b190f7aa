"""Checkpoints with dynamic activations, and of halves that every operator takes, beside those of the whole suite."""

from pathlib import Path

import pytest

from telechat_kit.model.tiny import tiny_config, write_random
from telechat_kit.quantization import Calibration, Recipe, quantize

FEW = Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=32)


@pytest.fixture(scope="session")
def dynamic_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W8A8 form of `tiny_folder` whose activations are quantized token by token."""
    folder = tmp_path_factory.mktemp("quantized") / "dynamic"
    recipe = Recipe("L0", anti_outlier="m2", activations="dynamic")
    quantize(tiny_folder, folder, recipe, FEW, device="cpu")
    return folder


@pytest.fixture(scope="session")
def even_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Static and dynamic W8A8 forms of one small model whose 192 channels split into halves that operators take."""
    root = tmp_path_factory.mktemp("even")
    write_random(root / "float", tiny_config(ffn_hidden_size=192))
    for activations in ("static", "dynamic"):
        recipe = Recipe("L0", anti_outlier="m2", activations=activations)
        quantize(root / "float", root / activations, recipe, FEW, device="cpu")
    return root / "static", root / "dynamic"

"""A checkpoint with dynamic activations beside those of the whole suite."""

from pathlib import Path

import pytest

from telechat_kit.quantization import Calibration, Recipe, quantize


@pytest.fixture(scope="session")
def dynamic_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W8A8 form of `tiny_folder` whose activations are quantized token by token."""
    folder = tmp_path_factory.mktemp("quantized") / "dynamic"
    recipe = Recipe("L0", anti_outlier="m2", activations="dynamic")
    quantize(
        tiny_folder,
        folder,
        recipe,
        Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=32),
        device="cpu",
    )
    return folder

"""A checkpoint with dynamic activations beside those of the whole suite."""

from pathlib import Path

import pytest

from telechat_kit.quantization import quantize


@pytest.fixture(scope="session")
def dynamic_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W8A8 form of `tiny_folder` whose activations are quantized token by token."""
    folder = tmp_path_factory.mktemp("quantized") / "dynamic"
    options = {"level": "L0", "activations": "dynamic", "samples": 2, "tokens": 32, "device": "cpu"}
    quantize(tiny_folder, folder, anti_outlier="m2", **options)  # type: ignore[arg-type]
    return folder

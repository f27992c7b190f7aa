"""Checkpoint folders that the whole suite shares: each is built once a session and must not be changed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub

from telechat_kit.model.demo import build_demo
from telechat_kit.model.tiny import build_tiny
from telechat_kit.quantization import quantize

# networks this small only wait for each other's threads, fifty times longer than they work on a busy machine
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float checkpoint of random weights with a byte tokenizer, 4 blocks."""
    return build_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny_w8a8_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W8A8 form of `tiny_folder`: all linears int8, outliers suppressed."""
    folder = tmp_path_factory.mktemp("quantized") / "tiny-w8a8"
    quantize(tiny_folder, folder, level="L0", anti_outlier="m2", samples=4, tokens=64, device="cpu")
    return folder


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo checkpoint: 9 seconds and 590 MB, removed at the end."""
    folder = build_demo(tmp_path_factory.mktemp("demo") / "demo")
    yield folder
    shutil.rmtree(folder)

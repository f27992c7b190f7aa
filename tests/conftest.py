"""Checkpoint folders that the whole suite shares: each is built once a session and must not be changed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from grouped import grouped_config

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
# kernels and command lines that tests start: several processes whose threads wait for each other take many times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")

from telechat_kit.backends import choose_device
from telechat_kit.environment import check_setup
from telechat_kit.inference.model_pair import Pair
from telechat_kit.model.demo import build_demo
from telechat_kit.model.tiny import build_tiny, write_random
from telechat_kit.performance.cases import Grid
from telechat_kit.performance.measurement import measure_performance
from telechat_kit.precision import Evaluation, measure_precision
from telechat_kit.quantization import Calibration, Recipe, quantize
from telechat_kit.records import write_record
from telechat_kit.reports import write_report

# networks this small only wait for each other's threads, fifty times longer than they work on a busy machine
torch.set_num_threads(1)


#: Files of few tests that take minutes; the rest fills what time is left. Several processes take files in this order:
#: one of these taken last would leave the others without work
_FIRST = (
    "notebooks/test_npu_notebooks.py",
    "runs/test_endings.py",
    "notebooks/test_notebooks.py",
    "notebooks/test_given_weights.py",
    "runs/test_many.py",
    "quantization/test_streaming.py",
    "inference/parallel/test_npu_team.py",
    "test_api.py",
    "model/test_demo.py",
)


#: Marks of transformers' own tests, which `model/test_common_models.py` runs
_MARKS_OF_TRANSFORMERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "slow",
    "torch_compile_test",
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in _MARKS_OF_TRANSFORMERS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first (with --no-loadscope-reorder: xdist would take those of most tests first)."""
    place = {name: number for number, name in enumerate(_FIRST)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: place.get(item.path.relative_to(tests).as_posix(), len(place)))


@pytest.fixture(autouse=True)
def device_chosen_anew() -> Iterator[None]:
    """What `device: auto` found on a test's stand-ins is nothing to the next test of the process."""
    yield
    choose_device.cache_clear()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float checkpoint of random weights with a byte tokenizer, 4 blocks."""
    return build_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session", params=["telechat2", "telechat3"])
def grouped_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float checkpoint of random weights, 6 heads on 2 of keys and values, under both layouts' names."""
    folder = tmp_path_factory.mktemp("grouped") / request.param
    return write_random(folder, grouped_config(request.param, 6, 2))


@pytest.fixture(scope="session")
def grouped_w8a8_folder(grouped_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W8A8 form of `grouped_folder` by method best, all linears int8."""
    folder = tmp_path_factory.mktemp("grouped") / f"{grouped_folder.name}-w8a8"
    few = Calibration("pydoc_data.topics", calibration_samples=8, calibration_tokens=64)
    quantize(grouped_folder, folder, Recipe("L0", anti_outlier="best"), few, device="cpu")
    return folder


@pytest.fixture(scope="session")
def tiny_w8a8_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W8A8 form of `tiny_folder`: all linears int8, outliers suppressed."""
    folder = tmp_path_factory.mktemp("quantized") / "tiny-w8a8"
    quantize(
        tiny_folder,
        folder,
        Recipe(level="L0", anti_outlier="m2"),
        Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=64),
        device="cpu",
    )
    return folder


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo checkpoint: 9 seconds and 540 MB, removed at the end."""
    folder = build_demo(tmp_path_factory.mktemp("demo") / "demo")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tiny_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the five notebooks leave it, made by their verbs: four records, samples, report.html."""
    folder = tmp_path_factory.mktemp("results") / "tiny"
    weights = folder.parent / "tiny-w8a8"
    record = quantize(
        tiny_folder,
        weights,
        Recipe(level="L2", anti_outlier="m1"),
        Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=64),
        device="cpu",
    )
    questions = folder.parent / "questions.jsonl"
    questions.write_text(
        '{"input": "How are you?"}\n{"input": "<script>alert(1)</script>"}\n', encoding="utf-8"
    )
    write_record(folder, check_setup(tiny_folder, folder, "cpu"))
    write_record(folder, record)
    write_record(
        folder,
        measure_precision(
            tiny_folder,
            weights,
            Evaluation(
                questions,
                text_sequences=4,
                text_tokens=64,
                max_new_tokens=8,
                kind_sequences=2,
                kind_tokens=64,
                source_sequences=0,
            ),
            device="cpu",
        ),
    )
    write_record(
        folder,
        measure_performance(
            tiny_folder, weights, Grid([4, 16], [2], check_tokens=0), run_folder=folder, device="cpu"
        ),
    )
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def pair(tiny_folder: Path, tiny_w8a8_folder: Path) -> Pair:
    """Float and W8A8 form of the tiny model."""
    return Pair(tiny_folder, tiny_w8a8_folder, "cpu")

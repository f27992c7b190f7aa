"""Bytes and operations from the shapes, and the limit that follows from them."""

from pathlib import Path

import pytest
import torch

from telechat_kit.backends.data_sheets import SHEETS, data_sheet
from telechat_kit.inference.loading import load_model
from telechat_kit.performance.roofline import (
    ModelSize,
    Peaks,
    decode_seconds,
    higher,
    limit_tokens_per_second,
    measure_peaks,
    model_size,
    prefill_seconds,
)

#: 4 blocks of width 64, 176 wide inside, and a vocabulary of 262
BLOCK_WEIGHTS = 4 * (4 * 64 * 64 + 3 * 64 * 176)
SIZE = ModelSize("w8a8", 1000, 500, 100, 4000, 1000, 600, 20)


def test_the_sizes_are_those_of_the_tensors(tiny_folder: Path, tiny_w8a8_folder: Path) -> None:
    model = load_model(tiny_folder, "cpu")
    float_size = model_size("float", model, in_engine=False)
    w8a8_size = model_size("w8a8", load_model(tiny_w8a8_folder, "cpu"))
    assert model_size("float", model).read_bytes_per_token <= float_size.read_bytes_per_token
    assert float_size.weight_bytes >= 4 * (BLOCK_WEIGHTS + 262 * 64)
    assert float_size.read_bytes_per_token == float_size.weight_bytes  # the head is the embedding
    assert float_size.weight_bytes - w8a8_size.weight_bytes == pytest.approx(3 * BLOCK_WEIGHTS, rel=0.1)
    assert float_size.cache_bytes_per_token == w8a8_size.cache_bytes_per_token == 2 * 4 * 64 * 4


def test_operations_are_two_for_each_weight_of_a_linear(tiny_folder: Path, tiny_w8a8_folder: Path) -> None:
    float_size = model_size("float", load_model(tiny_folder, "cpu"))
    w8a8_size = model_size("w8a8", load_model(tiny_w8a8_folder, "cpu"))
    assert (float_size.int8_operations, float_size.float_operations) == (0, 2 * BLOCK_WEIGHTS)
    assert w8a8_size.int8_operations > 0
    assert w8a8_size.int8_operations + w8a8_size.float_operations == 2 * BLOCK_WEIGHTS
    assert float_size.head_operations == w8a8_size.head_operations == 2 * 262 * 64
    assert (
        float_size.attention_operations == 4 * 4 * 64
    )  # a score and a weighted value, for each of 64 channels


def test_without_operations_the_limit_is_the_time_to_read_weights_and_the_mean_cache() -> None:
    peaks = Peaks(34_000.0, "measured")
    seconds = (500 + 7 * (500 + 100 * (10 + 8 / 2))) / 34_000
    assert limit_tokens_per_second(SIZE, peaks, 10, 8) == pytest.approx(8 / seconds)


def test_a_prompt_is_bound_by_operations_and_a_token_by_bytes() -> None:
    peaks = Peaks(1000.0, "measured", int8_operations=40_000.0, float_operations=10_000.0)
    attention = 20 * 10 * 11 / 2
    assert prefill_seconds(SIZE, peaks, 10) == pytest.approx(
        10 * 4000 / 40_000 + (10 * 1000 + attention + 600) / 10_000
    )
    assert decode_seconds(SIZE, peaks, 5) == (500 + 5 * 100) / 1000


def test_a_batch_reads_the_weights_once_and_has_its_own_caches_and_operations() -> None:
    by_bytes = Peaks(1000.0, "measured")
    assert prefill_seconds(SIZE, by_bytes, 10, batch=8) == prefill_seconds(SIZE, by_bytes, 10)
    assert decode_seconds(SIZE, by_bytes, 5, batch=8) == (500 + 8 * 5 * 100) / 1000
    by_operations = Peaks(1e12, "measured", int8_operations=40_000.0, float_operations=10_000.0)
    for batch in (1, 8):
        seconds = batch * (4000 / 40_000 + (1000 + 600 + 20 * 5) / 10_000)
        assert decode_seconds(SIZE, by_operations, 5, batch) == pytest.approx(seconds)
    ratio = prefill_seconds(SIZE, by_operations, 10, 8) / prefill_seconds(SIZE, by_operations, 10)
    assert ratio == pytest.approx(8)
    seconds = (500 + 7 * (500 + 8 * 100 * (10 + 8 / 2))) / 1000
    assert limit_tokens_per_second(SIZE, by_bytes, 10, 8, batch=8) == pytest.approx(64 / seconds)


def test_the_peaks_of_this_processor_are_measured() -> None:
    peaks = measure_peaks(torch.device("cpu"))
    assert peaks.bandwidth > 1e8
    assert peaks.bandwidth_basis == "measured"
    assert peaks.operations_basis.startswith("measured")
    assert peaks.int8_operations is not None and peaks.int8_operations > 1e8
    assert peaks.float_operations is not None and peaks.float_operations > 1e8


def test_a_device_has_the_data_sheet_of_its_own_name_alone() -> None:
    assert data_sheet("Ascend310P3") is SHEETS[0]
    for name, sheet in (("NVIDIA A10", "A10"), ("NVIDIA A100-SXM4-80GB", "A100 80 GB"), ("Tesla T4", "T4")):
        found = data_sheet(name)
        assert found is not None and found.name == sheet
    assert data_sheet("NVIDIA A10G") is None
    assert len({sheet.device for sheet in SHEETS}) == len(SHEETS)


def test_the_higher_of_two_probes_counts() -> None:
    one, other = Peaks(2.0, "measured", 5.0, 1.0, "measured"), Peaks(3.0, "measured", 4.0, 2.0, "measured")
    assert higher(one, other) == Peaks(3.0, "measured", 5.0, 2.0, "measured")
    assert higher(one, Peaks(1.0, "measured")).int8_operations is None

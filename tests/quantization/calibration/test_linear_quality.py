"""Figures of linears taken while they are calibrated, against the same figures of whole tensors."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from telechat_kit.model.rotary import Rotary
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization import Calibration, Recipe, activation_range, quantize
from telechat_kit.quantization.blocks import Block, load_block
from telechat_kit.quantization.calibration.linear_quality import (
    TOKENS,
    LinearFigures,
    residual_noise,
    some_tokens,
)
from telechat_kit.quantization.calibration.passes import calibrate
from telechat_kit.quantization.int8.observers import MinMaxObserver, fake_quantize
from telechat_kit.quantization.int8.packing import fake_quantize_weight

QUERY, DOWN = "transformer.h.1.self_attention.query", "transformer.h.1.mlp.down_proj"


@pytest.fixture
def block(tiny_folder: Path) -> Block:
    shards = Shards(tiny_folder)
    return load_block(shards, 1, Rotary(shards.config), torch.device("cpu"))


def states(count: int, tokens: int = 24) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, tokens, 64, generator=generator) for _ in range(count)]


def figures_of(
    block: Block, samples: list[torch.Tensor], int8: list[str]
) -> tuple[dict[str, LinearFigures], list[torch.Tensor]]:
    figures = {name: LinearFigures() for name in block.linear_names}
    after = calibrate(block, samples, {name: MinMaxObserver() for name in int8}, figures)
    return figures, after


def test_signal_to_noise_is_that_of_the_linear_s_own_product(block: Block) -> None:
    samples = states(1)
    normed = block.submodule("transformer.h.1.input_layernorm")(samples[0])
    weight = block.parameter(f"{QUERY}.weight").data.clone()
    exact = functional.linear(normed, weight)
    int8 = functional.linear(
        fake_quantize(normed, *activation_range([normed], 1)), fake_quantize_weight(weight)
    )
    figures, _ = figures_of(block, samples, [QUERY])
    expected = 10 * math.log10(float(exact.square().sum() / (int8 - exact).square().sum()))
    assert figures[QUERY].output_snr_db == pytest.approx(expected, abs=0.01)
    assert figures[QUERY].absolute_maximum == normed.abs().max().item()
    assert torch.equal(block.parameter(f"{QUERY}.weight").data, weight)


def test_a_float_linear_has_an_input_and_no_noise(block: Block) -> None:
    figures, after = figures_of(block, states(2), [QUERY])
    assert figures[DOWN].absolute_maximum > 0
    assert (figures[DOWN].output_snr_db, figures[DOWN].clipped_share) == (None, None)
    assert set(residual_noise(block, figures, after)) == {QUERY}


def test_clipped_are_the_values_that_the_range_of_their_time_cuts_off(block: Block) -> None:
    small, large = states(2)
    samples = [small, large * 3]
    norm = block.submodule("transformer.h.1.input_layernorm")
    inputs = [norm(sample) for sample in samples]
    inputs[1][0, 3, 5] = 40.0
    taken = LinearFigures()
    clipped = 0
    for seen in (1, 2):
        scale, offset = activation_range(inputs[:seen], 1)
        taken.take_input(inputs[seen - 1])
        taken.take_range(inputs[seen - 1], scale, offset)
        step = torch.round(inputs[seen - 1] / scale + offset)
        clipped += int(((step < -128) | (step > 127)).sum())
    assert clipped > 0
    assert taken.clipped_share == clipped / (inputs[0].numel() + inputs[1].numel())


def test_noise_of_down_proj_in_the_residual_stream_is_exact(block: Block) -> None:
    samples = states(3)
    exact = block.run(samples)
    figures, after = figures_of(block, samples, [DOWN])
    expected = torch.cat(
        [(a - e).square().sum(-1)[0] / a.square().sum(-1)[0] for a, e in zip(after, exact, strict=True)]
    ).mean()
    assert residual_noise(block, figures, after)[DOWN] == pytest.approx(float(expected), rel=1e-3)


def test_of_long_samples_some_tokens_are_compared_and_the_first_weighs_as_any() -> None:
    x = torch.arange(8 * TOKENS).view(1, -1, 1)
    drawn = [some_tokens(x, sample) for sample in range(8)]
    assert {len(rows) for rows in drawn} == {TOKENS}
    assert torch.equal(torch.cat(drawn).flatten().sort().values, x.flatten())


def test_figures_stand_in_the_record(tiny_folder: Path, tmp_path: Path) -> None:
    record = quantize(
        tiny_folder,
        tmp_path / "w8a8",
        Recipe(level="L1", anti_outlier="m1"),
        Calibration("pydoc_data.topics", calibration_samples=3, calibration_tokens=48),
    )
    for linear in record.linears:
        assert linear.input_absmax > 0
        if linear.kind == "W8A8":
            assert linear.low is not None and linear.high is not None
            assert linear.input_absmax >= max(linear.high, -linear.low)  # the range is a mean over samples
            assert 20 < linear.output_snr_db < 60  # type: ignore[operator]
            assert 0 <= linear.clipped_share < 0.05  # type: ignore[operator]
            assert linear.residual_noise > 0  # type: ignore[operator]
        else:
            assert linear.output_snr_db is linear.clipped_share is linear.residual_noise is None

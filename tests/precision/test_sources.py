"""Where the loss comes from, on the tiny model: against outputs computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from telechat_kit.inference.model_pair import Pair
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.weight_shards import Shards
from telechat_kit.precision import measure_divergence, measure_sources
from telechat_kit.precision.channel_scales import block_bases, dense_weight, split_alike
from telechat_kit.quantization import Calibration, Recipe, quantize
from telechat_kit.quantization.blocks import Block as QuantBlock
from telechat_kit.quantization.blocks import load_block
from telechat_kit.token_samples import Block


def blocks(count: int, length: int) -> list[Block]:
    ids = np.random.default_rng(count).integers(6, 262, size=(count, length))
    return [Block(0, length, tuple(row.tolist())) for row in ids]


@pytest.fixture(scope="module")
def smoothed(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Norms, up_proj and values smoothed, channels split, some linears kept in float: every change of channels that the kit makes."""
    folder = tmp_path_factory.mktemp("best") / "w8a8"
    quantize(
        tiny_folder,
        folder,
        Recipe(level="L2", anti_outlier="best"),
        Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=64),
        device="cpu",
    )
    return Pair(tiny_folder, folder, "cpu")


def test_the_channels_of_outlier_suppression_are_found_again(smoothed: Pair) -> None:
    """Scaled ones by their factor, split ones by their copies."""
    rotary = Rotary(smoothed.configs["float"])
    floats = load_block(Shards(smoothed.float_folder), 1, rotary, smoothed.device)
    own = QuantBlock(1, smoothed.models["w8a8"].transformer.h[1], rotary)
    split_alike(floats, own)
    bases = block_bases(floats, own)
    for name, basis in bases.items():
        expected = (
            floats.module.get_submodule(name).weight * basis.scale / torch.atleast_1d(basis.out)[:, None]
        )
        found = dense_weight(own.module.get_submodule(name))
        assert (found - expected).norm() / expected.norm() < 0.02, name
    for name in ("mlp.down_proj", "self_attention.dense"):
        assert float((bases[name].scale - 1).detach().abs().max()) > 0.05


def test_the_noise_of_a_linear_is_that_of_its_output(smoothed: Pair) -> None:
    """The first linear of the network: its input is the same in both models, so both networks give the answer."""
    text = blocks(2, 30)
    seen = {}
    for name, model in smoothed.models.items():
        query = model.transformer.h[0].self_attention.query
        outputs: list[torch.Tensor] = []
        handle = query.register_forward_hook(lambda *call, kept=outputs: kept.append(call[2]))
        with torch.inference_mode():
            for block in text:
                model(torch.tensor([block.ids]))
        handle.remove()
        seen[name] = torch.cat(outputs).double()
    found = {linear.name: linear for linear in measure_sources(smoothed, text, 2, 30, 0).linears}
    query = found["transformer.h.0.self_attention.query"]
    noise = (seen["float"] - seen["w8a8"]).square().sum() / seen["float"].square().sum()
    assert query.kind == "W8A8"
    assert query.output_snr == pytest.approx(-10 * float(noise.log10()), abs=0.01)


def test_every_linear_is_there_and_the_shares_add_up(smoothed: Pair) -> None:
    found = measure_sources(smoothed, blocks(3, 30), 2, 20, 2)
    assert (found.sequences, found.tokens) == (2, 38)
    assert len(found.linears) == 6 * 4
    assert len(found.blocks) == 4
    assert sum(linear.estimated_share for linear in found.linears) == pytest.approx(1.0)
    for linear in found.linears:
        if linear.kind == "FLOAT":
            assert (linear.output_snr, linear.effect) == (None, 0.0)
        else:
            assert linear.output_snr is not None and linear.output_snr > 10, linear.name
            assert linear.low is not None and linear.high is not None and linear.low < 0 < linear.high
    assert any(linear.kind == "FLOAT" for linear in found.linears)


def test_the_share_of_clipped_inputs_is_counted(tiny_folder: Path, tiny_w8a8_folder: Path) -> None:
    pair = Pair(tiny_folder, tiny_w8a8_folder, "cpu")
    linear = pair.models["w8a8"].transformer.h[0].self_attention.key_value
    assert isinstance(linear, W8A8Linear)
    linear.input_scale /= 1e6  # every value but 0 is now outside
    found = {one.name: one for one in measure_sources(pair, blocks(2, 20), 2, 20, 0).linears}
    assert found["transformer.h.0.self_attention.key_value"].clipped == pytest.approx(1.0, abs=0.01)
    assert found["transformer.h.0.self_attention.query"].clipped == pytest.approx(0.0, abs=0.01)


def test_a_model_beside_itself_has_no_noise(tiny_folder: Path) -> None:
    found = measure_sources(Pair(tiny_folder, tiny_folder, "cpu"), blocks(2, 20), 2, 20)
    assert {block.relative_error.value for block in found.blocks} == {0.0}
    assert found.kl_mean.value == 0.0
    assert found.kept == []


def test_putting_linears_back_to_float_is_measured_and_undone(smoothed: Pair) -> None:
    text = blocks(3, 30)
    before = measure_divergence(smoothed, text)
    everything = measure_sources(smoothed, text, 3, 30, candidates=100)
    assert measure_divergence(smoothed, text) == before
    int8 = [linear.name for linear in everything.linears if linear.kind == "W8A8"]
    assert sorted(name for kept in everything.kept for name in kept.names) == sorted(int8)
    for kept in everything.kept:
        assert kept.kl_change.value == pytest.approx(kept.kl_mean.value - everything.kl_mean.value)
        assert kept.estimated_share > 0
    assert min(kept.kl_change.value for kept in everything.kept) < 0
    assert sum(kept.kl_change.value for kept in everything.kept) < -0.3 * everything.kl_mean.value


def test_one_model_at_a_time_finds_the_same_sources(smoothed: Pair) -> None:
    short = Pair(smoothed.float_folder, smoothed.w8a8_folder, "cpu", memory="one")
    text = blocks(2, 20)
    assert measure_sources(short, text, 2, 20, 1) == measure_sources(smoothed, text, 2, 20, 1)

"""Scales folded into a network keep what it computes, whatever feeds a group; dynamic calibration is what will run."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from telechat_kit import load_model
from telechat_kit.errors import DataError
from telechat_kit.model.int8_linears import DynamicW8A8Linear
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.blocks import Block, embed, load_block
from telechat_kit.quantization.calibration.groups import value_rows
from telechat_kit.quantization.calibration.linear_quality import LinearFigures
from telechat_kit.quantization.calibration.passes import calibrate_dynamic, fold, smoothing_scales
from telechat_kit.quantization.int8.packing import pack_dynamic_linear

CPU = torch.device("cpu")
IDS = [torch.randint(6, 262, (1, 40), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
FEEDERS = {
    "m1": {"input_layernorm", "post_attention_layernorm"},
    "m3": {"input_layernorm", "post_attention_layernorm"},
    "m4": {"input_layernorm", "post_attention_layernorm", "mlp.up_proj", "self_attention.key_value"},
}


def block_of(folder: Path, index: int) -> Block:
    shards = Shards(folder)
    return load_block(shards, index, Rotary(shards.config), CPU)


def states_with_outliers(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(1, 24, 64, generator=generator) for _ in range(3)]
    for state in states:
        state[..., 5] *= 30
    return states


@pytest.mark.parametrize("method", FEEDERS)
def test_the_folded_float_model_computes_what_the_original_does(method: str, tiny_folder: Path) -> None:
    model, folded = (load_model(tiny_folder, device="cpu") for _ in range(2))
    shards = Shards(tiny_folder)
    states = embed(shards, IDS, CPU)
    for index, module in enumerate(folded.transformer.h):
        block = load_block(shards, index, Rotary(shards.config), CPU)
        scales, states = smoothing_scales(block, states, method)
        assert {name.removeprefix(block.prefix) for name in scales} == FEEDERS[method]
        if method != "m3":  # which may find that a group needs no scale
            assert all((scale / scale.mean() - 1).abs().max() > 0.1 for scale in scales.values())
        fold(block, scales)
        module.load_state_dict(block.module.state_dict())
    with torch.inference_mode():
        for ids in IDS:
            expected = model(ids).logits
            difference = (folded(ids).logits - expected).abs().max()
            assert 0 < difference < 2e-5 * expected.abs().max()


def test_values_follow_the_keys_of_their_head(tiny_folder: Path) -> None:
    block = block_of(tiny_folder, 0)
    rows = value_rows(block)
    assert rows[:17].tolist() == [*range(16, 32), 48]  # 4 heads of 16 channels
    assert len(set(rows.tolist())) == 64
    fold(block, {"transformer.h.0.self_attention.key_value": torch.full((64,), 2.0)})
    before = block_of(tiny_folder, 0).module.self_attention
    after = block.module.self_attention
    halved = (after.key_value.weight / before.key_value.weight).view(4, 2, 16, 64)
    assert halved[:, 0].unique().tolist() == [1.0]
    assert halved[:, 1].unique().tolist() == [0.5]
    assert torch.equal(after.dense.weight, before.dense.weight * 2)


def test_m4_evens_out_what_no_norm_feeds(tiny_folder: Path) -> None:
    block = block_of(tiny_folder, 1)
    down = block.module.mlp.down_proj.weight
    down.data[:, 7] /= 100  # a channel of small weights and large activations
    block.module.mlp.up_proj.weight.data[7] *= 100
    scales, _ = smoothing_scales(block, states_with_outliers(), "m4")
    assert scales["transformer.h.1.mlp.up_proj"].argmax() == 7


def test_dynamic_calibration_is_what_the_int8_block_computes(tiny_folder: Path) -> None:
    block, states = block_of(tiny_folder, 1), states_with_outliers()
    weights = {name: value.clone() for name, value in block.module.state_dict().items()}
    int8 = [name for name in block.linear_names if not name.endswith("up_proj")]
    figures = {name: LinearFigures() for name in block.linear_names}
    simulated = calibrate_dynamic(block, states, int8, figures)
    assert all(torch.equal(value, weights[name]) for name, value in block.module.state_dict().items())
    exact = block.run(states)
    for name in int8:
        linear = block.submodule(name)
        assert isinstance(linear, torch.nn.Linear)
        bias = None if linear.bias is None else linear.bias.data
        packed = pack_dynamic_linear(linear.weight.data, bias)
        block.module.set_submodule(name.removeprefix(block.prefix), DynamicW8A8Linear(packed))
    for ours, real, unquantized in zip(simulated, block.run(states), exact, strict=True):
        error = (unquantized - real).abs().mean()
        assert (ours - real).abs().mean() < 0.1 * error  # the same up to a step here and there


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_dynamic_activations_that_are_not_finite_are_named(value: float, tiny_folder: Path) -> None:
    block = block_of(tiny_folder, 1)
    block.module.post_attention_layernorm.weight.data[3] = value
    with pytest.raises(DataError, match=r"input of transformer\.h\.1\.mlp\.gate_proj: .*not finite"):
        calibrate_dynamic(block, states_with_outliers(), block.linear_names, {})

"""TeleChat2 and TeleChat3, 6 heads on 2 of keys and values, from float to W8A8 and through all that reads it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from telechat_kit import load_model
from telechat_kit.inference.engine import engine_for, unsuited
from telechat_kit.inference.generation import generate
from telechat_kit.inference.model_pair import Pair
from telechat_kit.model.folder import read_config
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.weight_shards import Shards
from telechat_kit.precision import evaluation_blocks, measure_sources
from telechat_kit.quantization import Calibration, Recipe, export, quantize
from telechat_kit.quantization.blocks import Block, embed, load_block
from telechat_kit.quantization.calibration.groups import all_groups, value_columns, value_rows
from telechat_kit.quantization.calibration.passes import fold, smoothing_scales
from telechat_kit.quantization.formats.conversion import FORMATS

CPU = torch.device("cpu")
IDS = torch.arange(40)[None] * 5 % 251 + 6
FEW = Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=48)


@torch.inference_mode()
def logits(folder: Path, model_path: Path | None = None) -> Tensor:
    return load_model(folder, device="cpu", model_path=model_path)(IDS).logits


def block_of(folder: Path) -> Block:
    shards = Shards(folder)
    return load_block(shards, 1, Rotary(shards.config), CPU)


@pytest.mark.parametrize("method", ["m1", "m2", "m3", "m4", "best"])
def test_folding_keeps_the_function_with_one_value_scale_for_a_group(
    method: str, grouped_folder: Path
) -> None:
    block = block_of(grouped_folder)
    states = embed(Shards(grouped_folder), [IDS, IDS.flip(1)], CPU)
    scales, after = smoothing_scales(block, states, method)
    value = block.prefix + block.layout.value
    assert (value in scales) == (method in ("m4", "best"))
    if value in scales:
        assert scales[value].shape == (2 * 16,)
    fold(block, scales)
    for folded, plain in zip(block.run(states), after, strict=True):
        torch.testing.assert_close(folded, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def test_all_heads_of_a_group_read_the_same_value_channels(grouped_folder: Path) -> None:
    block = block_of(grouped_folder)
    columns = value_columns(block).view(6, 16)
    assert torch.equal(columns[:3], torch.arange(16).expand(3, -1))
    assert torch.equal(columns[3:], torch.arange(16, 32).expand(3, -1))
    interleaved = [*range(16, 32), *range(48, 64)]
    separate = list(range(32))
    assert value_rows(block).tolist() == (interleaved if grouped_folder.name == "telechat2" else separate)


def test_linears_that_read_one_input_form_a_group(grouped_folder: Path) -> None:
    block = block_of(grouped_folder)
    names = [name.removeprefix(block.prefix) for name in all_groups(block)[block.prefix + "input_layernorm"]]
    assert (
        names
        == {
            "telechat2": ["self_attention.query", "self_attention.key_value"],
            "telechat3": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        }[grouped_folder.name]
    )


def test_w8a8_stays_close_to_float_and_generates(grouped_folder: Path, grouped_w8a8_folder: Path) -> None:
    exact, close = logits(grouped_folder), logits(grouped_w8a8_folder)
    assert 0 < (close - exact).norm() < 0.2 * exact.norm()
    model = load_model(grouped_w8a8_folder, device="cpu")
    assert unsuited(model) is None
    prompt = IDS[0, :20].tolist()
    fast, slow = generate(model, prompt, 24).token_ids, model.generate(
        IDS[:, :20], attention_mask=torch.ones(1, 20), max_new_tokens=24, do_sample=False, eos_token_id=None
    )  # fmt: skip
    assert fast == slow[0, 20:].tolist()
    engine = engine_for(model)
    assert engine is not None and engine.cache_bytes_per_position == 2 * 4 * 3 * 2 * 16


def test_the_folder_keeps_the_names_of_its_form(grouped_w8a8_folder: Path) -> None:
    config = read_config(grouped_w8a8_folder)
    assert config.kv_heads == 2
    assert config.ffn_hidden_size == 176 + 32  # by splitting
    described = (grouped_w8a8_folder / "quant_model_description_w8a8.json").read_text()
    name = {
        "telechat": "transformer.h.0.self_attention.key_value",
        "telechat3": "model.layers.0.self_attn.k_proj",
    }
    assert f'"{name[config.model_type]}.weight": "W8A8"' in described


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_the_same_logits(format: str, grouped_w8a8_folder: Path, tmp_path: Path) -> None:
    export(grouped_w8a8_folder, tmp_path / "out", format)
    beside = tmp_path / "out" / "float" if format == "numpy" else None
    assert torch.equal(logits(tmp_path / "out", beside), logits(grouped_w8a8_folder))


def test_a_linear_in_float_keeps_those_of_its_input_in_float(grouped_folder: Path, tmp_path: Path) -> None:
    prefix = block_of(grouped_folder).prefix
    name = prefix + block_of(grouped_folder).layout.query
    record = quantize(grouped_folder, tmp_path / "w8a8", Recipe(name, anti_outlier="m1"), FEW, device="cpu")
    kept = {linear.name for linear in record.float_linears}
    assert kept == {prefix + linear for linear in block_of(grouped_folder).layout.shared_inputs[0]}
    exact = logits(grouped_folder)
    assert (logits(tmp_path / "w8a8") - exact).norm() < 0.3 * exact.norm()


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("level", ["L2", "auto"])
def test_levels_and_dynamic_activations_take_both_forms(
    level: str, activations: str, grouped_folder: Path, tmp_path: Path
) -> None:
    recipe = Recipe(level, anti_outlier="best", activations=activations, budget="3 linears")
    record = quantize(grouped_folder, tmp_path / "w8a8", recipe, FEW, device="cpu")
    assert len(record.linears) == 3 * (6 if grouped_folder.name == "telechat2" else 7)
    exact = logits(grouped_folder)
    assert (logits(tmp_path / "w8a8") - exact).norm() < 0.2 * exact.norm()


def test_the_sources_of_the_loss_are_found(grouped_folder: Path, grouped_w8a8_folder: Path) -> None:
    pair = Pair(grouped_folder, grouped_w8a8_folder, "cpu")
    text = evaluation_blocks(pair, "pydoc_data.topics", 32, 2, 0)
    found = measure_sources(pair, text, candidates=1)
    assert len(found.kept) == 1
    assert all(source.output_snr is not None and source.output_snr > 15 for source in found.linears)

"""Whole pipelines against those of the reference tool on small TeleChat-like models, and the folder they leave."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import telechat_kit
from telechat_kit.errors import CheckpointError, DataError, ParameterError
from telechat_kit.model import TelechatConfig, TelechatForCausalLM
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization import Calibration, Recipe, int8_linear, quantize
from telechat_kit.quantization.blocks import load_block
from telechat_kit.quantization.calibration.passes import fold, sensitivity, smoothing_scales
from telechat_kit.quantization.recipe import AppliedRecipe
from telechat_kit.quantization.streaming import Quantized, quantize_blocks

GOLDEN = Path(__file__).parents[1] / "data" / "quantization"
PIPELINES = sorted(path.stem for path in GOLDEN.glob("pipe_*.json") if "bf16" not in path.stem)


def golden_shards(name: str, folder: Path) -> Shards:
    """The golden model as a checkpoint folder."""
    shape = json.loads((GOLDEN / f"{name}.json").read_text())
    config = TelechatConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        ffn_hidden_size=shape["ffn_hidden_size"],
        training_seqlen=512,
        base_seqlen=512,
        rope_table_dtype="float32",
        tie_word_embeddings=False,
    )
    model = TelechatForCausalLM(config)
    model.load_state_dict(load_file(GOLDEN / f"{name}.safetensors"), strict=True)
    model.save_pretrained(folder)
    return Shards(folder)


def packed_linears(result: Quantized, blocks: int) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of the int8 linears by the name of the linear."""
    packed: dict[str, dict[str, torch.Tensor]] = {}
    for index in range(blocks):
        for key, tensor in result.blocks.tensors(index).items():
            packed.setdefault(key.rpartition(".")[0], {})[key.rpartition(".")[2]] = tensor
    return {name: parts for name, parts in packed.items() if "quant_bias" in parts}


def recipe(anti_outlier: str, act_method: int, level: str, group_fallback: bool = False) -> AppliedRecipe:
    return AppliedRecipe(level, anti_outlier, act_method, group_fallback, "golden", "", [], 0, "", "")


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_gives_the_tensors_of_the_reference(name: str, tmp_path: Path) -> None:
    facts, golden = (
        json.loads((GOLDEN / f"{name}.json").read_text()),
        load_file(GOLDEN / f"{name}.safetensors"),
    )
    shards = golden_shards(f"model_{name.split('_')[1]}", tmp_path / "float")
    calibration = [golden[f"in.calib{i}"] for i in range(sum(key.startswith("in.calib") for key in golden))]

    result = quantize_blocks(
        shards,
        calibration,
        recipe(facts["anti_method"] or "none", facts["act_method"], facts["disable_level"]),
        tmp_path / "work",
        torch.device("cpu"),
    )
    packed = packed_linears(result, shards.config.n_layer)

    assert {linear.name for linear in result.float_linears} | {"lm_head"} == set(facts["rollback"])
    saved = {key.removeprefix("saved."): value for key, value in golden.items() if key.startswith("saved.")}
    assert {name for name in packed if f"{name}.quant_bias" in saved} == set(packed)
    for linear, tensors in packed.items():
        for part, tensor in tensors.items():
            close_to_saved(part, tensor, saved[f"{linear}.{part}"])


def close_to_saved(part: str, ours: torch.Tensor, saved: torch.Tensor) -> None:
    assert (ours.dtype, ours.shape) == (saved.dtype, saved.shape), part
    if part == "weight":  # another ulp in the smoothing scale may move a value over the edge of a step
        assert (ours.int() - saved.int()).abs().max() <= 1
        assert (ours != saved).float().mean() < 0.01
    elif part == "deq_scale":
        torch.testing.assert_close(
            ours.int().view(torch.float32), saved.int().view(torch.float32), rtol=1e-5, atol=0
        )
    elif part == "quant_bias":  # sums of weights that may differ by one, times an offset of up to 128
        assert (ours - saved).abs().max() <= 256
    else:
        torch.testing.assert_close(ours, saved, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def quantized(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "w8a8"
    quantize(
        tiny_folder,
        folder,
        Recipe(level="L2", anti_outlier="m1"),
        Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=48),
    )
    return folder


def test_folder_stands_alone(quantized: Path, tiny_folder: Path) -> None:
    names = {path.name for path in quantized.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "quantize.json",
        "tokenizer.json",
        "quant_model_weight_w8a8.safetensors",
        "quant_model_description_w8a8.json",
    }
    assert "model.safetensors" not in names
    config = json.loads((quantized / "config.json").read_text())
    assert (config["quantize"], config["torch_dtype"]) == ("w8a8", "float32")
    kept = json.loads((quantized / "quantize.json").read_text())
    assert len(kept["float_linears"]) >= 2
    assert len(kept["recipe"]["source_weights"]) == 64


def test_loaded_model_runs_int8_weights_and_equals_the_integer_reference(quantized: Path) -> None:
    model = telechat_kit.load_model(quantized)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, W8A8Linear)}
    assert len(linears) == 4 * 6 - 2
    assert all(linear.weight.dtype == torch.int8 for linear in linears.values())
    tensors = load_file(quantized / "quant_model_weight_w8a8.safetensors")
    name, linear = "h.1.mlp.gate_proj", linears["transformer.h.1.mlp.gate_proj"]
    x = torch.randn(3, 5, 64)
    packed = {key.rsplit(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
    torch.testing.assert_close(linear(x), int8_linear(x, packed), rtol=1e-6, atol=1e-6)


def test_w8a8_stays_near_the_float_model(quantized: Path, tiny_folder: Path) -> None:
    ids = torch.arange(6, 70)[None]
    with torch.inference_mode():
        ours, float_logits = (
            telechat_kit.load_model(folder)(ids).logits for folder in (quantized, tiny_folder)
        )
    assert (ours - float_logits).std() / float_logits.std() < 0.25  # unrelated logits give 1.4


# m4's exponent lets single activations decide: over few tokens it finds ranges that others leave
@pytest.mark.parametrize(("method", "samples"), [("m3", 4), ("m4", 32)])
def test_other_methods_stay_near_the_float_model(
    method: str, samples: int, tiny_folder: Path, tmp_path: Path
) -> None:
    quantize(
        tiny_folder,
        tmp_path / "w8a8",
        Recipe(level="L2", anti_outlier=method),
        Calibration("pydoc_data.topics", calibration_samples=samples, calibration_tokens=48),
    )
    ids = torch.arange(6, 70)[None]
    with torch.inference_mode():
        ours, float_logits = (
            telechat_kit.load_model(folder)(ids).logits for folder in (tmp_path / "w8a8", tiny_folder)
        )
    assert (ours - float_logits).std() / float_logits.std() < 0.25


def test_m3_scales_by_the_first_sample_alone(tmp_path: Path) -> None:
    shards = golden_shards("model_A", tmp_path / "float")
    golden = load_file(GOLDEN / "pipe_A_m1_act1_L2.safetensors")
    first, *others = (golden[f"in.calib{i}"] for i in range(4))
    weights, scales = [], []
    for number, calibration in enumerate(([first, *others], [first, others[0]], [*others, first])):
        work = tmp_path / f"work-{number}"
        result = quantize_blocks(shards, calibration, recipe("m3", 1, "L0"), work, torch.device("cpu"))
        packed = packed_linears(result, shards.config.n_layer)
        weights.append(torch.cat([parts["weight"].flatten() for parts in packed.values()]))
        scales.append(torch.cat([parts["input_scale"] for parts in packed.values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(scales[0], scales[1])  # ranges are those of all samples
    assert not torch.equal(weights[0], weights[2])


def test_equal_inputs_give_equal_bytes(quantized: Path, tiny_folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    quantize(
        tiny_folder,
        again,
        Recipe(level="L2", anti_outlier="m1"),
        Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=48),
    )
    for path in quantized.iterdir():
        assert (
            hashlib.sha256(path.read_bytes()).digest()
            == hashlib.sha256((again / path.name).read_bytes()).digest()
        )


def test_linears_that_share_an_input_stay_in_float_together(tmp_path: Path) -> None:
    shards = golden_shards("model_A", tmp_path / "float")
    golden = load_file(GOLDEN / "pipe_A_m1_act1_L2.safetensors")
    calibration = [golden[f"in.calib{i}"] for i in range(4)]
    result = quantize_blocks(
        shards,
        calibration,
        recipe("m1", 1, "L1", group_fallback=True),
        tmp_path / "work",
        torch.device("cpu"),
    )
    names = [linear.name for linear in result.float_linears]
    assert len(names) == 2
    assert result.float_linears[1].reason == f"shares an input with {names[0]}"


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        (Recipe(level="5"), ParameterError, 'level "5" is unknown'),
        (Recipe(level="L25"), ParameterError, "the model has 24"),
        (Recipe(anti_outlier="m9"), ParameterError, "m9"),
        (Recipe(act_method=4), ParameterError, "4"),
    ],
)
def test_a_bad_recipe_is_named_and_leaves_nothing(
    recipe: Recipe, error: type[Exception], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        quantize(
            tiny_folder,
            tmp_path / "w8a8",
            recipe,
            Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
        )
    assert list(tmp_path.iterdir()) == []


def test_too_little_text_or_no_checkpoint_is_named_and_leaves_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="free blocks of 48 tokens"):
        quantize(
            tiny_folder,
            tmp_path / "w8a8",
            calibration=Calibration("pydoc_data.topics", calibration_samples=10**6, calibration_tokens=48),
        )
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        quantize("nowhere", tmp_path / "w8a8")
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_folder_is_refused_as_float(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantized already"):
        quantize(
            quantized,
            tmp_path / "w8a8",
            Recipe(anti_outlier="m1"),
            Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
        )


def test_a_folder_with_other_files_is_not_overwritten(tiny_folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(CheckpointError, match="holds other files"):
        quantize(
            tiny_folder,
            tmp_path,
            Recipe(anti_outlier="m1"),
            Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
        )
    assert precious.read_text() == "years of work"


def test_best_smoothing_keeps_the_function_of_a_block_and_evens_out_its_inputs(tiny_folder: Path) -> None:
    shards = Shards(tiny_folder)
    states = [torch.randn(1, 24, 64) for _ in range(3)]
    states[0][..., 5] *= 30
    block, folded = (load_block(shards, 1, Rotary(shards.config), torch.device("cpu")) for _ in range(2))
    scales, before = smoothing_scales(folded, states, "best")
    fold(folded, scales)
    assert set(scales) == {
        "transformer.h.1.input_layernorm",
        "transformer.h.1.post_attention_layernorm",
        "transformer.h.1.mlp.up_proj",
        "transformer.h.1.self_attention.key_value",
    }
    torch.testing.assert_close(folded.run(states), block.run(states), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(before, block.run(states))
    name = "transformer.h.1.mlp.down_proj"
    assert sensitivity(folded, states)[name] < sensitivity(block, states)[name]

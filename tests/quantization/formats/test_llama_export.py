"""Exports under Llama's names: transformers' Llama gives the kit's logits, and every int8 linear the kit's integers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from damaged_folder import change_json, change_tensors
from grouped import grouped_config
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from telechat_kit.cli import cli
from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.inference.loading import load_model
from telechat_kit.model.compressed_tensors import computed
from telechat_kit.model.int8_linears import DynamicW8A8Linear, W8A8Linear
from telechat_kit.model.tiny import write_random
from telechat_kit.model.w8a8 import linear_names
from telechat_kit.quantization import Calibration, Recipe, export, quantize

DATA = Path(__file__).parents[2] / "data"
#: Golden float models and the trained length of each; their tables are rounded to float16 unless told otherwise
GOLDEN = {"model/7b-small": 8192, "model/12b-small": 8192, "model-telechat2/115b-small": 8192}
IDS = torch.arange(4, 44)[None]
FEW = Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=64)


def logits(model: torch.nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return model(ids).logits


def exported(folder: Path, target: Path, form: str, **options: Any) -> Path:
    export(folder, target, form, names="llama", **options)
    return target


def int8_llama(folder: Path) -> LlamaForCausalLM:
    """transformers' Llama of an exported folder; its int8 linears are the kit's, made of what the folder holds."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(config)).eval()
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    for name in linear_names(model):
        if tensors[f"{name}.weight"].dtype == torch.int8:
            parts = {
                key.removeprefix(f"{name}."): tensors.pop(key)
                for key in list(tensors)
                if key.startswith(f"{name}.")
            }
            if "input_zero_point" in parts:
                parts["input_offset"] = parts.pop("input_zero_point")
                parts |= computed(parts)
            model.set_submodule(name, W8A8Linear(parts) if "deq_scale" in parts else DynamicW8A8Linear(parts))
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unknown
    return model


@pytest.mark.parametrize("case", GOLDEN)
def test_a_float_checkpoint_gives_the_logits_of_llama_but_for_rounded_tables(
    case: str, tmp_path: Path
) -> None:
    model = load_model(DATA / case, "cpu")
    found = exported(DATA / case, tmp_path / "llama", "float")
    llama = AutoModelForCausalLM.from_pretrained(found)
    assert llama.config.max_position_embeddings == GOLDEN[case]
    torch.testing.assert_close(logits(llama), logits(model), rtol=0, atol=2e-2)
    model.config.rope_table_dtype = "float32"
    model.transformer.rotary._tables = None
    torch.testing.assert_close(logits(llama), logits(model), rtol=1e-5, atol=1e-4)
    assert "float16" in " ".join(json.loads((found / "export.json").read_text())["notes"])


@pytest.mark.parametrize("case", ["36b-small", "small-original"])
def test_telechat3_is_a_llama_with_yarn(case: str, tmp_path: Path) -> None:
    folder = DATA / "model-telechat3" / case
    llama = AutoModelForCausalLM.from_pretrained(exported(folder, tmp_path / "llama", "float"))
    torch.testing.assert_close(logits(llama), logits(load_model(folder, "cpu")), rtol=1e-5, atol=1e-4)


def test_the_ntk_base_of_7b_is_folded_into_rope_theta(tmp_path: Path) -> None:
    config = json.loads(
        (exported(DATA / "model/7b-small", tmp_path / "llama", "float") / "config.json").read_text()
    )
    dim = config["head_dim"]
    assert config["rope_theta"] == pytest.approx(10000 * 3 ** (dim / (dim - 2)))
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")


def test_biases_are_written_where_there_are_some(tmp_path: Path, tiny_folder: Path) -> None:
    folder = write_random(tmp_path / "biased", grouped_config("telechat2", 6, 2))
    change_tensors(folder / "model.safetensors", lambda t: t["transformer.h.1.mlp.down_proj.bias"].fill_(0.5))
    llama = AutoModelForCausalLM.from_pretrained(exported(folder, tmp_path / "llama", "float"))
    assert (llama.config.attention_bias, llama.config.mlp_bias) == (False, True)
    assert llama.model.layers[1].mlp.down_proj.bias.unique().tolist() == [0.5]
    assert not llama.model.layers[1].mlp.gate_proj.bias.any()


@pytest.mark.parametrize("form", ["ascendV1", "compressed-tensors"])
def test_every_int8_linear_keeps_its_integers(form: str, grouped_w8a8_folder: Path, tmp_path: Path) -> None:
    own = load_model(grouped_w8a8_folder, "cpu")
    llama = int8_llama(exported(grouped_w8a8_folder, tmp_path / form, form))
    size, heads = own.config.hidden_size, own.config.kv_heads
    x = torch.randn(5, size, generator=torch.Generator().manual_seed(3))
    for mine, theirs in zip(own.transformer.h, llama.model.layers, strict=True):
        attention = theirs.self_attn
        query, key, value = mine.self_attention.project(x[None])
        assert torch.equal(attention.q_proj(x), query[0].flatten(1))
        assert torch.equal(attention.k_proj(x).unflatten(-1, (heads, -1)), key[0])
        assert torch.equal(attention.v_proj(x).unflatten(-1, (heads, -1)), value[0])
        assert torch.equal(attention.o_proj(x), mine.self_attention.dense(x))
        assert torch.equal(theirs.mlp.gate_proj(x), mine.mlp.gate_proj(x))
        assert torch.equal(theirs.input_layernorm.weight, mine.input_layernorm.weight)
    spread = logits(own).std()
    assert (logits(llama) - logits(own)).abs().mean() < 0.05 * spread


@pytest.mark.parametrize("form", ["ascendV1", "compressed-tensors"])
def test_dynamic_activations_go_the_same_way(form: str, tmp_path: Path) -> None:
    folder = write_random(tmp_path / "float", grouped_config("telechat2", 6, 2))
    recipe = Recipe("L0", anti_outlier="m1", activations="dynamic")
    quantize(folder, tmp_path / "w8a8", recipe, FEW, device="cpu")
    llama, own = (
        int8_llama(exported(tmp_path / "w8a8", tmp_path / form, form)),
        load_model(tmp_path / "w8a8", "cpu"),
    )
    assert isinstance(llama.model.layers[0].self_attn.k_proj, DynamicW8A8Linear)
    assert (logits(llama) - logits(own)).abs().mean() < 0.02 * logits(own).std()


def test_the_description_has_what_vllm_ascend_looks_up(tiny_w8a8_folder: Path, tmp_path: Path) -> None:
    folder = exported(tiny_w8a8_folder, tmp_path / "ascend", "ascendV1")
    kinds = json.loads((folder / "quant_model_description.json").read_text())
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    assert model.config.tie_word_embeddings
    for name in (*linear_names(model), "lm_head", "model.embed_tokens"):
        assert f"{name}.weight" in kinds
    for index in range(model.config.num_hidden_layers):
        for group in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        ):
            assert len({kinds[f"model.layers.{index}.{name}.weight"] for name in group}) == 1
    (path,) = folder.glob("*.safetensors")
    assert set(load_file(path)) == {name for name in kinds if "." in name} - {"lm_head.weight"}


def test_a_tokenizer_without_the_kit_s_classes_gives_the_same_chat(tiny_folder: Path, tmp_path: Path) -> None:
    folder = exported(tiny_folder, tmp_path / "llama", "float")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    chat = [
        {"role": "user", "content": "Hi 你"},
        {"role": "bot", "content": "ok"},
        {"role": "user", "content": "go"},
    ]
    ours, theirs = (AutoTokenizer.from_pretrained(each) for each in (tiny_folder, folder))
    ids = [each.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for each in (ours, theirs)]
    assert ids[0] == ids[1] and len(ids[0]) > 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embed_layernorm": True}, "embed_layernorm"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ],
)
def test_what_no_llama_computes_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    config = grouped_config("telechat2", 6, 2)
    for key, value in change.items():
        setattr(config, key, value)
    folder = write_random(tmp_path / "float", config)
    with pytest.raises(ParameterError, match=said):
        exported(folder, tmp_path / "llama", "float")
    assert not (tmp_path / "llama").exists()


def test_norms_with_a_bias_are_refused(tiny_w8a8_folder: Path, tmp_path: Path) -> None:
    shifted = tmp_path / "shifted"
    export(tiny_w8a8_folder, shifted, "ascendV1")
    change_tensors(
        shifted / "quant_model_weight_w8a8.safetensors", lambda t: t["h.0.input_layernorm.bias"].fill_(1.0)
    )
    with pytest.raises(ParameterError, match="shifts channels"):
        exported(shifted, tmp_path / "llama", "ascendV1")


def test_telechat3_is_asked_for_no_more_than_it_reads(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "float", grouped_config("telechat3", 6, 2))
    with pytest.raises(ParameterError, match=r"reads sequences of up to 512 tokens.*not for 513"):
        exported(folder, tmp_path / "llama", "float", max_length=513)


def test_lengths_past_the_trained_one_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    trained = load_model(tiny_folder, "cpu").config.training_seqlen
    with pytest.raises(ParameterError, match=f"up to its trained length of {trained} tokens only"):
        exported(tiny_folder, tmp_path / "llama", "float", max_length=trained + 1)
    config = json.loads(
        (exported(tiny_folder, tmp_path / "llama", "float", max_length=64) / "config.json").read_text()
    )
    assert config["max_position_embeddings"] == 64


def test_groups_of_mixed_types_are_refused(tiny_w8a8_folder: Path, tmp_path: Path) -> None:
    mixed, linear = tmp_path / "mixed", "h.1.mlp.up_proj."
    export(tiny_w8a8_folder, mixed, "ascendV1")

    def widen(tensors: dict[str, Tensor]) -> None:
        parts = {name: tensors.pop(name) for name in list(tensors) if name.startswith(linear)}
        tensors[f"{linear}weight"] = parts[f"{linear}weight"] * parts[f"{linear}weight_scale"]

    def describe(kinds: dict[str, str]) -> None:
        for name in [name for name in kinds if name.startswith(linear)]:
            kinds.pop(name)
        kinds[f"{linear}weight"] = "FLOAT"

    change_tensors(mixed / "quant_model_weight_w8a8.safetensors", widen)
    change_json(mixed / "quant_model_description.json", describe)
    assert logits(load_model(mixed, "cpu")).isfinite().all()
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.gate_proj, .* Quantize again"):
        exported(mixed, tmp_path / "llama", "ascendV1")


def test_wrong_requests_are_refused(tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "x"
    with pytest.raises(ParameterError, match='format float is for the names "llama" only'):
        export(tiny_folder, target, "float")
    with pytest.raises(ParameterError, match="numpy is not read by engines of Llama"):
        export(tiny_w8a8_folder, target, "numpy", names="llama")
    with pytest.raises(ParameterError, match='names "qwen" is unknown'):
        export(tiny_w8a8_folder, target, "ascendV1", names="qwen")
    with pytest.raises(CheckpointError, match="Use ascendV1 or compressed-tensors"):
        export(tiny_w8a8_folder, target, "float", names="llama")


def test_the_command_writes_it_too(tiny_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "llama"
    done = CliRunner().invoke(
        cli, ["export", str(tiny_folder), str(target), "--format", "float", "--names", "llama"]
    )
    assert done.exit_code == 0, done.output
    assert "the same network up to" in done.output
    assert math.isfinite(logits(AutoModelForCausalLM.from_pretrained(target)).sum().item())


def test_a_damaged_config_is_no_llama(tiny_folder: Path, tmp_path: Path) -> None:
    folder = write_random(tmp_path / "float", grouped_config("telechat3", 6, 2))
    change_json(folder / "config.json", lambda values: values.pop("rope_scaling"))
    with pytest.raises(CheckpointError, match="rope_scaling"):
        exported(folder, tmp_path / "llama", "float")

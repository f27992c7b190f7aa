"""TeleChat2 against the golden vectors of its published code: grouped heads, its rotary base, its cache, its configs."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from telechat_kit.errors import CheckpointError
from telechat_kit.inference.generation import generate
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import PreallocatedCache
from telechat_kit.model import TelechatConfig, TelechatForCausalLM
from telechat_kit.model.folder import read_config

GOLDEN = Path(__file__).parent.parent / "data" / "model-telechat2"
FACTS = {case["name"]: case for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]}
CASES = sorted(FACTS)
PAST_TRAINED = "gqa-past-trained"
SIZES = {"vocab_size": 50, "hidden_size": 48, "n_layer": 1, "n_head": 6, "ffn_hidden_size": 32}


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@functools.cache
def golden_model(case: str) -> TelechatForCausalLM:
    model = load_model(GOLDEN / case, device="cpu")
    model.generation_config.eos_token_id = None  # the vectors go on after an eos
    return model


@functools.cache
def vectors(case: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / case / "vectors.safetensors")


def assert_golden(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-5, and 1.3e-6 of the value: torch's own bounds for float32."""
    torch.testing.assert_close(actual, expected)


def step_by_step(model: TelechatForCausalLM, ids: Tensor, prefill: int, cache: Any = None) -> Tensor:
    """Logits of all positions of `ids [1, T]`: a prefill, then one token at a time on its cache."""
    out = model(ids[:, :prefill], past_key_values=cache, use_cache=True)
    logits, past = [out.logits], out.past_key_values
    for i in range(prefill, ids.shape[1]):
        logits.append(model(ids[:, i : i + 1], past_key_values=past).logits)
    return torch.cat(logits, dim=1)


def greedy(case: str, part: str, **options: Any) -> tuple[list[int], Tensor]:
    """Ids and raw logits `[1, new, vocab]` of transformers' `generate` from the prompt `part`."""
    prompt, model = vectors(case)[f"{part}_prompt_ids"], golden_model(case)
    out = model.generate(
        prompt, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(prompt),
        repetition_penalty=FACTS[case]["repetition_penalty"], output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences[0, prompt.shape[1] :].tolist(), torch.stack(out.logits, dim=1)


@pytest.mark.parametrize("case", CASES)
def test_full_forward_gives_the_golden_logits_and_hidden_states(case: str) -> None:
    model, golden, seen = golden_model(case), vectors(case), {}
    blocks = {"hidden_layer0": model.transformer.h[0], "hidden_last": model.transformer.h[-1]}
    hooks = [
        block.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name, block in blocks.items()
    ]
    assert_golden(model(golden["input_ids"], use_cache=False).logits, golden["logits"])
    for hook in hooks:
        hook.remove()
    for name in blocks:
        # sums of another order: one value of 2304 is 1.3e-5 off
        torch.testing.assert_close(seen[name], golden[name], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_cached_decode_gives_the_golden_logits(case: str) -> None:
    model, golden = golden_model(case), vectors(case)
    ids, prefill = golden["input_ids"], FACTS[case]["prefill_len"]
    assert_golden(step_by_step(model, ids, prefill), golden["incremental_logits"])
    own = PreallocatedCache.of(model, 1, ids.shape[1])
    assert_golden(step_by_step(model, ids, prefill, own), golden["incremental_logits"])


def test_past_the_trained_length_keys_keep_the_tables_of_their_step() -> None:
    model, golden = golden_model(PAST_TRAINED), vectors(PAST_TRAINED)
    ids = golden["input_ids"]
    assert_golden(model(golden["short_input_ids"], use_cache=False).logits, golden["short_logits"])
    assert_golden(
        step_by_step(model, ids, FACTS[PAST_TRAINED]["prefill2_len"]), golden["incremental2_logits"]
    )
    assert (golden["logits"] - golden["incremental_logits"]).abs().max() > 1  # so much a full forward differs


@pytest.mark.parametrize(("case", "part"), [*((case, "greedy") for case in CASES), (PAST_TRAINED, "greedy2")])
def test_greedy_ids_are_the_golden_ones(case: str, part: str) -> None:
    golden = vectors(case)
    ids, logits = greedy(case, part)
    assert ids == golden[f"{part}_ids"][0].tolist()
    assert_golden(logits, golden[f"{part}_step_logits"])
    prompt, penalty = golden[f"{part}_prompt_ids"][0].tolist(), FACTS[case]["repetition_penalty"]
    assert generate(golden_model(case), prompt, 12, repetition_penalty=penalty).token_ids == ids


def test_without_a_cache_every_step_is_a_full_forward() -> None:
    golden = vectors(PAST_TRAINED)
    ids, logits = greedy(PAST_TRAINED, "greedy", use_cache=False)
    assert ids == golden["recompute_greedy_ids"][0].tolist()
    assert_golden(logits, golden["recompute_step_logits"])
    assert ids != golden["greedy_ids"][0].tolist()


def test_beams_and_batches_run_past_the_trained_length() -> None:
    prompt = vectors(PAST_TRAINED)["greedy_prompt_ids"].repeat(2, 1)
    mask = torch.ones_like(prompt)
    ids = golden_model(PAST_TRAINED).generate(prompt, attention_mask=mask, num_beams=2, max_new_tokens=12)
    assert torch.equal(ids[0], ids[1])
    assert ids.shape == (2, prompt.shape[1] + 12)


@pytest.mark.parametrize(
    "architecture", ["TelechatForCausalLM", "TeleChat2ForCausalLM", "TeleChatForCausalLM"]
)
def test_the_keys_of_the_config_tell_the_form_and_not_the_class(architecture: str, tmp_path: Path) -> None:
    config = TelechatConfig(
        **SIZES, architectures=[architecture], num_key_value_heads=2, base_seqlen=64, training_seqlen=32,
        max_position_embeddings=4096, rope_scaling={"rope_type": "dynamic", "factor": 1.0},
    )  # fmt: skip
    assert (config.kv_heads, config.keys_keep_tables) == (2, True)
    config.save_pretrained(tmp_path)
    saved = AutoConfig.from_pretrained(tmp_path)
    assert (saved.kv_heads, saved.training_seqlen, saved.max_position_embeddings) == (2, 32, 4096)
    assert json.loads((tmp_path / "config.json").read_text())["rope_scaling"]["rope_type"] == "dynamic"


def test_a_config_without_the_key_is_7b_or_12b_and_stays_so(tmp_path: Path) -> None:
    config = TelechatConfig(**SIZES, architectures=["TelechatForCausalLM"], base_seqlen=8192)
    assert (config.kv_heads, config.keys_keep_tables) == (6, False)
    config.save_pretrained(tmp_path)
    assert "num_key_value_heads" not in (tmp_path / "config.json").read_text()
    assert not AutoConfig.from_pretrained(tmp_path).keys_keep_tables


def test_remote_code_names_tell_the_form_too() -> None:
    named = {"auto_map": {"AutoModelForCausalLM": "modeling_telechat2.Telechat2ForCausalLM"}}
    for kv_heads in ({}, {"num_key_value_heads": None}):
        config = TelechatConfig(**SIZES, **named, **kv_heads, base_seqlen=64)
        assert (config.kv_heads, config.keys_keep_tables) == (6, True)


def written(folder: Path, **values: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "telechat", **SIZES, **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"num_key_value_heads": 2, "base_seqlen": 64, "n_embd": 48, "use_mup": True}, "fits two forms"),
        ({"n_embd": 48, "use_mup": True}, "TeleChat-52B cannot be read: its network is GPT-2's"),
        ({"num_key_value_heads": 2}, "base_seqlen is missing"),
        ({"architectures": ["TeleChat2ForCausalLM"]}, "base_seqlen is missing"),
        (
            {"architectures": ["TeleChatForCausalLM"]},
            "num_key_value_heads, which every TeleChat2 has, is missing",
        ),
        ({"num_key_value_heads": 4, "base_seqlen": 64}, "4 key/value heads do not divide the 6 heads"),
        ({"num_experts": 16, "num_key_value_heads": 6}, "TeleChat2-39B-A12B cannot be read: it is a mixture"),
        ({"model_type": "deepseek_v3"}, "TeleChat3-105B-A4.7B and other models .* mixture of experts"),
        ({"model_type": "xing4_0"}, "Xing4.0 .* mixture of experts"),
        ({"model_type": "llama"}, 'model_type is "llama", expected "telechat" or "telechat3"'),
    ],
)
def test_what_is_no_dense_telechat_is_refused_by_name(
    values: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read_config(written(tmp_path, **values))


def test_read_config_reads_the_published_files() -> None:
    assert [read_config(GOLDEN / case).kv_heads for case in ("7b-small", "115b-small")] == [4, 2]
    assert read_config(GOLDEN / "32k-theta").rope_theta == 1000000

"""TeleChat2 and TeleChat3 against their golden vectors: grouped heads, rotary tables, cache, greedy ids."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import (
    CASES,
    DATA,
    FACTS,
    PAST_TRAINED,
    assert_golden,
    golden_model,
    greedy,
    step_by_step,
    vectors,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from telechat_kit.inference.generation import generate
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import PreallocatedCache


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


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
        assert_golden(seen[name], golden[name])


@pytest.mark.parametrize("case", CASES)
def test_the_vectors_are_as_far_from_a_float64_run_as_the_kit(case: str) -> None:
    ids, golden = vectors(case)["input_ids"], vectors(case)["logits"]
    exact = load_model(DATA / case, device="cpu").double()(ids, use_cache=False).logits
    ours = golden_model(case)(ids, use_cache=False).logits
    off = [(logits - exact).pow(2).mean().sqrt() for logits in (ours, golden)]
    assert off[0] < 1.5 * off[1] < 4e-6


def test_a_network_that_is_a_little_off_is_found() -> None:
    model = load_model(DATA / "model-telechat2" / "7b-small", device="cpu")
    golden = vectors("model-telechat2/7b-small")
    model.transformer.ln_f.weight *= 1 + 1e-5
    with pytest.raises(AssertionError):
        assert_golden(model(golden["input_ids"], use_cache=False).logits, golden["logits"])


@pytest.mark.parametrize("case", CASES)
def test_cached_decode_gives_the_golden_logits(case: str) -> None:
    model, golden = golden_model(case), vectors(case)
    ids, prefill = golden["input_ids"], FACTS[case]["prefill_len"]
    assert_golden(step_by_step(model, ids, prefill), golden["incremental_logits"])
    own = PreallocatedCache.of(model, 1, ids.shape[1])
    assert_golden(step_by_step(model, ids, prefill, own), golden["incremental_logits"])


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_the_folder_and_saves_the_same_tensors(case: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(DATA / case, dtype=torch.float32)
    assert_golden(model(vectors(case)["input_ids"]).logits, vectors(case)["logits"])
    model.save_pretrained(tmp_path)
    saved, stored = (load_file(folder / "model.safetensors") for folder in (tmp_path, DATA / case))
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name], stored[name]) for name in stored)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.kv_heads == model.config.kv_heads


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

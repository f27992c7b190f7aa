"""The network against the published code's golden vectors, and as a citizen of transformers."""

import functools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import assert_golden
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, TextIteratorStreamer, TextStreamer
from transformers.cache_utils import DynamicCache

from telechat_kit.inference.generation import generate
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import PreallocatedCache
from telechat_kit.model import TelechatConfig, TelechatForCausalLM

GOLDEN = Path(__file__).parent.parent / "data" / "model"
FACTS = {case["name"]: case for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]}
CASES = sorted(FACTS)
WITHIN_TRAINED_LENGTH = ["7b-small", "12b-small"]
SHORT = "7b-short-train"  # trained on 32 tokens

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@functools.cache
def golden_model(case: str) -> TelechatForCausalLM:
    model = load_model(GOLDEN / case, device="cpu")
    model.generation_config.eos_token_id = None  # the vectors go on after an eos
    return model


@functools.cache
def float32_rope_model() -> TelechatForCausalLM:
    """Of the 7B case, without the float16 rounding of the tables: shifting all positions changes nothing."""
    model = TelechatForCausalLM.from_pretrained(GOLDEN / "7b-small", rope_table_dtype="float32").eval()
    model.generation_config.eos_token_id = None
    return model


@functools.cache
def vectors(case: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / case / "vectors.safetensors")


def step_by_step(model: TelechatForCausalLM, ids: Tensor, prefill: int, cache: Any = None) -> Tensor:
    """Logits of all positions of `ids [1, T]`: a prefill, then one token at a time on its cache."""
    out = model(ids[:, :prefill], past_key_values=cache, use_cache=True)
    logits, past = [out.logits], out.past_key_values
    for i in range(prefill, ids.shape[1]):
        logits.append(model(ids[:, i : i + 1], past_key_values=past).logits)
    return torch.cat(logits, dim=1)


def transformers_greedy(model: TelechatForCausalLM, prompt: Tensor, new: int, **options: Any) -> Any:
    """Greedy `generate()` of transformers: ids `[B, new]` and raw logits `[B, new, vocab]`."""
    out = model.generate(
        prompt,
        max_new_tokens=new,
        do_sample=False,
        **{"attention_mask": torch.ones_like(prompt), **options},
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[:, prompt.shape[1] :], torch.stack(out.logits, dim=1)


@pytest.mark.parametrize("case", CASES)
def test_full_forward_gives_the_golden_logits(case: str) -> None:
    logits = golden_model(case)(vectors(case)["input_ids"], use_cache=False).logits
    assert_golden(logits, vectors(case)["logits"])


@pytest.mark.parametrize("case", CASES)
def test_first_and_last_block_give_the_golden_hidden_states(case: str) -> None:
    model, seen = golden_model(case), {}
    blocks = {"hidden_layer0": model.transformer.h[0], "hidden_last": model.transformer.h[-1]}
    hooks = [
        block.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name, block in blocks.items()
    ]
    model(vectors(case)["input_ids"])
    for hook in hooks:
        hook.remove()
    for name in blocks:
        assert_golden(seen[name], vectors(case)[name])


def test_hidden_states_are_the_embedding_every_block_and_the_final_norm() -> None:
    model, ids = golden_model("7b-small"), vectors("7b-small")["input_ids"]
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.n_layer + 1
    assert torch.equal(out.hidden_states[0], model.get_input_embeddings()(ids))
    assert_golden(out.hidden_states[1], vectors("7b-small")["hidden_layer0"])
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)


@pytest.mark.parametrize("case", CASES)
def test_cached_decode_gives_the_golden_logits(case: str) -> None:
    golden = vectors(case)
    ids = golden.get("short_input_ids", golden["input_ids"])
    logits = step_by_step(golden_model(case), ids, FACTS[case]["prefill_len"])
    assert_golden(logits, golden["incremental_logits"])


def test_a_forward_of_the_trained_length_gives_the_golden_logits() -> None:
    logits = golden_model(SHORT)(vectors(SHORT)["short_input_ids"]).logits
    assert_golden(logits, vectors(SHORT)["short_logits"])


@pytest.mark.parametrize("case", CASES)
def test_transformers_generate_gives_the_golden_ids(case: str) -> None:
    golden, penalty = vectors(case), FACTS[case]["repetition_penalty"]
    ids, logits = transformers_greedy(
        golden_model(case), golden["greedy_prompt_ids"], 12, repetition_penalty=penalty
    )
    assert torch.equal(ids, golden["greedy_ids"])
    if "greedy_step_logits" in golden:
        assert_golden(logits, golden["greedy_step_logits"])


@pytest.mark.parametrize("case", CASES)
def test_the_kit_s_generate_gives_the_golden_ids(case: str) -> None:
    golden, prompt = vectors(case), vectors(case)["greedy_prompt_ids"][0].tolist()
    penalty = FACTS[case]["repetition_penalty"]
    out = generate(golden_model(case), prompt, 12, repetition_penalty=penalty)
    assert out.token_ids == golden["greedy_ids"][0].tolist()


@pytest.mark.parametrize("preallocated", [False, True])
def test_cached_decode_past_the_trained_length_equals_the_full_forward(preallocated: bool) -> None:
    golden, model = vectors(SHORT), golden_model(SHORT)
    prompt, new = golden["recompute_prompt_ids"], golden["recompute_greedy_ids"]
    ids = torch.cat([prompt, new], dim=1)
    cache = PreallocatedCache(model.config, 1, ids.shape[1], model.lm_head.weight) if preallocated else None
    logits = step_by_step(model, ids, prompt.shape[1], cache)
    assert_golden(logits[:, prompt.shape[1] - 1 : -1], golden["recompute_step_logits"])


@pytest.mark.parametrize("use_cache", [False, True])
def test_transformers_generate_goes_past_the_trained_length(use_cache: bool) -> None:
    golden, penalty = vectors(SHORT), FACTS[SHORT]["repetition_penalty"]
    ids, logits = transformers_greedy(
        golden_model(SHORT),
        golden["recompute_prompt_ids"],
        12,
        repetition_penalty=penalty,
        use_cache=use_cache,
    )
    assert torch.equal(ids, golden["recompute_greedy_ids"])
    assert_golden(logits, golden["recompute_step_logits"])


def test_the_kit_s_generate_goes_past_the_trained_length() -> None:
    golden, penalty = vectors(SHORT), FACTS[SHORT]["repetition_penalty"]
    prompt = golden["recompute_prompt_ids"][0].tolist()
    out = generate(golden_model(SHORT), prompt, 12, repetition_penalty=penalty)
    assert out.token_ids == golden["recompute_greedy_ids"][0].tolist()


def test_a_prompt_longer_than_the_trained_length_can_be_continued() -> None:
    model, ids = golden_model(SHORT), vectors(SHORT)["input_ids"]
    assert_golden(step_by_step(model, ids, 40)[:, -1], vectors(SHORT)["logits"][:, -1])


def test_a_cache_without_token_ids_stops_at_the_trained_length_instead_of_going_wrong() -> None:
    model, ids = golden_model(SHORT), vectors(SHORT)["input_ids"]
    cache = model(inputs_embeds=model.get_input_embeddings()(ids[:, :30]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="trained length"):
        model(ids[:, 30:34], past_key_values=cache)


def test_embeddings_on_a_cache_stop_at_the_trained_length_instead_of_going_wrong() -> None:
    model, ids = golden_model(SHORT), vectors(SHORT)["input_ids"]
    cache = model(ids[:, :30], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="trained length"):
        model(inputs_embeds=model.get_input_embeddings()(ids[:, 30:34]), past_key_values=cache)


@pytest.mark.parametrize(
    ("case", "start", "stop"),
    [("7b-small", 9, 24), ("12b-small", 1, 24), (SHORT, 20, 32), (SHORT, 20, 40), (SHORT, 35, 48)],
)
def test_several_tokens_on_top_of_a_cache_equal_the_full_forward(case: str, start: int, stop: int) -> None:
    model, ids = golden_model(case), vectors(case)["input_ids"][:, :stop]
    past = model(ids[:, :start], use_cache=True).past_key_values
    chunk = model(ids[:, start:], past_key_values=past)
    assert chunk.logits.shape[1] == stop - start
    assert chunk.past_key_values.get_seq_length() == stop
    assert_golden(chunk.logits, model(ids).logits[:, start:])


def test_beams_past_the_trained_length_are_those_of_full_forwards() -> None:
    model, prompt = golden_model(SHORT), vectors(SHORT)["recompute_prompt_ids"]
    options = {"num_beams": 3, "max_new_tokens": 14, "do_sample": False, "num_return_sequences": 3}
    mask = torch.ones_like(prompt)
    cached = model.generate(prompt, attention_mask=mask, **options)
    recomputed = model.generate(prompt, attention_mask=mask, use_cache=False, **options)
    assert cached.shape == (3, 40)
    assert torch.equal(cached, recomputed)


def padded(prompts: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, width]`, padded on the left."""
    ids = torch.tensor([[3] * (width - len(prompt)) + prompt for prompt in prompts])
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])
    return ids, (torch.arange(width) >= width - lengths).long()


def test_a_left_padded_batch_generates_what_each_prompt_does_alone() -> None:
    model, ids = float32_rope_model(), vectors("7b-small")["input_ids"][0].tolist()
    prompts = [ids[:12], ids[5:10], ids[20:21]]
    batch, mask = padded(prompts, 12)
    together, logits = transformers_greedy(model, batch, 10, attention_mask=mask)
    for row, prompt in enumerate(prompts):
        alone, alone_logits = transformers_greedy(model, torch.tensor([prompt]), 10)
        assert torch.equal(together[row : row + 1], alone)
        assert_golden(logits[row : row + 1], alone_logits)


def test_left_padding_moves_logits_by_no_more_than_the_rounding_of_the_tables() -> None:
    model, ids = golden_model("7b-small"), vectors("7b-small")["input_ids"]
    batch, mask = padded([ids[0].tolist()], 30)
    with_mask = model(batch, attention_mask=mask).logits[:, 6:]
    without_mask = model(batch).logits[:, 6:]
    assert torch.isfinite(model(batch, attention_mask=mask).logits).all()
    assert (with_mask - vectors("7b-small")["logits"]).abs().max() < 0.02
    assert (without_mask - vectors("7b-small")["logits"]).abs().max() > 0.2


def test_a_text_streamer_prints_the_answer(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(tiny_folder, device="cpu"), AutoTokenizer.from_pretrained(tiny_folder)
    inputs = tokenizer("a question", return_tensors="pt", return_token_type_ids=False)
    out = model.generate(
        **inputs, max_new_tokens=8, do_sample=False, streamer=TextStreamer(tokenizer, skip_prompt=True)
    )
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
    assert capsys.readouterr().out.strip("\n") == answer.strip("\n")


def test_a_text_iterator_streamer_yields_the_answer_in_pieces(tiny_folder: Path) -> None:
    model, tokenizer = load_model(tiny_folder, device="cpu"), AutoTokenizer.from_pretrained(tiny_folder)
    inputs = tokenizer("a question", return_tensors="pt", return_token_type_ids=False)
    options = {**inputs, "max_new_tokens": 8, "do_sample": False}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    thread = threading.Thread(target=model.generate, kwargs={**options, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    answer = model.generate(**options)[0, inputs["input_ids"].shape[1] :]
    assert "".join(pieces) == tokenizer.decode(answer)


def test_embeddings_stand_in_for_ids() -> None:
    model, ids = golden_model("7b-small"), vectors("7b-small")["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    assert_golden(model(inputs_embeds=embeds).logits, vectors("7b-small")["logits"])
    expected, _ = transformers_greedy(model, ids, 8)
    assert torch.equal(
        model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
        ),
        expected,
    )


def test_no_cache_is_made_where_none_is_asked_for() -> None:
    model, ids = golden_model("7b-small"), vectors("7b-small")["input_ids"]
    assert model(ids, use_cache=False).past_key_values is None
    assert isinstance(model(ids, use_cache=True).past_key_values, DynamicCache)


def test_logits_to_keep_gives_the_last_rows() -> None:
    model, golden = golden_model("7b-small"), vectors("7b-small")
    logits = model(golden["input_ids"], logits_to_keep=2).logits
    assert_golden(logits, golden["logits"][:, -2:])


def test_labels_give_the_mean_loss_of_the_next_tokens() -> None:
    model, golden = golden_model("7b-small"), vectors("7b-small")
    labels = golden["input_ids"].clone()
    labels[:, :5] = -100
    expected = functional.cross_entropy(golden["logits"][0, 4:-1], golden["input_ids"][0, 5:])
    assert model(golden["input_ids"], labels=labels).loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_labels_give_gradients_to_every_weight(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, device="cpu")
    ids = torch.arange(10, 30)[None]
    with torch.enable_grad():
        model(ids, labels=ids).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name


def bias_only_model(**flags: bool) -> TelechatForCausalLM:
    """One block whose attention and feed-forward give nothing but their biases, so that hands can compute it."""
    torch.manual_seed(0)
    config = TelechatConfig(
        vocab_size=20, hidden_size=8, n_layer=1, n_head=2, ffn_hidden_size=12, initializer_range=0.5, **flags
    )
    model = TelechatForCausalLM(config).eval()
    block = model.transformer.h[0]
    for linear in (block.self_attention.dense, block.mlp.down_proj):
        linear.weight.zero_()
        linear.bias.copy_(torch.randn(8))
    return model


def normed(x: Tensor) -> Tensor:
    """RMS norm of weight one, as `functional` has it."""
    return functional.rms_norm(x, x.shape[-1:], eps=1e-5)


def test_residuals_come_from_the_stream_by_default() -> None:
    model, ids = bias_only_model(), torch.tensor([[4, 7, 11]])
    block = model.transformer.h[0]
    x = model.get_input_embeddings()(ids) + block.self_attention.dense.bias + block.mlp.down_proj.bias
    assert_golden(model(ids).logits, model.lm_head(normed(x)))


def test_post_layernorm_residuals_come_from_the_norms() -> None:
    model = bias_only_model(apply_residual_connection_post_layernorm=True)
    ids, block = torch.tensor([[4, 7, 11]]), model.transformer.h[0]
    x = normed(model.get_input_embeddings()(ids)) + block.self_attention.dense.bias
    x = normed(x) + block.mlp.down_proj.bias
    assert_golden(model(ids).logits, model.lm_head(normed(x)))


def test_embed_layernorm_norms_the_embedding_with_its_own_weight() -> None:
    model, ids = bias_only_model(embed_layernorm=True), torch.tensor([[4, 7, 11]])
    weight = torch.linspace(0.5, 2, 8)
    model.transformer.word_embeddings_layernorm.weight.copy_(weight)
    block = model.transformer.h[0]
    x = normed(model.get_input_embeddings()(ids)) * weight
    x = x + block.self_attention.dense.bias + block.mlp.down_proj.bias
    assert_golden(model(ids).logits, model.lm_head(normed(x)))


def test_a_hidden_size_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of n_head"):
        TelechatConfig(hidden_size=65, n_head=4)

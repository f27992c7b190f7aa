"""The kit's greedy loop: how many tokens, when it ends, its figures, its penalty, what it refuses."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, RepetitionPenaltyLogitsProcessor

from telechat_kit.errors import DataError
from telechat_kit.inference.engine import Engine
from telechat_kit.inference.generation import Generation, generate, generate_batch, penalized, stop_ids
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import PreallocatedCache
from telechat_kit.model import TelechatForCausalLM
from telechat_kit.token_samples import chat_ids

PROMPT = [4, 80, 90, 100, 5]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> TelechatForCausalLM:
    return load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def w8a8_model(tiny_w8a8_folder: Path) -> TelechatForCausalLM:
    return load_model(tiny_w8a8_folder, device="cpu")


def test_figures_of_a_run_follow_from_its_times() -> None:
    run = Generation(prompt_tokens=3, token_ids=[7, 8, 9], token_times=[0.5, 0.75, 1.5])
    assert run.seconds == 1.5
    assert run.time_to_first_token == 0.5
    assert run.time_per_output_token == 0.5
    assert run.tokens_per_second == 2


def test_a_run_of_one_token_has_no_time_per_output_token() -> None:
    run = Generation(prompt_tokens=3, token_ids=[7], token_times=[0.5])
    assert run.time_per_output_token is None
    assert run.tokens_per_second == 2


@pytest.mark.parametrize("new", [1, 2, 20])
def test_as_many_tokens_as_asked_for_come_when_nothing_stops(model: TelechatForCausalLM, new: int) -> None:
    run = generate(model, PROMPT, new)
    assert run.prompt_tokens == len(PROMPT)
    assert len(run.token_ids) == len(run.token_times) == new


def test_times_grow_from_the_start_of_the_prefill(model: TelechatForCausalLM) -> None:
    times = generate(model, PROMPT, 10).token_times
    assert times[0] > 0
    assert times == sorted(times)


@pytest.mark.parametrize("kind", ["model", "w8a8_model"])
def test_ids_are_those_of_transformers(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    expected = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT)),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        repetition_penalty=1.2,
    )
    assert generate(model, PROMPT, 20, repetition_penalty=1.2).token_ids == expected[0, 5:].tolist()


def test_the_same_prompt_gives_the_same_ids(model: TelechatForCausalLM) -> None:
    assert generate(model, PROMPT, 20).token_ids == generate(model, PROMPT, 20).token_ids


def test_a_stop_id_ends_the_run_and_is_its_last_token(model: TelechatForCausalLM) -> None:
    free = generate(model, PROMPT, 20).token_ids
    stop = free[6]
    run = generate(model, PROMPT, 20, stop_ids=[1, stop])
    assert run.token_ids == free[: free.index(stop) + 1]


def test_tokens_are_handed_out_as_they_come(model: TelechatForCausalLM) -> None:
    seen: list[int] = []
    assert generate(model, PROMPT, 5, on_token=seen.append).token_ids == seen


def test_no_gradient_is_recorded(model: TelechatForCausalLM) -> None:
    enabled = []
    hook = model.lm_head.register_forward_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    generate(model, PROMPT, 2)
    hook.remove()
    assert enabled == [False, False]


@pytest.mark.parametrize("penalty", [1.0, 1.003, 1.03, 2.0, 0.5])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(3, 50), torch.randint(0, 50, (3, 40))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    before = logits.clone()
    assert torch.equal(penalized(logits, ids, penalty), expected)
    assert torch.equal(logits, before)


def test_an_empty_prompt_is_refused(model: TelechatForCausalLM) -> None:
    with pytest.raises(DataError, match="0 prompt tokens"):
        generate(model, [], 5)


def test_a_run_of_no_tokens_is_refused(model: TelechatForCausalLM) -> None:
    with pytest.raises(DataError, match="at least 1"):
        generate(model, PROMPT, 0)


@pytest.mark.parametrize("outside", [262, 100000, -1])
def test_an_id_outside_the_vocabulary_is_refused(model: TelechatForCausalLM, outside: int) -> None:
    assert model.config.vocab_size == 262
    with pytest.raises(DataError, match=f"token id {outside} is outside the model's vocabulary of 262"):
        generate(model, [5, outside, 6], 5)


def test_chat_ids_are_the_published_prompt(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    user, bot = tokenizer.convert_tokens_to_ids(["<_user>", "<_bot>"])
    question = "天气 how?"
    assert chat_ids(tokenizer, question) == [user, *tokenizer.encode(question, add_special_tokens=False), bot]


@pytest.mark.parametrize(("eos", "expected"), [(7, (7,)), ([7, 8], (7, 8)), (None, (2,))])
def test_the_generation_config_says_what_ends_an_answer(
    tiny_folder: Path, eos: int | list[int] | None, expected: tuple[int, ...]
) -> None:
    model = load_model(tiny_folder, device="cpu")
    model.generation_config = GenerationConfig(eos_token_id=eos)
    assert stop_ids(model) == expected


def test_stop_ids_fall_back_to_the_model_s_config(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, device="cpu")
    model.generation_config = None
    assert stop_ids(model) == (2,)


def test_a_preallocated_cache_holds_what_was_stored_and_forgets_what_is_cropped(
    model: TelechatForCausalLM,
) -> None:
    config = model.config
    cache = PreallocatedCache(config, 2, 10, model.lm_head.weight)
    first, second = (
        torch.randn(2, 2, config.n_head, 3, config.head_dim),
        torch.randn(2, 2, config.n_head, 1, config.head_dim),
    )
    for layer in range(config.n_layer):
        cache.update(*first, layer)
    assert cache.get_seq_length() == 3
    for layer in range(config.n_layer):
        keys, values = cache.update(*second, layer)
        assert torch.equal(keys, torch.cat([first[0], second[0]], dim=2))
        assert torch.equal(values, torch.cat([first[1], second[1]], dim=2))
    cache.crop(-2)
    assert cache.get_seq_length() == 2


@pytest.mark.parametrize("kind", ["model", "w8a8_model"])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_prompts_of_a_batch_get_the_ids_that_they_get_alone(
    kind: str, penalty: float, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    prompts = [[4, 80 + i, *range(90, 90 + 7 * i), 5] for i in range(5)] + [list(range(6, 206))]
    options = {"repetition_penalty": penalty, "stop_ids": [97, 120, 201]}
    alone = [generate(model, prompt, 20, **options).token_ids for prompt in prompts]
    assert generate_batch(model, prompts, 20, **options) == alone


def test_a_stop_id_that_comes_in_every_row_at_once_ends_the_batch(w8a8_model: TelechatForCausalLM) -> None:
    first = generate(w8a8_model, PROMPT, 1).token_ids
    assert generate_batch(w8a8_model, [PROMPT] * 3, 20, stop_ids=first) == [first] * 3


def test_a_batch_of_no_prompts_gives_no_answers(w8a8_model: TelechatForCausalLM) -> None:
    assert generate_batch(w8a8_model, [], 5) == []


def test_an_empty_row_of_a_batch_is_refused(w8a8_model: TelechatForCausalLM) -> None:
    with pytest.raises(DataError, match="0 prompt tokens"):
        generate_batch(w8a8_model, [PROMPT, []], 5)


def test_a_batch_past_the_trained_length_takes_the_modules(
    w8a8_model: TelechatForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert w8a8_model.config.training_seqlen == 512
    monkeypatch.setattr(Engine, "batch", lambda *_: pytest.fail("the engine was asked"))
    ids = generate_batch(w8a8_model, [list(range(6, 206)) * 2 + [7] * 111, PROMPT], 2)
    assert [len(row) for row in ids] == [2, 2]

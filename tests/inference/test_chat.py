"""An answer to a question: that of the greedy run in the chat format, whole and piece by piece."""

from pathlib import Path
from typing import Any

import pytest

from telechat_kit.errors import DataError
from telechat_kit.inference import generation
from telechat_kit.inference.chat import generate
from telechat_kit.inference.loading import load_model
from telechat_kit.model import TelechatForCausalLM, load_tokenizer
from telechat_kit.token_samples import chat_ids

QUESTION = "天翼云是什么?"


@pytest.fixture
def model(tiny_w8a8_folder: Path) -> TelechatForCausalLM:
    return load_model(tiny_w8a8_folder, "cpu")


@pytest.fixture(scope="module")
def tokenizer(tiny_w8a8_folder: Path) -> Any:
    return load_tokenizer(tiny_w8a8_folder)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_an_answer_is_the_text_of_the_greedy_run(
    penalty: float, model: TelechatForCausalLM, tokenizer: Any
) -> None:
    run = generation.generate(model, chat_ids(tokenizer, QUESTION), 12, repetition_penalty=penalty)
    expected = tokenizer.decode(run.token_ids, skip_special_tokens=True).strip()
    assert generate(model, tokenizer, QUESTION, 12, repetition_penalty=penalty) == expected != ""


def test_an_answer_ends_with_a_stop_id(model: TelechatForCausalLM, tokenizer: Any) -> None:
    ids = generation.generate(model, chat_ids(tokenizer, QUESTION), 12, repetition_penalty=1.3).token_ids
    model.generation_config.eos_token_id = ids[3]
    expected = tokenizer.decode(ids[: ids.index(ids[3]) + 1], skip_special_tokens=True).strip()
    assert generate(model, tokenizer, QUESTION, 12, repetition_penalty=1.3) == expected


def test_the_pieces_are_the_answer(model: TelechatForCausalLM, tokenizer: Any) -> None:
    pieces: list[str] = []
    answer = generate(model, tokenizer, QUESTION, 40, repetition_penalty=1.3, on_text=pieces.append)
    assert "".join(pieces) == answer
    assert len(pieces) > 3


def test_a_character_of_several_tokens_comes_whole_and_white_space_with_what_follows(
    model: TelechatForCausalLM, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(*_: Any, on_token: Any, **__: Any) -> None:
        for token in tokenizer(" 天 翼 ", add_special_tokens=False)["input_ids"]:
            on_token(token)

    pieces: list[str] = []
    monkeypatch.setattr(generation, "generate", say)
    assert generate(model, tokenizer, QUESTION, on_text=pieces.append) == "天 翼"
    assert pieces == ["天", " 翼"]


def test_an_answer_cut_off_inside_a_character_is_told_to_its_end(
    model: TelechatForCausalLM, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(*_: Any, on_token: Any, **__: Any) -> None:
        for token in tokenizer("a天", add_special_tokens=False)["input_ids"][:-1]:
            on_token(token)

    pieces: list[str] = []
    monkeypatch.setattr(generation, "generate", say)
    answer = generate(model, tokenizer, QUESTION, on_text=pieces.append)
    assert answer[0] == "a"
    assert answer != "a"
    assert "".join(pieces) == answer


def test_no_tokens_are_refused(model: TelechatForCausalLM, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="0 new tokens"):
        generate(model, tokenizer, QUESTION, 0)

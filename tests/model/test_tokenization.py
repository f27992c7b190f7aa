"""Tokenizers and chat format: published ids, save and reload, AutoTokenizer on 12B, 7B and demo folders."""

import copy
import io
import json
import pickle
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, TextStreamer, TokenizersBackend

from telechat_kit.errors import DataError, KitError
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.tokenization import (
    CHAT_TEMPLATE,
    TelechatTokenizer,
    TelechatTokenizerFast,
    load_tokenizer,
    register_tokenizers,
)
from telechat_kit.token_samples import chat_ids

OFFICIAL = Path(__file__).parent.parent / "data" / "tokenizer-12b"
GOLDEN = json.loads((OFFICIAL / "encodings.json").read_text(encoding="utf-8"))["encodings"]
QUESTIONS = ["你好", " hello ", "<_user>hi<_bot>", "<_end>", "a <_end> b", "x<_end>", "", "\n", "a😀b👍🏽c"]
TURN_TOKENS = ["<_start>", "<_end>", "<_pad>", "<_user>", "<_bot>"]
AUTO_MAP = {"AutoTokenizer": ["tokenization_telechat.TelechatTokenizer", None]}
DEMO_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register_tokenizers(TelechatConfig)
    register_tokenizers(TelechatConfig)


@pytest.fixture(scope="module")
def tokenizer() -> TelechatTokenizer:
    return TelechatTokenizer.from_pretrained(OFFICIAL)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def bot(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def official_folder(folder: Path) -> Path:
    """The published tokenizer files beside a config.json, as in a 12B checkpoint."""
    shutil.copytree(OFFICIAL, folder)
    auto_map = {"AutoConfig": "configuration_telechat.TelechatConfig"}
    write_json(folder / "config.json", {"model_type": "telechat", "auto_map": auto_map})
    return folder


def fast_folder(folder: Path, special_tokens: list[str], tokenizer_config: dict[str, Any]) -> Path:
    """A small byte-level BPE tokenizer.json beside a config.json of the model type."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world, hello you", "你好，世界"], trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    write_json(folder / "config.json", {"model_type": "telechat"})
    return folder


def folder_7b(folder: Path, **more: Any) -> Path:
    named = {"bos_token": "<_start>", "eos_token": "<_end>", "pad_token": "<_pad>"}
    return fast_folder(folder, TURN_TOKENS, {"tokenizer_class": "BloomTokenizerFast", **named, **more})


def demo_folder(folder: Path, tokenizer_class: str = "TokenizersBackend", **more: Any) -> Path:
    config = {
        "tokenizer_class": tokenizer_class,
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        **more,
    }
    return fast_folder(folder, ["<|im_start|>", "<|im_end|>"], config)


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: repr(entry["text"])[:30])
def test_encodes_and_decodes_as_published(tokenizer: TelechatTokenizer, entry: dict[str, Any]) -> None:
    ids = tokenizer(entry["text"])["input_ids"]
    assert ids == entry["ids"]
    assert tokenizer.decode(ids) == entry["decoded"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == entry["decoded_skip_special"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a<_end>b", ["a<_end>", "b"]),
        ("x <_end>b", ["x ", "<_end>b"]),
        ("x<_pad> y", ["x<_pad>", " y"]),
    ],
)
def test_spells_out_a_special_token_that_touches_a_word(
    tokenizer: TelechatTokenizer, text: str, pieces: list[str]
) -> None:
    assert tokenizer.encode(text) == [token for piece in pieces for token in tokenizer.sp_model.encode(piece)]


def test_finds_special_tokens_between_spaces(tokenizer: TelechatTokenizer) -> None:
    assert tokenizer.encode("<_end> <_pad>") == [2, *tokenizer.encode(" "), 3]
    assert tokenizer.encode("<_start>你好 <_end>") == [1, *tokenizer.encode("你好 "), 2]


@pytest.mark.parametrize("question", QUESTIONS)
def test_prompt_is_user_question_bot(tokenizer: TelechatTokenizer, question: str) -> None:
    prompt = tokenizer.apply_chat_template([user(question)], add_generation_prompt=True)
    assert prompt["input_ids"] == [20, *tokenizer.encode(question), 21]
    assert prompt["attention_mask"] == [1] * len(prompt["input_ids"])


@pytest.mark.parametrize("role", ["assistant", "bot"])
def test_history_closes_each_bot_turn(tokenizer: TelechatTokenizer, role: str) -> None:
    chat = [user("写一首诗"), {"role": role, "content": "好的"}, user("再来一首")]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    question, answer, next_question = (tokenizer.encode(turn["content"]) for turn in chat)
    assert ids == [20, *question, 21, *answer, 2, 20, *next_question, 21]


def test_drops_other_roles(tokenizer: TelechatTokenizer) -> None:
    chat = [{"role": "system", "content": "be kind"}, user("hi")]
    assert tokenizer.apply_chat_template(chat) == tokenizer.apply_chat_template([user("hi")])
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<_user>hi"


def test_renders_the_chat_as_text(tokenizer: TelechatTokenizer) -> None:
    chat = [user("q"), bot("a"), user("<_bot>")]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<_user>q<_bot>a<_end><_user><_bot><_bot>"


def test_continues_the_final_bot_turn(tokenizer: TelechatTokenizer) -> None:
    chat = [user("q"), bot("好的")]
    ids = tokenizer.apply_chat_template(chat, continue_final_message=True, return_dict=False)
    assert ids == [20, *tokenizer.encode("q"), 21, *tokenizer.encode("好的")]


def test_batch_of_chats_is_padded_on_the_left(tokenizer: TelechatTokenizer) -> None:
    chats = [[user("你好")], [user("今天天气怎么样？")]]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    assert batch["input_ids"].tolist() == [[3, 3, 3, 20, 50791, 21], [20, 9652, 5879, 6698, 112203, 21]]
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]


def test_a_single_chat_as_tensor_is_a_batch_of_one(tokenizer: TelechatTokenizer) -> None:
    ids = tokenizer.apply_chat_template([user("你好")], return_tensors="pt", return_dict=False)
    assert ids.tolist() == [[20, 50791]]


@pytest.mark.parametrize(("side", "kept"), [("left", [5879, 6698, 112203]), ("right", [20, 9652, 5879])])
def test_truncates_on_its_side(side: str, kept: list[int]) -> None:
    tokenizer = TelechatTokenizer.from_pretrained(OFFICIAL, truncation_side=side)
    chat = [user("今天天气怎么样？")]
    ids = tokenizer.apply_chat_template(chat, truncation=True, max_length=3, return_dict=False)
    assert ids == kept


@pytest.mark.parametrize(
    "options",
    [
        {"return_assistant_tokens_mask": True},
        {"sanitize_control_tokens": True},
        {"add_generation_prompt": True, "continue_final_message": True},
    ],
)
def test_refuses_what_the_format_cannot_do(tokenizer: TelechatTokenizer, options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        tokenizer.apply_chat_template([user("q")], **options)


def test_refuses_an_empty_conversation(tokenizer: TelechatTokenizer) -> None:
    with pytest.raises(ValueError, match="empty"):
        tokenizer.apply_chat_template([])


def test_another_template_is_left_to_transformers(tokenizer: TelechatTokenizer) -> None:
    ids = tokenizer.apply_chat_template([user("你好")], chat_template="{{ messages[0].content }}，世界！")
    assert ids["input_ids"] == tokenizer.encode("你好，世界！")


def test_plain_batch_is_padded_on_the_left(tokenizer: TelechatTokenizer) -> None:
    batch = tokenizer(["你好", "hello world"], padding=True)
    assert batch["input_ids"] == [[3, 50791], [31859, 1401]]
    assert sorted(batch) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
def test_copies_encode_the_same(tokenizer: TelechatTokenizer, clone: Any) -> None:
    assert clone(tokenizer).encode("a<_end>b，你好") == tokenizer.encode("a<_end>b，你好")


def test_save_and_reload_keeps_every_id(tokenizer: TelechatTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "telechat"})
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(reloaded) is TelechatTokenizer
    assert reloaded.special_tokens_map == tokenizer.special_tokens_map
    assert [reloaded.encode(entry["text"]) for entry in GOLDEN] == [entry["ids"] for entry in GOLDEN]
    assert reloaded.apply_chat_template([user("hi")]) == tokenizer.apply_chat_template([user("hi")])


def test_a_saved_folder_names_no_remote_code(tokenizer: TelechatTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("trust", [None, False, True])
def test_auto_loads_an_official_12b_folder(tmp_path: Path, trust: bool | None) -> None:
    folder = official_folder(tmp_path / "12b")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    assert type(tokenizer) is TelechatTokenizer
    assert tokenizer.encode("a<_end>b") == [381, 112020, 14, 545, 112004, 401]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)


@pytest.mark.parametrize("more", [{}, {"auto_map": AUTO_MAP}], ids=["plain", "auto_map"])
def test_auto_loads_a_7b_folder(tmp_path: Path, more: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder_7b(tmp_path / "7b", **more))
    assert type(tokenizer) is TelechatTokenizerFast
    assert tokenizer.padding_side == "left"
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("question", QUESTIONS)
def test_7b_prompt_is_user_question_bot(tmp_path: Path, question: str) -> None:
    tokenizer = load_tokenizer(folder_7b(tmp_path / "7b"))
    chat = [user("hello"), bot("world"), user(question)]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    turn, answer, asked = (tokenizer.encode(message["content"]) for message in chat)
    assert ids == [3, *turn, 4, *answer, 1, 3, *asked, 4]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert ids == tokenizer.encode(text)


def test_7b_batch_of_chats_is_padded_on_the_left(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_7b(tmp_path / "7b"))
    batch = tokenizer.apply_chat_template([[user("")], [user("h")]], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[2, 3], [3, tokenizer.encode("h")[0]]]
    assert batch["attention_mask"].tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize("make_folder", [folder_7b, demo_folder])
def test_fast_tokenizer_is_saved_and_reloaded(tmp_path: Path, make_folder: Any) -> None:
    tokenizer = load_tokenizer(make_folder(tmp_path / "first", chat_template=DEMO_TEMPLATE))
    tokenizer.save_pretrained(tmp_path / "second")
    shutil.copy(tmp_path / "first" / "config.json", tmp_path / "second")
    reloaded = load_tokenizer(tmp_path / "second")
    assert type(reloaded) is TelechatTokenizerFast
    assert reloaded.encode("hello 你好<_end>") == tokenizer.encode("hello 你好<_end>")
    assert reloaded.special_tokens_map == tokenizer.special_tokens_map
    assert reloaded.chat_template == DEMO_TEMPLATE


@pytest.mark.parametrize("name", ["TokenizersBackend", "PreTrainedTokenizerFast", "GPT2Tokenizer", None])
def test_auto_loads_a_demo_folder(tmp_path: Path, name: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        demo_folder(tmp_path / "demo", name, chat_template=DEMO_TEMPLATE)
    )
    assert type(tokenizer) is TelechatTokenizerFast
    assert tokenizer.decode(tokenizer.encode("hello 你好")) == "hello 你好"
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = tokenizer.apply_chat_template([user("hello")], return_dict=False)
    assert ids == [start, *tokenizer.encode("hello"), end]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")


def test_a_demo_folder_keeps_its_jinja_file_and_padding_side(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "demo", padding_side="right")
    (folder / "chat_template.jinja").write_text(DEMO_TEMPLATE, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == DEMO_TEMPLATE
    assert tokenizer.padding_side == "right"


def test_no_default_template_without_turn_tokens(tmp_path: Path) -> None:
    assert load_tokenizer(demo_folder(tmp_path / "demo")).chat_template is None


@pytest.mark.parametrize("config", [{"model_type": "gpt2"}, {}])
def test_other_model_types_keep_their_tokenizer(tmp_path: Path, config: dict[str, str]) -> None:
    folder = folder_7b(tmp_path / "other")
    write_json(folder / "config.json", config)
    assert type(AutoTokenizer.from_pretrained(folder)) is TokenizersBackend


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.model"])
def test_load_names_the_missing_file(tmp_path: Path, missing: str) -> None:
    folder = official_folder(tmp_path / "12b")
    (folder / missing).unlink()
    with pytest.raises(KitError, match=missing):
        load_tokenizer(folder)


def test_load_names_the_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: repr(entry["text"])[:30])
def test_decoding_only_grows_while_tokens_arrive(tokenizer: TelechatTokenizer, entry: dict[str, Any]) -> None:
    whole = tokenizer.decode(entry["ids"], skip_special_tokens=True)
    for length in range(len(entry["ids"])):
        text = tokenizer.decode(entry["ids"][:length], skip_special_tokens=True)
        assert whole.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))


@pytest.mark.parametrize("text", ["a😀b👍🏽c", "👨‍👩‍👧‍👦", "写 a poem，好 的"])
def test_streamer_waits_for_whole_characters(
    tokenizer: TelechatTokenizer, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    for token in [*tokenizer.encode(text), tokenizer.eos_token_id]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert capsys.readouterr().out == text + "\n"


FAMILY_MARKS = ["<_user>", "<_bot>", "<_system>", "<_observation>", "<_sep>"]
THINKING_MARKS = ["</think>", "<think>", "<tool_call>", "</tool_call>"]


def family_folder(folder: Path, *more_marks: str, model_type: str = "telechat") -> Path:
    """A small SentencePiece model whose pieces are of the kinds and at the ids of the 131072-piece one's first."""
    folder.mkdir()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["你好 世界 hello world", "TeleChat 中国电信 answer", "1 2 1 2"] * 5),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        **{"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3},
        **{"unk_piece": "<_unk>", "bos_piece": "<_start>", "eos_piece": "<_end>", "pad_piece": "<_pad>"},
        control_symbols=[*FAMILY_MARKS, *more_marks],
        user_defined_symbols=["\n"],
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    write_json(folder / "config.json", {"model_type": model_type})
    return folder


@pytest.fixture(scope="module")
def telechat2(tmp_path_factory: pytest.TempPathFactory) -> TelechatTokenizer:
    return AutoTokenizer.from_pretrained(family_folder(tmp_path_factory.mktemp("family") / "telechat2"))


@pytest.fixture(scope="module")
def telechat3(tmp_path_factory: pytest.TempPathFactory) -> TelechatTokenizer:
    folder = family_folder(tmp_path_factory.mktemp("family") / "telechat3", *THINKING_MARKS)
    return AutoTokenizer.from_pretrained(folder)


def pieces_of(tokenizer: TelechatTokenizer, *chat: dict[str, str]) -> list[str]:
    """The pieces of a prompt; the bytes and letters that the small vocabulary cuts a text into are joined."""
    ids = tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_dict=False)
    marks = {*FAMILY_MARKS, *THINKING_MARKS, "<_end>", "\n"}
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return [
        part
        for mark, run in groupby(pieces, marks.__contains__)
        for part in ([*run] if mark else ["".join(run)])
    ]


def test_a_telechat2_prompt_begins_with_the_system_text(telechat2: TelechatTokenizer) -> None:
    system, text, newline, *rest = pieces_of(telechat2, user("你好"))
    assert (system, newline, rest) == ("<_system>", "\n", ["<_user>", "▁你好", "<_bot>"])
    assert text.startswith("▁你")
    ids = telechat2.apply_chat_template([user("你好")], add_generation_prompt=True, return_dict=False)
    assert (ids[0], ids[-3], ids[-1]) == (6, 4, 5)


def test_a_given_system_text_takes_its_place(telechat2: TelechatTokenizer) -> None:
    given = pieces_of(
        telechat2, {"role": "system", "content": "hello"}, user("你好"), bot("hello"), user("1")
    )
    assert given == [
        "<_system>",
        "▁hello",
        "\n",
        "<_user>",
        "▁你好",
        "<_bot>",
        "▁hello",
        "<_end>",
        "<_user>",
        "▁1",
        "<_bot>",
    ]


def test_control_pieces_are_found_in_a_text_and_left_out_of_an_answer(telechat2: TelechatTokenizer) -> None:
    assert telechat2.convert_tokens_to_ids(telechat2.tokenize("hello<_bot>hello"))[1] == 5
    plain = telechat2.sp_model.encode("hello<_bot>hello")
    assert 5 not in plain, "SentencePiece alone finds none: without the split this test could not fail"
    ids = telechat2.encode("<_bot>hello<_end>", add_special_tokens=False)
    assert telechat2.decode(ids, skip_special_tokens=True) == "hello"


def test_a_telechat3_prompt_opens_the_thinking_and_drops_the_old(telechat3: TelechatTokenizer) -> None:
    assert pieces_of(telechat3, user("你好")) == [
        "<_system>",
        "<_user>",
        "▁你好",
        "<_bot>",
        "<think>",
        "▁",
        "\n",
    ]
    answered = bot("<think>\nhello\n</think>\nanswer")
    assert pieces_of(telechat3, user("你好"), answered, user("1"))[:9] == [
        *["<_system>", "<_user>", "▁你好", "<_bot>", "▁answer", "<_end>", "▁", "\n", "<_user>"],
    ]


def test_thinking_is_told_from_the_answer(telechat3: TelechatTokenizer) -> None:
    ids = telechat3.encode("hello</think>answer<_end>", add_special_tokens=False)
    assert telechat3.decode(ids, skip_special_tokens=True).replace(" ", "") == "hello</think>answer"


def test_saving_keeps_the_family_apart(telechat3: TelechatTokenizer, tmp_path: Path) -> None:
    telechat3.save_pretrained(tmp_path / "copy")
    write_json(tmp_path / "copy" / "config.json", {"model_type": "telechat"})
    again = AutoTokenizer.from_pretrained(tmp_path / "copy")
    chat = [user("你好"), bot("hello"), user("1")]
    options = {"add_generation_prompt": True, "return_dict": False}
    assert again.apply_chat_template(chat, **options) == telechat3.apply_chat_template(chat, **options)


def test_a_question_with_its_marks_gets_them_once(telechat2: TelechatTokenizer) -> None:
    assert chat_ids(telechat2, "<_user>hello<_bot>") == chat_ids(telechat2, "hello")
    with pytest.raises(DataError, match="several turns"):
        chat_ids(telechat2, "<_user>hello<_bot>hello<_end><_user>1<_bot>")

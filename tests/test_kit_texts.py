"""The kit's texts by kind: halves that share no line, enough of them, and a mixture in which every kind counts alike."""

import itertools
from pathlib import Path

import pytest

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.model.tiny import byte_tokenizer
from telechat_kit.quantization.calibration.samples import CalibrationSet, calibration_set
from telechat_kit.texts import HALVES, KIT_TEXTS, PYDOC_TOPICS, Text, kit_texts, load_text, text_files
from telechat_kit.token_samples import joined_ids, token_blocks

TOKENIZER = byte_tokenizer()


def mixture(source: str, samples: int, tokens: int = 64, seed: int = 0) -> CalibrationSet:
    return calibration_set(
        TOKENIZER,
        source,
        format="blocks",
        lines="seed",
        samples=samples,
        tokens=tokens,
        seed=seed,
        context=512,
    )


def test_every_half_has_the_kinds_that_it_is_for() -> None:
    assert [*kit_texts("calibration")] == ["chat", "code", "en", "zh"]
    for half in HALVES[1:]:
        assert [*kit_texts(half)] == ["chat", "code", "docs", "en", "zh"]
    with pytest.raises(DataError, match="halves"):
        kit_texts("evaluation")


@pytest.mark.parametrize("one, other", itertools.combinations(HALVES, 2))
def test_halves_share_no_line(one: str, other: str) -> None:
    def pieces(half: str) -> set[str]:
        """Lines of any length that says something."""
        texts = kit_texts(half).values()
        lines = [
            line for text in texts for whole in (*text.lines, *text.answers) for line in whole.split("\n")
        ]
        return {line.strip() for line in lines if len(line.strip()) > 60}

    assert pieces(one)
    assert not pieces(one) & pieces(other)


def test_a_conversation_is_in_the_chat_format_of_the_model() -> None:
    text = Text("two", ("How?", "Why?"), (1, 2), ("So.", "Therefore."))
    tokenizer = byte_tokenizer()
    assert (
        tokenizer.decode(joined_ids(tokenizer, text)) == "How?\nSo.\nWhy?\nTherefore."
    )  # it has no format yet
    tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    ids = joined_ids(tokenizer, text)
    assert tokenizer.decode(ids) == "<user>How?<assistant>So.<user>Why?<assistant>Therefore."
    assert text.sha256 != Text("two", text.lines, text.numbers).sha256


def test_every_kind_gives_as_many_samples_and_they_come_in_turns() -> None:
    found = mixture(KIT_TEXTS, 8)
    kinds = kit_texts("calibration")
    assert [(share.kind, share.tokens) for share in found.kinds] == [(kind, 128) for kind in kinds]
    for index, (share, text) in enumerate(zip(found.kinds, kinds.values(), strict=True)):
        ids = joined_ids(TOKENIZER, text)
        assert [found.ids[index], found.ids[index + 4]] == [tuple(ids[a:b]) for a, b in share.blocks]
    assert len(found.ids) == 8


def test_samples_that_do_not_divide_go_to_the_first_kinds() -> None:
    assert [share.tokens // 64 for share in mixture(KIT_TEXTS, 6).kinds] == [2, 2, 1, 1]


def test_a_text_is_added_as_one_more_kind_or_takes_the_place_of_all(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("something of my own " * 40)
    assert [share.kind for share in mixture(f"{KIT_TEXTS}, {own}", 5).kinds] == [
        "chat",
        "code",
        "en",
        "zh",
        str(own),
    ]
    alone = mixture(str(own), 5)
    assert alone.kinds == []
    assert len(alone.ranges) == 5


def test_what_was_seen_of_a_kind_can_be_left_out_of_an_evaluation() -> None:
    found = mixture(f"{KIT_TEXTS}, {PYDOC_TOPICS}", 10)
    share, text = found.kinds[-1], load_text(PYDOC_TOPICS)
    assert (share.kind, share.sha256) == (PYDOC_TOPICS, text.sha256)
    drawn = token_blocks(TOKENIZER, text, 64, 2, 0, exclude=share.blocks)
    assert not {block.start for block in drawn} & {start for start, _ in share.blocks}
    assert {block.start for block in token_blocks(TOKENIZER, text, 64, 2, 0)} == {
        start for start, _ in share.blocks
    }


def test_too_few_samples_or_too_short_a_kind_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="4 kinds of text need a sample each"):
        mixture(KIT_TEXTS, 3)
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(DataError, match=r"short\.txt gives 0 free blocks"):
        mixture(f"{KIT_TEXTS}, {short}", 5)
    with pytest.raises(ParameterError, match="twice"):
        mixture(f"{PYDOC_TOPICS}, {PYDOC_TOPICS}", 5)


def test_the_files_that_a_name_stands_for_are_known(tmp_path: Path) -> None:
    own = tmp_path / "a,b.txt"
    own.write_text("text")
    assert text_files(PYDOC_TOPICS) == []
    assert text_files(str(own)) == [own]
    found = text_files(f"{KIT_TEXTS}, {PYDOC_TOPICS}, params/data/questions.jsonl")
    assert found[-1].name == "questions.jsonl"
    assert {path.stem for path in found[:-1]} == {"chat", "code", "docs", "en", "zh"}
    assert all(path.is_file() for path in found)

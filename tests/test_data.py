"""Texts and the blocks drawn from them: disjoint, seeded, and refused with figures where they cannot be."""

import hashlib
import pydoc_data.topics
from pathlib import Path

import pytest

from telechat_kit.data import PYDOC_TOPICS, Block, Text, load_text, token_blocks
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.model.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()  # one token a byte
TEXT = Text("a text", ("abcdefghijklmnopqrstuvwxyz" * 4,))  # 104 tokens


def overlaps(block: Block, low: int, high: int) -> bool:
    return bool(set(range(block.start, block.stop)) & set(range(low, high)))


def test_blocks_are_pieces_of_the_text_and_share_no_token() -> None:
    ids = TOKENIZER(TEXT.lines[0])["input_ids"]
    blocks = token_blocks(TOKENIZER, TEXT, 10, 10, seed=3)
    assert sorted(block.start for block in blocks) == list(range(0, 100, 10))
    assert all(block.ids == tuple(ids[block.start : block.stop]) for block in blocks)
    assert all(block.stop - block.start == 10 for block in blocks)


def test_the_draw_depends_on_the_seed_alone() -> None:
    def starts(seed: int) -> list[int]:
        return [block.start for block in token_blocks(TOKENIZER, TEXT, 5, 8, seed)]

    assert starts(1) == starts(1)
    assert len({tuple(starts(seed)) for seed in range(5)}) == 5


def test_every_block_can_be_drawn() -> None:
    drawn = {token_blocks(TOKENIZER, TEXT, 10, 1, seed)[0].start for seed in range(200)}
    assert drawn == set(range(0, 100, 10))


@pytest.mark.parametrize(
    "seen", [[(0, 10)], [(40, 50)], [(9, 11)], [(5, 6), (52, 58)], [(0, 47)], [(33, 200)]]
)
def test_excluded_ranges_are_not_touched_and_nothing_else_is_lost(seen: list[tuple[int, int]]) -> None:
    every = token_blocks(TOKENIZER, TEXT, 10, 10, seed=0)
    free = [block for block in every if not any(overlaps(block, low, high) for low, high in seen)]
    drawn = token_blocks(TOKENIZER, TEXT, 10, len(free), seed=0, exclude=seen)
    assert sorted(block.start for block in drawn) == sorted(block.start for block in free)
    with pytest.raises(DataError, match=f"gives {len(free)} free blocks"):
        token_blocks(TOKENIZER, TEXT, 10, len(free) + 1, seed=0, exclude=seen)


def test_lines_are_joined_by_newlines() -> None:
    (block,) = token_blocks(TOKENIZER, Text("lines", ("ab", "c")), 4, 1, seed=0)
    assert TOKENIZER.decode(block.ids) == "ab\nc"


def test_a_text_that_is_too_short_says_how_many_blocks_there_are() -> None:
    with pytest.raises(DataError) as caught:
        token_blocks(TOKENIZER, TEXT, 50, 3, seed=0)
    assert str(caught.value) == (
        "a text gives 2 free blocks of 50 tokens (104 tokens in all), 3 are asked for. "
        "Give a longer text, or ask for fewer or shorter blocks."
    )
    with pytest.raises(DataError, match="gives 0 free blocks of 105 tokens"):
        token_blocks(TOKENIZER, TEXT, 105, 1, seed=0)


@pytest.mark.parametrize(("length", "count"), [(0, 3), (-1, 3), (10, 0), (10, -2)])
def test_no_blocks_or_blocks_of_no_tokens_are_refused(length: int, count: int) -> None:
    with pytest.raises(ParameterError, match="must be at least 1"):
        token_blocks(TOKENIZER, TEXT, length, count, seed=0)


def test_the_python_topics_are_a_long_real_text() -> None:
    text = load_text(PYDOC_TOPICS)
    assert text.source == "pydoc_data.topics"
    assert len(text.lines) == 1
    assert len(text.lines[0]) > 400_000
    assert all(topic in text.lines[0] for topic in pydoc_data.topics.topics.values())


def test_jsonl_lines_are_the_pieces_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "calibration.jsonl"
    path.write_text('{"input": "首都在哪里?"}\n\n{"input": "b\\nc", "answer": "d"}\n', encoding="utf-8")
    text = load_text(str(path))
    assert text.lines == ("首都在哪里?", "b\nc")
    assert text.source == str(path)


def test_a_plain_file_is_one_piece_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "一行\n二行\n".encode())
    assert load_text(str(path)).lines == ("一行\n二行\n",)


def test_a_source_inside_the_project_is_named_as_the_profile_names_it() -> None:
    assert load_text("params/data/questions.jsonl").source == str(Path("params", "data", "questions.jsonl"))


def test_the_hash_of_a_text_is_that_of_its_lines() -> None:
    assert Text("x", ("a", "二")).sha256 == hashlib.sha256("a\n二\n".encode()).hexdigest()
    assert Text("x", ("a",)).sha256 == Text("y", ("a",)).sha256


def test_a_text_that_is_not_utf8_names_file_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc" + "电信".encode("gb18030"))
    with pytest.raises(DataError, match=r"text\.txt is not UTF-8 text \(.* at byte 3\). Convert it"):
        load_text(str(path))


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_an_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=r"text\.txt is empty. Give a text"):
        load_text(str(path))


def test_a_missing_text_says_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'no\.txt does not exist. .* or "pydoc_data\.topics"'):
        load_text(str(tmp_path / "no.txt"))


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder. Give a text or \.jsonl file"):
        load_text(str(tmp_path))

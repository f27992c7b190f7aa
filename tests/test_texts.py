"""Texts and the blocks drawn from them: disjoint, seeded, and refused with figures where they cannot be."""

import hashlib
import pydoc_data.topics
from pathlib import Path
from typing import Any

import pytest

from telechat_kit.errors import CheckpointError, DataError, ParameterError
from telechat_kit.model.tiny import byte_tokenizer
from telechat_kit.texts import PYDOC_TOPICS, Text, load_text
from telechat_kit.token_samples import Block, chat_ids, line_ranges, line_samples, token_blocks

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


LINES = Text("lines.jsonl", ("first", "二", "the third line", "d", "fifth"), (1, 2, 4, 5, 8))


def numbers(lines: str, count: int = 2, seed: int = 0) -> list[int]:
    found = line_samples(TOKENIZER, LINES, lines, chat=False, tokens=100, count=count, seed=seed)
    return [line.number for line in found]


def test_every_line_is_a_sample_of_its_own_length() -> None:
    found = line_samples(TOKENIZER, LINES, "all", chat=False, tokens=100, count=0, seed=0)
    assert [TOKENIZER.decode(line.ids) for line in found] == list(LINES.lines)
    assert [line.number for line in found] == [1, 2, 4, 5, 8]
    assert [line.length for line in found] == [5, 3, 14, 1, 5]


def test_lines_come_as_questions_in_the_chat_format_on_request() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<_user>{{ m.content }}<_bot>{% endfor %}"
    (line,) = line_samples(tokenizer, LINES, "4", chat=True, tokens=100, count=0, seed=0)
    assert list(line.ids) == chat_ids(tokenizer, "the third line")
    assert tokenizer.decode(line.ids) == "<_user>the third line<_bot>"


def test_lines_are_drawn_by_seed_without_repeats() -> None:
    assert numbers("seed", 5) == numbers("seed", 5)
    assert sorted(numbers("seed", 5)) == [1, 2, 4, 5, 8]
    assert {number for seed in range(60) for number in numbers("seed", 1, seed)} == {1, 2, 4, 5, 8}


@pytest.mark.parametrize(
    ("lines", "expected"), [("4", [4]), ("8,1", [8, 1]), ("1-2, 4 - 5", [1, 2, 4, 5]), ("2,1-2", [2, 1])]
)
def test_lines_are_given_by_their_numbers_in_the_file(lines: str, expected: list[int]) -> None:
    assert numbers(lines) == expected


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ("every", ParameterError, 'calibration_lines "every" is unknown'),
        ("1,,2", ParameterError, 'unknown at ""'),
        ("4-2", ParameterError, 'unknown at "4-2"'),
        ("7", DataError, r"lines\.jsonl, line 7 is empty"),
        ("1-999999999999", DataError, r"lines\.jsonl ends with line 8, calibration_lines asks for line 9"),
        ("0", DataError, "line 0 is empty"),
    ],
)
def test_lines_that_are_not_there_are_named(lines: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        numbers(lines)


def test_more_lines_than_there_are_say_how_many_there_are() -> None:
    with pytest.raises(DataError, match=r"lines\.jsonl has 5 lines, 6 are asked for"):
        numbers("seed", 6)


def test_a_plain_text_has_no_lines_to_choose_from() -> None:
    with pytest.raises(ParameterError, match=r"a text is one text .* \.jsonl file"):
        line_samples(TOKENIZER, TEXT, "all", chat=False, tokens=9, count=1, seed=0)


def test_a_line_that_is_too_long_is_cut_and_says_how_long_it_was() -> None:
    (line,) = line_samples(TOKENIZER, LINES, "4", chat=False, tokens=9, count=0, seed=0)
    assert (TOKENIZER.decode(line.ids), line.length) == ("the third", 14)


def test_the_numbers_of_lines_count_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "calibration.jsonl"
    path.write_text('\n{"input": "a"}\n  \n{"input": "b"}\n', encoding="utf-8")
    assert load_text(str(path)).numbers == (2, 4)


@pytest.mark.parametrize("chosen", [[1], [4], [8], [2, 4], [1, 8], [1, 2, 4, 5, 8]])
def test_ranges_of_lines_cover_them_in_the_joined_text(chosen: list[int]) -> None:
    ids = TOKENIZER("\n".join(LINES.lines))["input_ids"]
    ranges = line_ranges(TOKENIZER, LINES, chosen)
    outside = [i for i in range(len(ids)) if not any(low <= i < high for low, high in ranges)]
    left = TOKENIZER.decode([ids[i] for i in outside])
    for number, line in zip(LINES.numbers, LINES.lines, strict=True):
        assert (line in left) == (number not in chosen)


@pytest.mark.parametrize("name", ["CALIBRATION.JSONL", "calibration.ndjson", "calibration.json"])
def test_json_is_never_read_as_a_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"input": "a"}\n{"prompt": "b"}\n', encoding="utf-8")
    assert load_text(str(path)).lines == ("a", "b")
    path = tmp_path / "calibration.txt"
    for content in (
        '{"input": "a"}\n{"input": "b"}\n',
        '[{"input": "a"}]',
        '[\n{"input": "a"},\n{"input": "b"}\n]',
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=r"calibration\.txt holds JSON, not a text"):
            load_text(str(path))
    path.write_text("{braces} are allowed, [lists] too", encoding="utf-8")
    assert load_text(str(path)).lines == ("{braces} are allowed, [lists] too",)


@pytest.mark.parametrize("content", [b"PK\x03\x04\0\0", b"\0" * 100])
def test_a_workbook_or_a_file_of_nothing_is_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.xlsx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"calibration\.xlsx is no text: it holds NUL"):
        load_text(str(path))


def chat_tokenizer(before: str = "<_user>", after: str = "<_bot>") -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = f"{{% for m in messages %}}{before}{{{{ m.content }}}}{after}{{% endfor %}}"
    return tokenizer


@pytest.mark.parametrize(
    "line", ["<_user>北京<_bot>", " <_user>北京<_bot>\n", "<_user>北京", "<_user>北京<_bot>首都<_end>"]
)
def test_a_question_in_chat_form_gets_its_marks_once(line: str) -> None:
    tokenizer = chat_tokenizer()
    assert chat_ids(tokenizer, line) == chat_ids(tokenizer, "北京")


def test_marks_inside_a_question_stay() -> None:
    tokenizer = chat_tokenizer()
    assert tokenizer.decode(chat_ids(tokenizer, "what is <_user>?")) == "<_user>what is <_user>?<_bot>"


@pytest.mark.parametrize("line", ["<_user>a<_bot>b<_end><_user>c<_bot>", "<_user>a<_user>b"])
def test_a_chat_of_several_turns_is_refused_by_line(line: str) -> None:
    with pytest.raises(
        DataError, match=r'q\.jsonl, line 3 begins with "<_user>": it is a chat of several turns'
    ):
        chat_ids(chat_tokenizer(), line, "q.jsonl, line 3")


@pytest.mark.parametrize("question", ["a\ud83d", 5, None])
def test_a_question_that_is_no_text_is_refused(question: Any) -> None:
    with pytest.raises(DataError, match=r"line 7: .* is no text, or holds half a character"):
        chat_ids(chat_tokenizer(), question, "line 7")


def test_a_tokenizer_without_chat_template_says_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"no chat template.*chat_template\.jinja"):
        chat_ids(byte_tokenizer(), "a")

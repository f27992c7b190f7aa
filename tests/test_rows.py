"""Lines of questions in every form that people bring: read as meant, or refused by file and line."""

import json
import os
from pathlib import Path
from typing import Any

import pandas
import pytest

from telechat_kit.errors import DataError
from telechat_kit.files import write_jsonl
from telechat_kit.rows import read_numbered_rows, read_rows

ASKED = ["首都在哪里?", "b"]


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def asked(path: Path) -> list[str]:
    return [row["input"] for row in read_rows(path)]


def test_jsonl_lines_come_back_as_written(tmp_path: Path) -> None:
    rows = [{"input": "一\u2028二\x85三"}, {"input": "b\nc", "other": 1}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_rows(path, "input") == rows
    assert path.read_bytes().count(b"\n") == 2


def test_jsonl_tolerates_blank_lines_a_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"input": "a"}\r\n\r\n  \r\n{"input": "b"}')
    assert read_rows(path, "input") == [{"input": "a"}, {"input": "b"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"input": "b"', "not valid JSON"),
        ("not json", "not valid JSON"),
        ('{"answer": "b"}', "non-empty text under \"input\", got {'answer': 'b'}"),
        ('{"input": ""}', "non-empty text"),
        ('{"input": "  "}', "non-empty text"),
        ('{"input": 3}', "non-empty text"),
        ('{"input": null}', "non-empty text"),
        ('["input"]', "expected an object"),
        ("3", "expected an object"),
    ],
)
def test_a_wrong_jsonl_line_is_named_by_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"input": "a"}}\n\n{line}\n{{"input": "c"}}\n')
    with pytest.raises(DataError) as caught:
        read_rows(path, "input")
    assert str(caught.value).startswith(f"{path}, line 3")
    assert reason in str(caught.value)


def test_a_jsonl_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"input": "a"}\n' + '{"input": "电信"}\n'.encode("gb18030"))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: not UTF-8"):
        read_rows(path, "input")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_jsonl_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"rows\.jsonl holds no lines. Give at least one"):
        read_rows(path, "input")


def test_a_missing_jsonl_file_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'rows\.jsonl does not exist. Give a file of {"input": "..."} lines'):
        read_rows(tmp_path / "rows.jsonl", "input")


@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.JSONL", "rows.ndjson", "rows.jsonlines", "rows.json"])
def test_json_lines_are_read_whatever_their_suffix_is_called(tmp_path: Path, name: str) -> None:
    assert asked(written(tmp_path, name, '{"input": "首都在哪里?"}\n{"input": "b"}\n')) == ASKED


@pytest.mark.parametrize(
    "value",
    [
        [{"input": "首都在哪里?"}, {"input": "b"}],
        ["首都在哪里?", "b"],
        {"data": [{"input": "首都在哪里?"}, {"prompt": "b"}]},
        [[{"role": "user", "content": "首都在哪里?"}], [{"role": "user", "content": "b"}]],
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_read_as_rows(tmp_path: Path, value: Any, indent: int | None) -> None:
    assert asked(written(tmp_path, "rows.json", json.dumps(value, indent=indent))) == ASKED
    if isinstance(value, list):
        assert asked(written(tmp_path, "rows.jsonl", json.dumps(value, indent=indent))) == ASKED


def test_the_items_of_a_list_are_numbered_and_so_are_their_errors(tmp_path: Path) -> None:
    assert list(read_numbered_rows(written(tmp_path, "a.json", '["a", "b"]'))) == [1, 2]
    with pytest.raises(DataError, match=r"b\.json, line 2: expected an object"):
        asked(written(tmp_path, "b.json", '["a", 3]'))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "b"},
        {"question": "b"},
        {"query": "b"},
        {"text": "b"},
        {"content": "b"},
        {"instruction": "b", "input": "", "output": "c"},
        {"messages": [{"role": "user", "content": "b"}]},
        {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "b"}]}]},
        {"conversations": [{"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]},
        {"input": [{"role": "user", "content": "b"}]},
        [{"role": "user", "content": "b"}],
    ],
)
def test_a_question_is_found_under_its_usual_names(tmp_path: Path, row: Any) -> None:
    assert asked(written(tmp_path, "rows.jsonl", json.dumps(row))) == ["b"]


def test_an_instruction_and_its_input_are_one_question(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", '{"instruction": "Translate", "input": "水"}')
    assert asked(path) == ["Translate\n水"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "question": "b"}, '"prompt" or "question"'),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "2 questions of a user in 2 messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "0 questions of a user"),
        (
            {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
            "without a system message",
        ),
    ],
)
def test_what_is_asked_must_be_plain(tmp_path: Path, row: Any, problem: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 1.*{problem}"):
        asked(written(tmp_path, "rows.jsonl", json.dumps(row)))


def test_another_key_has_no_other_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='non-empty text under "question"'):
        read_rows(written(tmp_path, "rows.jsonl", '{"prompt": "b"}'), "question")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "id,input\n1,首都在哪里?\n2,b\n"),
        ("ROWS.CSV", '\ufeffinput\r\n"首都在哪里?"\r\nb\r\n'),
        ("rows.tsv", "id\tquestion\n1\t首都在哪里?\n2\tb\n"),
    ],
)
def test_tables_are_read_by_their_header(tmp_path: Path, name: str, content: str) -> None:
    assert asked(written(tmp_path, name, content)) == ASKED


def test_a_cell_keeps_its_lines_and_its_empty_looking_words(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", 'input\n"a\nb, c"\nNA\n')
    assert {number: row["input"] for number, row in read_numbered_rows(path).items()} == {
        3: "a\nb, c",
        4: "NA",
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("input,x\na\n", r"line 2: not as many columns"),
        ("input\na,b\n", r"line 2: not as many columns"),
        ("other\na\n", r"line 2: expected an object with a non-empty text"),
        ('input\n"a\n', r"line 1: no CSV"),
        ("input\n电信\n".encode("gb18030"), r"line 2: not UTF-8"),
    ],
)
def test_a_wrong_table_names_the_line(tmp_path: Path, content: str | bytes, problem: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.csv, {problem}"):
        asked(written(tmp_path, "rows.csv", content))


def test_parquet_files_are_read_where_pyarrow_is_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    try:
        pandas.DataFrame({"prompt": ASKED}).to_parquet(path)
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(DataError, match=r"rows\.parquet needs pyarrow: pip install pyarrow"):
            asked(path)
    else:
        assert asked(path) == ASKED
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(DataError, match=r"rows\.parquet is no Parquet file"):
            asked(path)


def test_half_a_character_is_refused_by_line(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", '{"input": "a"}\n{"input": "cut \\ud83d"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: half a character"):
        asked(path)
    assert asked(written(tmp_path, "whole.jsonl", '{"input": "\\ud83d\\ude00"}')) == ["😀"]


def test_a_column_named_twice_is_refused_and_a_long_cell_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'a\.csv, line 1: two columns are called "input"'):
        read_rows(written(tmp_path, "a.csv", "input,input\na,b\n"))
    assert asked(written(tmp_path, "b.csv", f"input\n{'x' * 200_000}\n")) == ["x" * 200_000]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="is a pipe or a device"):
        read_rows(tmp_path / "a.jsonl")


def test_the_line_of_a_number_is_said_once(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"input": "a", "n": NaN}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: NaN is no finite number"):
        read_rows(path)

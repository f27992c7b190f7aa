"""JSON that passes is whole and bounded; what does not is refused by file and line, with a remedy that fits."""

import os
from pathlib import Path

import pytest

from telechat_kit.errors import DataError
from telechat_kit.files import read_json, write_json
from telechat_kit.strict_json import MOST_DIGITS, MOST_LEVELS, parse, read_bytes


def refused(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        parse(content, "x.json", "Correct it.")
    assert str(caught.value).startswith("x.json")
    return str(caught.value)


def test_ordinary_json_passes_with_and_without_a_byte_order_mark() -> None:
    value = {"a": [1, -2.5, None, True, "\u2028 二 😀"], "b": 10**30}
    for mark in (b"", b"\xef\xbb\xbf"):
        assert (
            parse(
                mark
                + b'{"a": [1, -2.5, null, true, "\\u2028 \xe4\xba\x8c \\ud83d\\ude00"], "b": 1'
                + b"0" * 30
                + b"}",
                "",
                "",
            )
            == value
        )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1,\n"b": }', "x.json is not valid JSON (Expecting value, line 2, column 6). Correct it."),
        (b'{"a": "NaN",\n "b": NaN}', "x.json, line 2: NaN is no finite number. Correct it."),
        (b'{"a": -Infinity}', "x.json, line 1: -Infinity is no finite number. Correct it."),
        (b'{\n"a": 1e999}', "x.json, line 2: 1e999 is too large or too long a number. Correct it."),
        (b"9" * 5000, "x.json, line 1: a number of 5000 digits. Correct it."),
        (b'"\\ud83d"', "x.json: half a character (a lone surrogate) in '\\ud83d'. Correct it."),
        (b'{"\\uDC00": 1}', "x.json: half a character (a lone surrogate) in '\\udc00'. Correct it."),
        (b"[" * 100_000, f"x.json: nested deeper than {MOST_LEVELS} levels. Correct it."),
        (b"\xff", "x.json: not UTF-8 (invalid start byte at byte 0). Convert it."),
    ],
)
def test_what_is_no_json_says_why_and_where(content: bytes, problem: str) -> None:
    assert refused(content) == problem


def test_bounds_are_met_exactly() -> None:
    assert parse(b"[" * MOST_LEVELS + b"]" * MOST_LEVELS, "", "")
    assert "nested" in refused(b"[" * (MOST_LEVELS + 1) + b"]" * (MOST_LEVELS + 1))
    assert parse(b"9" * MOST_DIGITS, "", "") == int("9" * MOST_DIGITS)
    assert "digits" in refused(b"9" * (MOST_DIGITS + 1))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty. Remove it and run the step again"),
        (b" \n", "is empty"),
        (b"\xff\xfe{\x00}\x00", "is UTF-16 text. Save it as UTF-8"),
        ("{}".encode("utf-32"), "is UTF-32 text. Save it as UTF-8"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            r"is a pointer of git-lfs, .*Run `git lfs pull`",
        ),
        (b"\x00\x01", "is not valid JSON"),
    ],
)
def test_a_file_without_a_document_says_what_it_is(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"value\.json {problem}"):
        read_json(path)


def test_a_key_that_stands_twice_is_refused_where_it_must_be_one() -> None:
    assert parse(b'{"a": 1, "a": 2}', "x", "") == {"a": 2}
    with pytest.raises(DataError, match="x: the key 'a' stands twice in one object"):
        parse(b'{"b": {"a": 1, "a": 2}}', "x", "", once=True)


def test_a_pipe_or_a_device_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DataError, match="is a pipe or a device"):
            read_bytes(path, "")


def test_a_folder_or_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder\. Give a file"):
        read_json(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "none.json")
    assert read_json(write_json(tmp_path / "one.json", [1])) == [1]

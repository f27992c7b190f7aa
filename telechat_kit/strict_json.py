"""JSON as people and attackers have it: read whole and bounded, or refused with the line and a remedy that fits.

Python's own reader takes NaN, half a character (`\\ud83d`) and any depth, and stops with errors of many kinds. What
passes here can be written again, encoded as UTF-8 and walked by plain recursion.
"""

import codecs
import json
import math
import re
import stat
from pathlib import Path
from typing import Any

from telechat_kit.errors import DataError
from telechat_kit.messages import Message, marked

#: Bounds on what is read: bytes of a file, levels of nesting, digits of a number
MOST_BYTES, MOST_LEVELS, MOST_DIGITS = 1 << 28, 64, 100

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
#: UTF-32 begins with the mark of UTF-16, or with two NULs before it
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
_KNOWN_LINE = re.compile(r", line \d+$")
_NO_NUMBER = ("NaN", "Infinity", "-Infinity")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)|-?\d[\d.eE+-]*', re.DOTALL)


class _UnfitError(ValueError):
    """Why a document is not taken though its syntax may be right, and the number that is at fault."""

    def __init__(self, problem: str, number: str = "") -> None:
        super().__init__(problem)
        self.number = number


def read_bytes(path: Path, remedy: str) -> bytes:
    """The bytes of a file of text, at most `MOST_BYTES`; `remedy` ends the error if it cannot be right.

    Raises:
        DataError: no such file, a folder, a pipe, too large, empty, or only a pointer of git-lfs.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise DataError("{path} is a folder. Give a file.", path=path)
        if not stat.S_ISREG(found.st_mode):  # a pipe gives its content once, and a device never ends
            raise DataError("{path} is a pipe or a device. Give a file.", path=path)
        if found.st_size > MOST_BYTES:
            raise DataError(
                "{path} has {st_size:,.0f} MB, too much for such a file. {remedy}",
                path=path,
                st_size=found.st_size / 1e6,
                remedy=remedy,
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            "{path} cannot be read: {strerror}. {remedy}",
            path=path,
            strerror=error.strerror or error,
            remedy=remedy,
        ) from error
    if problem := no_content(content):
        if problem.endswith("."):
            raise DataError("{path} {problem}", path=path, problem=problem)
        raise DataError("{path} {problem}. {remedy}", path=path, problem=problem, remedy=remedy)
    return content


def no_content(content: bytes) -> str:
    """What is wrong with a file that holds nothing of its own; a whole sentence where the remedy is known."""
    if content.startswith(LFS_POINTER):
        return marked("is a pointer of git-lfs, not the file itself. Run `git lfs pull` where it was cloned.")
    if content.startswith(_UTF16):
        return Message(
            "is UTF-{value} text. Save it as UTF-8.", value=32 if content.startswith(_UTF32) else 16
        )
    return "" if content.removeprefix(codecs.BOM_UTF8).strip() else marked("is empty")


def parse(content: bytes, where: str, remedy: str, once: bool = False) -> Any:
    """The JSON document in `content`, which may begin with a byte order mark; `where` names it in errors.

    A key that an object has twice counts as the last one, as everywhere; with `once` it is refused.

    Raises:
        DataError: not UTF-8, not JSON, NaN or an infinite number, half a character, nested too deep or a number too
            long; the message names the line and ends with `remedy`.
    """
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "{where}: not UTF-8 ({reason} at byte {start}). Convert it.",
            where=where,
            reason=error.reason,
            start=error.start,
        ) from error
    try:
        value = json.loads(
            text,
            parse_constant=_refuse,
            parse_float=_float,
            parse_int=_integer,
            object_pairs_hook=_object if once else None,
        )
        _require_flat(value)
        if _HALF_CHARACTER.search(content):
            _require_whole_characters(value)
    except json.JSONDecodeError as error:
        place = Message("at column {column}", column=error.colno)
        if "\n" in text:
            place = Message("line {line}, column {column}", line=error.lineno, column=error.colno)
        raise DataError(
            "{where} is not valid JSON ({msg}, {place}). {remedy}",
            where=where,
            msg=error.msg,
            place=place,
            remedy=remedy,
        ) from error
    except _UnfitError as error:
        line = "" if _KNOWN_LINE.search(where) else _line(text, error.number)
        raise DataError(
            "{where}{line}: {error}. {remedy}", where=where, line=line, error=error, remedy=remedy
        ) from error
    except RecursionError as error:
        raise DataError(
            "{where}: nested deeper than {most_levels} levels. {remedy}",
            where=where,
            most_levels=MOST_LEVELS,
            remedy=remedy,
        ) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _UnfitError(Message("the key {twice!a} stands twice in one object", twice=twice[:60]))
    return value


def _refuse(constant: str) -> Any:
    raise _UnfitError(Message("{constant} is no finite number", constant=constant), constant)


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _UnfitError(Message("a number of {count} digits", count=len(digits)), digits)
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if len(digits) > MOST_DIGITS or not math.isfinite(value):
        raise _UnfitError(Message("{digits} is too large or too long a number", digits=digits[:20]), digits)
    return value


def _line(text: str, number: str) -> str:
    """`, line N` of the first `number` that stands outside the strings of `text`."""
    for found in _TOKEN.finditer(text) if number else ():
        if found[0] == number:
            return Message(", line {count}", count=text.count(chr(10), 0, found.start()) + 1)
    return ""


def _require_flat(value: Any) -> None:
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _UnfitError(Message("nested deeper than {most_levels} levels", most_levels=MOST_LEVELS))


def _require_whole_characters(value: Any) -> None:
    if isinstance(value, dict):
        for key, child in value.items():
            _require_whole_characters(key)
            _require_whole_characters(child)
    elif isinstance(value, list):
        for child in value:
            _require_whole_characters(child)
    elif isinstance(value, str) and not encodes(value):
        raise _UnfitError(Message("half a character (a lone surrogate) in {value!a}", value=value[:40]))


def encodes(text: str) -> bool:
    """Whether `text` can be written as UTF-8: half a character cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

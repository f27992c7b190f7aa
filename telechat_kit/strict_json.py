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
            raise DataError(f"{path} is a folder. Give a file.")
        if not stat.S_ISREG(found.st_mode):  # a pipe gives its content once, and a device never ends
            raise DataError(f"{path} is a pipe or a device. Give a file.")
        if found.st_size > MOST_BYTES:
            raise DataError(f"{path} has {found.st_size / 1e6:,.0f} MB, too much for such a file. {remedy}")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error
    if problem := no_content(content):
        raise DataError(f"{path} {problem}" + ("" if problem.endswith(".") else f". {remedy}"))
    return content


def no_content(content: bytes) -> str:
    """What is wrong with a file that holds nothing of its own; a whole sentence where the remedy is known."""
    if content.startswith(LFS_POINTER):
        return "is a pointer of git-lfs, not the file itself. Run `git lfs pull` where it was cloned."
    if content.startswith(_UTF16):
        return f"is UTF-{32 if content.startswith(_UTF32) else 16} text. Save it as UTF-8."
    return "" if content.removeprefix(codecs.BOM_UTF8).strip() else "is empty"


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
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}). Convert it.") from error
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
        lines = f"line {error.lineno}, " if "\n" in text else "at "
        place = f"{lines}column {error.colno}"
        raise DataError(f"{where} is not valid JSON ({error.msg}, {place}). {remedy}") from error
    except _UnfitError as error:
        line = "" if _KNOWN_LINE.search(where) else _line(text, error.number)
        raise DataError(f"{where}{line}: {error}. {remedy}") from error
    except RecursionError as error:
        raise DataError(f"{where}: nested deeper than {MOST_LEVELS} levels. {remedy}") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _UnfitError(f"the key {twice[:60]!a} stands twice in one object")
    return value


def _refuse(constant: str) -> Any:
    raise _UnfitError(f"{constant} is no finite number", constant)


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _UnfitError(f"a number of {len(digits)} digits", digits)
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if len(digits) > MOST_DIGITS or not math.isfinite(value):
        raise _UnfitError(f"{digits[:20]} is too large or too long a number", digits)
    return value


def _line(text: str, number: str) -> str:
    """`, line N` of the first `number` that stands outside the strings of `text`."""
    for found in _TOKEN.finditer(text) if number else ():
        if found[0] == number:
            return f", line {text.count(chr(10), 0, found.start()) + 1}"
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
    raise _UnfitError(f"nested deeper than {MOST_LEVELS} levels")


def _require_whole_characters(value: Any) -> None:
    if isinstance(value, dict):
        for key, child in value.items():
            _require_whole_characters(key)
            _require_whole_characters(child)
    elif isinstance(value, list):
        for child in value:
            _require_whole_characters(child)
    elif isinstance(value, str) and not encodes(value):
        raise _UnfitError(f"half a character (a lone surrogate) in {value[:40]!a}")


def encodes(text: str) -> bool:
    """Whether `text` can be written as UTF-8: half a character cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

"""Lines of questions and of calibration texts, in the forms that people have them: one reader for all of them.

JSON lines (`.jsonl`, `.ndjson`), a JSON list, CSV and TSV with a header, Parquet; a text under `input` or one of its
usual other names, Alpaca's `instruction`, or a list of `messages`. What cannot be meant for sure is refused by line.
"""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from telechat_kit.errors import DataError
from telechat_kit.messages import Message, marked
from telechat_kit.strict_json import MOST_BYTES, no_content, parse, read_bytes

JSON_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json")
SUFFIXES = (*JSON_SUFFIXES, ".csv", ".tsv", ".parquet")
#: Other names of the text that a model is asked, and of a list of messages
_ALIASES = ("prompt", "question", "query", "text", "content")
_CHATS = ("messages", "conversations", "conversation")
_USERS, _SYSTEMS = ("user", "human"), ("system",)
_CORRECT = marked("Correct the line.")


def is_rows(path: Path) -> bool:
    """Whether a file holds rows, by how its name ends, in small or capital letters."""
    return path.suffix.lower() in SUFFIXES


def read_rows(path: Path, key: str = "input") -> list[dict[str, Any]]:
    """The rows of `read_numbered_rows` without their numbers."""
    return list(read_numbered_rows(path, key).values())


def read_numbered_rows(path: Path, key: str = "input") -> dict[int, dict[str, Any]]:
    """The rows of a file by the numbers of their lines (items of a list, rows of a Parquet file), from 1.

    Each has a text under `key`. For "input" that may have been given as `prompt`, `question`, `instruction`, a list of
    `messages` with one turn of the user ..., or as a mere text in a JSON list.

    Raises:
        DataError: the file is missing or empty, or a row has no such text, or more than one; file and line named.
    """
    if not path.exists():
        raise DataError('{path} does not exist. Give a file of {{"{key}": "..."}} lines.', path=path, key=key)
    if path.suffix.lower() == ".parquet":
        found: Iterable[tuple[int, Any]] = _parquet(path)
    else:
        found = _of_text(path, _content(path, key))
    rows = {
        number: _row(row, Message("{path}, line {number}", path=path, number=number), key)
        for number, row in found
    }
    if not rows:
        raise _empty(path, key)
    return rows


def _empty(path: Path, key: str) -> DataError:
    return DataError('{path} holds no lines. Give at least one {{"{key}": "..."}} line.', path=path, key=key)


def _content(path: Path, key: str) -> bytes:
    if (
        path.is_file()
        and path.stat().st_size < 1 << 16
        and no_content(content := path.read_bytes()) == "is empty"
    ):
        raise _empty(path, key)
    content = read_bytes(path, marked("Give a file of lines."))
    return content.removeprefix(codecs.BOM_UTF8)


def _of_text(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _table(path, content, "\t" if suffix == ".tsv" else ",")
    if suffix == ".json" or _is_list(content):
        return _document(path, content)
    return _lines(path, content)


def _is_list(content: bytes) -> bool:
    """Whether one JSON list begins here, and not lines that are lists themselves: nothing ends in the first line."""
    first = content.lstrip().split(b"\n", 1)
    return first[0].startswith(b"[") and (len(first) == 1 or not first[1].strip() or not _ends(first[0]))


def _ends(line: bytes) -> bool:
    return line.rstrip().endswith(b"]")


def _lines(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    # not str.splitlines(): it also cuts at separators that may stand inside a JSON text, such as U+2028
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield number, parse(line.strip(), f"{path}, line {number}", _CORRECT)


def _document(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    lines = [line for line in content.split(b"\n") if line.strip()]
    if len(lines) > 1 and all(line.strip()[:1] == b"{" and line.strip()[-1:] == b"}" for line in lines):
        yield from _lines(path, content)  # JSON lines under the name of a document
        return
    value = parse(content, str(path), marked("Correct it."))
    if isinstance(value, dict):
        lists = [key for key, rows in value.items() if isinstance(rows, list) and key not in _CHATS]
        if len(lists) > 1 or (lists and _has_text(value)):
            raise DataError(
                "{path} holds several lists ({lists}). Give one list of rows.",
                path=path,
                lists=", ".join(lists[:4]),
            )
        value = value[lists[0]] if lists else [value]
    if _is_chat(value):
        value = [value]
    if not isinstance(value, list):
        raise DataError("{path} holds no list of rows. Give a JSON list, or one object a line.", path=path)
    yield from enumerate(value, start=1)


def _table(path: Path, content: bytes, delimiter: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MOST_BYTES)  # 128 KB by default, less than a document in a cell
    reader = csv.DictReader(
        io.StringIO(_decoded(path, content), newline=""), delimiter=delimiter, strict=True
    )
    try:
        names = list(reader.fieldnames or ())
        if twice := [name for name in names if names.count(name) > 1 and name.strip()]:
            raise DataError(
                '{path}, line 1: two columns are called "{twice}". Rename one of them.',
                path=path,
                twice=twice[0][:60],
            )
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    "{path}, line {line_num}: not as many columns as in the header. {correct}",
                    path=path,
                    line_num=reader.line_num,
                    correct=_CORRECT,
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            "{path}, line {line_num}: no CSV ({error}). {correct}",
            path=path,
            line_num=reader.line_num,
            error=error,
            correct=_CORRECT,
        ) from error


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            "{path}, line {line}: not UTF-8 ({reason}). Convert it.",
            path=path,
            line=line,
            reason=error.reason,
        ) from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pandas  # noqa: PLC0415  (slow to import; few have such files)

    try:
        frame = pandas.read_parquet(path)
    except ImportError as error:
        raise DataError(
            "{path} needs pyarrow: pip install pyarrow, or give JSON lines.", path=path
        ) from error
    except Exception as error:  # pyarrow has a family of errors of its own
        raise DataError(
            "{path} is no Parquet file that can be read ({error}). Copy it again.",
            path=path,
            error=str(error)[:120],
        ) from error
    for number, row in enumerate(frame.to_dict("records"), start=1):
        yield number, {str(key): _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    """Lists of a Parquet row are arrays."""
    return value.tolist() if hasattr(value, "tolist") else value


def _row(row: Any, where: str, key: str) -> dict[str, Any]:
    if key == "input" and isinstance(row, str):
        row = {key: row}
    elif key == "input" and _is_chat(row):
        row = {"messages": row}
    if not isinstance(row, dict):
        raise DataError(
            '{where}: expected an object with a text under "{key}", got {row}. Correct the line.',
            where=where,
            key=key,
            row=str(row)[:80],
        )
    text = _asked(row, where) if key == "input" else row.get(key)
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            '{where}: expected an object with a non-empty text under "{key}", got {row}.',
            where=where,
            key=key,
            row=str(row)[:80],
        )
    return {**row, key: text}


def _has_text(row: Mapping[str, Any]) -> bool:
    return any(isinstance(row.get(name), str) for name in ("input", "instruction", *_ALIASES))


def _asked(row: Mapping[str, Any], where: str) -> Any:
    """What a row asks, under whichever name; None if nothing there is a text."""
    if _filled(row, "instruction"):  # Alpaca: the input belongs to it
        return "\n".join(str(row[name]) for name in ("instruction", "input") if _filled(row, name))
    if "input" in row and not _is_chat(row["input"]):
        return row["input"]
    names = [name for name in _ALIASES if _filled(row, name)]
    chats = [name for name in ("input", *_CHATS) if _is_chat(row.get(name))]
    if len(names) + len(chats) > 1:
        raise DataError(
            '{where}: "{first}" or "{second}"? Give the text as "input".',
            where=where,
            first=(names + chats)[0],
            second=(names + chats)[1],
        )
    if chats:
        return _only_question(row[chats[0]], f'{where}, "{chats[0]}"')
    return row[names[0]] if names else None


def _filled(row: Mapping[str, Any], name: str) -> bool:
    return isinstance(row.get(name), str) and bool(row[name].strip())


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and _turn(turn) is not None for turn in value)
    )


def _turn(turn: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Role and content of a message, OpenAI's keys or ShareGPT's."""
    for role, content in (("role", "content"), ("from", "value")):
        if isinstance(turn.get(role), str) and content in turn:
            return turn[role], turn[content]
    return None


def _only_question(chat: Iterable[Mapping[str, Any]], where: str) -> str:
    turns = [turn for turn in map(_turn, chat) if turn is not None]
    asked = [_text(content) for role, content in turns if role in _USERS]
    if len(asked) != 1 or any(role in _SYSTEMS and _text(content).strip() for role, content in turns):
        raise DataError(
            "{where}: {count} questions of a user in {messages} messages; the kit asks one question without a "
            'system message. Give it as "input".',
            where=where,
            count=len(asked),
            messages=len(turns),
        )
    return asked[0]


def _text(content: Any) -> str:
    """A message's text; of a list of parts those that are texts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and _filled(part, "text"))
    return content if isinstance(content, str) else ""

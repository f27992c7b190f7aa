"""Texts that the kit reads, and where they come from. What a model is given of them is `token_samples`' business."""

import codecs
import contextlib
import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.messages import marked
from telechat_kit.rows import is_rows, read_numbered_rows
from telechat_kit.strict_json import parse, read_bytes

#: The documentation topics that every CPython ships: a real English text of half a megabyte.
PYDOC_TOPICS = "pydoc_data.topics"
#: The kit's own texts of several kinds: a half to calibrate on, and one to judge by that no method has seen
KIT_TEXTS, SEALED_TEXTS = "kit", "kit:sealed"
HALVES = ("calibration", "evaluation/development", "evaluation/sealed")
_KIT_FOLDER = "params/data/texts"


@dataclass(frozen=True)
class Text:
    """A text and where it is from. `lines` are the pieces that belong together, one for a plain text.

    `numbers` are those of the lines in their `.jsonl` file, from 1; a plain text has none. `answers` make each line
    a question: the text is conversations, in the model's own chat format.
    """

    source: str
    lines: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the lines and answers, each ended by a newline."""
        pieces = (*self.lines, *self.answers)
        return hashlib.sha256("".join(f"{piece}\n" for piece in pieces).encode()).hexdigest()


def load_text(source: str) -> Text:
    """The text named by a profile: `pydoc_data.topics`, a file of rows as `rows` reads them, or a text file.

    Several names separated by commas, or `kit`, are one text of all their lines: `texts_by_kind` parts them.
    """
    parts = texts_by_kind(source)
    if len(parts) > 1:
        return Text(source, tuple(line for part in parts.values() for line in (*part.lines, *part.answers)))
    return next(iter(parts.values()))


def texts_by_kind(source: str) -> dict[str, Text]:
    """The texts to calibrate on that a profile names, by kind: the kit's calibration half for `kit`, else by name.

    Raises:
        DataError, ParameterError: a text is missing, or named twice.
    """
    return _by_kind(source, {KIT_TEXTS: HALVES[0]})


def evaluation_texts(source: str) -> dict[str, Text]:
    """The texts to judge by that a profile names, by kind: `kit` is the half that is looked at while a method is
    made, `kit:sealed` the one kept for the end, anything else a text by its name.

    Raises:
        DataError, ParameterError: a text is missing, or named twice.
    """
    return _by_kind(source, {KIT_TEXTS: HALVES[1], SEALED_TEXTS: HALVES[2]})


def _by_kind(source: str, halves: Mapping[str, str]) -> dict[str, Text]:
    found: dict[str, Text] = {}
    for name in text_names(source):
        more = kit_texts(halves[name]) if name in halves else {name: _load_single(name)}
        if twice := found.keys() & more.keys():
            raise ParameterError(
                '"{source}" names {twice} twice. Name each text once.', source=source, twice=sorted(twice)[0]
            )
        found |= more
    return found


def text_names(source: str) -> list[str]:
    """The names that commas part in `source`; a file or folder whose name has commas is one."""
    return [source] if resolve(source).exists() else [name.strip() for name in source.split(",")]


def text_files(source: str) -> list[Path]:
    """The files that the texts named by `source` are read from; none for the documentation topics."""
    files: list[Path] = []
    for name in text_names(source):
        if name in (KIT_TEXTS, SEALED_TEXTS):
            files += sorted(resolve(_KIT_FOLDER).rglob("*.jsonl"))
        elif name and name != PYDOC_TOPICS:
            files.append(resolve(name))
    return files


def kit_texts(half: str) -> dict[str, Text]:
    """The kit's texts of one of `HALVES` by kind: zh, en, code, chat, and docs in those to judge by."""
    folder = resolve(_KIT_FOLDER) / half
    if half not in HALVES or not folder.is_dir():
        raise DataError(
            "{folder} does not exist. The halves of the kit's texts are {halves}.",
            folder=folder,
            halves=", ".join(HALVES),
        )
    return {path.stem: _load_single(str(path)) for path in sorted(folder.glob("*.jsonl"))}


def _load_single(source: str) -> Text:
    if source == PYDOC_TOPICS:
        topics: dict[str, str] = importlib.import_module(PYDOC_TOPICS).topics
        return Text(source, ("\n".join(topics[key] for key in sorted(topics)),))
    path = resolve(source)
    if is_rows(path) and not path.is_dir():
        rows = read_numbered_rows(path)
        answers = [row["answer"] for row in rows.values() if isinstance(row.get("answer"), str)]
        return Text(
            relative(path),
            tuple(row["input"] for row in rows.values()),
            tuple(rows),
            tuple(answers) if len(answers) == len(rows) else (),
        )
    return Text(relative(path), (_read_plain(path),))


def _read_plain(path: Path) -> str:
    if not path.exists():
        raise DataError(
            '{path} does not exist. Give a text or .jsonl file, or "{pydoc_topics}".',
            path=path,
            pydoc_topics=PYDOC_TOPICS,
        )
    if path.is_dir():
        raise DataError("{path} is a folder. Give a text or .jsonl file.", path=path)
    content = read_bytes(path, marked("Give a text."))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "{path} is not UTF-8 text ({reason} at byte {start}). Convert it.",
            path=path,
            reason=error.reason,
            start=error.start,
        ) from error
    if "\0" in text:
        raise DataError(
            "{path} is no text: it holds NUL, as programs and archives do. Give a text.", path=path
        )
    if _is_json(content):
        raise DataError("{path} holds JSON, not a text. Let its name end in .jsonl or .json.", path=path)
    return text


def _is_json(content: bytes) -> bool:
    """Whether a file is JSON, or begins with a line of it: never meant as a text to read."""
    content = content.removeprefix(codecs.BOM_UTF8).strip()
    if not content.startswith((b"{", b"[")):
        return False
    for part in (content.split(b"\n", 1)[0], content):
        with contextlib.suppress(DataError):
            return _holds_object(parse(part, "", ""))
    return False


def _holds_object(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_object, value)))

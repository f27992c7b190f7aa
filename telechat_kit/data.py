"""Texts that the kit reads: where they come from, their tokens, and which blocks of them are used."""

import hashlib
import importlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.files import read_jsonl, relative, resolve

#: The documentation topics that every CPython ships: a real English text of half a megabyte.
PYDOC_TOPICS = "pydoc_data.topics"


@dataclass(frozen=True)
class Text:
    """A text and where it is from. `lines` are the pieces that belong together, one for a plain text."""

    source: str
    lines: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hash of the lines, each ended by a newline."""
        return hashlib.sha256("".join(f"{line}\n" for line in self.lines).encode()).hexdigest()


@dataclass(frozen=True)
class Block:
    """Tokens `start .. stop` of a text: one sample of a calibration or an evaluation."""

    start: int
    stop: int
    ids: tuple[int, ...]


def load_text(source: str) -> Text:
    """The text named by a profile: `pydoc_data.topics`, a `.jsonl` file of `{"input": ...}` lines, or a text file."""
    if source == PYDOC_TOPICS:
        topics: dict[str, str] = importlib.import_module(PYDOC_TOPICS).topics
        return Text(source, ("\n".join(topics[key] for key in sorted(topics)),))
    path = resolve(source)
    if path.suffix == ".jsonl":
        return Text(relative(path), tuple(row["input"] for row in read_jsonl(path, "input")))
    return Text(relative(path), (_read_plain(path),))


def _read_plain(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f'{path} does not exist. Give a text or .jsonl file, or "{PYDOC_TOPICS}".') from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder. Give a text or .jsonl file.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Convert it."
        ) from error
    if not text.strip():
        raise DataError(f"{path} is empty. Give a text.")
    return text


def token_blocks(
    tokenizer: Any, text: Text, length: int, count: int, seed: int, exclude: Sequence[tuple[int, int]] = ()
) -> list[Block]:
    """`count` blocks of `length` tokens of `text`, drawn by `seed` among those that touch no range of `exclude`.

    The lines are joined by newlines and cut every `length` tokens. Blocks come in the order of the draw.

    Raises:
        DataError: the text is too short for so many blocks.
        ParameterError: no blocks are asked for, or blocks of no tokens.
    """
    if length < 1 or count < 1:
        raise ParameterError(f"{count} blocks of {length} tokens: both numbers must be at least 1.")
    ids = tokenizer("\n".join(text.lines), add_special_tokens=False, verbose=False)["input_ids"]
    starts = [
        start
        for start in range(0, len(ids) - length + 1, length)
        if all(start + length <= low or start >= high for low, high in exclude)
    ]
    if len(starts) < count:
        raise DataError(
            f"{text.source} gives {len(starts)} free blocks of {length} tokens ({len(ids)} tokens in all), "
            f"{count} are asked for. Give a longer text, or ask for fewer or shorter blocks."
        )
    return [
        Block(start, start + length, tuple(ids[start : start + length]))
        for start in random.Random(seed).sample(starts, count)
    ]

"""Notebooks in the language of their reader: their prose, and the comments behind their parameters.

The notebooks of the project are English; paragraphs and comments are messages of the catalog like any other.
"""

import copy
import io
import json
import re
import tokenize
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import IO, Any

from telechat_kit.messages import gettext
from telechat_kit.runs.parameters_cell import is_parameters_cell
from telechat_kit.translation import speaking

_BETWEEN_PARAGRAPHS = re.compile(r"(\n(?:[ \t]*\n)+)")


def in_language(notebook: Any, language: str) -> Any:
    """A copy of a notebook whose Markdown cells and parameter comments are in `language`; code and ids stay."""
    translated = copy.deepcopy(notebook)
    with speaking(language):
        for cell in translated["cells"]:
            cell["source"] = cell_in_language(cell)
    return translated


def cell_in_language(cell: Mapping[str, Any]) -> str:
    """The text of a cell in the language in force."""
    return "".join(_changed(cell, gettext))


def extract(file: IO[bytes], *_: Any, **_options: Any) -> Iterator[tuple[int, str, str, list[str]]]:
    """Babel's extractor: the paragraphs and comments of a notebook, numbered by cell."""
    found: list[str] = []

    def note(message: str) -> str:
        found.append(message)
        return message

    for number, cell in enumerate(json.load(file)["cells"], start=1):
        found.clear()
        list(_changed(cell, note))
        yield from ((number, "gettext", message, []) for message in found)


def _changed(cell: Mapping[str, Any], change: Callable[[str], str]) -> Iterator[str]:
    """The text of a cell in pieces, those that are for readers changed."""
    source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        pieces = _BETWEEN_PARAGRAPHS.split(source)
        yield from (
            change(piece) if number % 2 == 0 and piece else piece for number, piece in enumerate(pieces)
        )
    elif is_parameters_cell(cell):
        yield from _comments(source, change)
    else:
        yield source


def _comments(source: str, change: Callable[[str], str]) -> Iterator[str]:
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            line, comment = lines[row - 1], token.string.removeprefix("# ")
            lines[row - 1] = f"{line[:column]}# {change(comment)}{line[column + len(token.string) :]}"
    yield from lines


def language_of(sources: list[str], notebook: Any, languages: Collection[str]) -> str | None:
    """The language in which the cells of `notebook` are these; None: they are not those of this notebook."""
    for language in languages:
        if [cell["source"] for cell in in_language(notebook, language)["cells"]] == sources:
            return language
    return None

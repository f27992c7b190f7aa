"""Text by the columns that it takes in a terminal: a Chinese sign takes two, and lines may break between any two of them.

What would command a terminal, or turn the order of reading around, is shown by its code.
"""

import re
import textwrap
import unicodedata

#: No line begins with what closes, and none ends with what opens
_CLOSING = "，。、；：？！）》」』”’…,.;:?!)]}%"
_OPENING = "（《「『“‘([{"
_PIECES = re.compile(
    r"\s+|[\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60]|[^\s\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60]+"
)


#: Controls but tab and line feed, and the marks that turn the order of reading around
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """`text` without power over a terminal: what gives it commands stands there by its code, as JSON writes it."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def width(text: str) -> int:
    """The columns that `text` takes."""
    return sum(_columns(sign) for sign in text)


def _columns(sign: str) -> int:
    if unicodedata.combining(sign):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def padded(text: str, columns: int) -> str:
    """`text` with blanks behind it, `columns` wide."""
    return text + " " * max(columns - width(text), 0)


def cut(text: str, columns: int) -> str:
    """`text`, or as much of it as leaves room for an ellipsis."""
    if width(text) <= columns:
        return text
    kept = ""
    for sign in text:
        if width(kept + sign) >= columns:
            break
        kept += sign
    return f"{kept}…"


def wrapped(text: str, columns: int, break_long_words: bool = True) -> list[str]:
    """The lines of one paragraph, none wider than `columns` where it can break; at least one, perhaps empty."""
    if width(text) == len(text):
        lines = textwrap.wrap(text, columns, break_long_words=break_long_words, break_on_hyphens=False)
        return lines or [""]
    lines, line = [], ""
    for piece in _unbroken(text):
        if line and width((line + piece).rstrip()) > columns:
            lines.append(line.rstrip())
            line = ""
        line = (line + piece) if line else piece.lstrip()
        while break_long_words and width(line.rstrip()) > columns:
            head = _head(line, columns)
            lines.append(head)
            line = line[len(head) :]
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def _unbroken(text: str) -> list[str]:
    """The pieces of a text between which a line may end."""
    pieces: list[str] = []
    for piece in _PIECES.findall(" ".join(text.split())):
        joined = pieces and (piece[0] in _CLOSING or pieces[-1][-1] in _OPENING) and not pieces[-1].isspace()
        if joined:
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces


def _head(text: str, columns: int) -> str:
    """As much of the beginning of a text as fits, one sign at least."""
    count = 1
    while width(text[: count + 1]) <= columns:
        count += 1
    return text[:count]

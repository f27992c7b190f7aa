"""How alike two answers are and where they part, in bounded time: also where both run into a loop.

`difflib` compares the places of equal characters. Where a few characters repeat over a whole answer, as in a loop,
these are so many that two answers of 4,000 characters take minutes.
"""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

#: Pairs of equal pieces that `difflib` may look at: about a second, at worst
MOST_PAIRS = 200_000
_WORD = re.compile(r"\s*[A-Za-z0-9_]+|.", re.DOTALL)


class Span(NamedTuple):
    """A piece of both texts: the same one, or what each has there."""

    equal: bool
    first: str
    second: str


def similarity(first: str, second: str) -> float:
    """Share of the characters that both texts have in common, in order: 0 to 1.

    Characters in blocks that `difflib` finds; where that takes too long, those of the longest common subsequence.
    """
    if _pairs(first, second) <= MOST_PAIRS:
        return SequenceMatcher(None, first, second, autojunk=False).ratio()
    return 2 * common_subsequence(first, second) / (len(first) + len(second))


def spans(first: str, second: str) -> list[Span]:
    """Both texts cut where they part: by characters, by words if that takes too long, else from both ends."""
    for pieces in ((first, second), (_WORD.findall(first), _WORD.findall(second))):
        if _pairs(*pieces) <= MOST_PAIRS:
            return _by_blocks(*pieces)
    return _from_both_ends(first, second)


def common_subsequence(first: str, second: str) -> int:
    """Length of the longest common subsequence, a row of it at a time in the bits of a number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << place
    whole = row = (1 << len(first)) - 1
    for character in second:
        found = row & places.get(character, 0)
        row = ((row + found) | (row - found)) & whole
    return len(first) - row.bit_count()


def _pairs(first: Sequence[str], second: Sequence[str]) -> int:
    counts = Counter(second)
    return sum(count * counts[piece] for piece, count in Counter(first).items())


def _by_blocks(first: Sequence[str], second: Sequence[str]) -> list[Span]:
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return [
        Span(kind == "equal", "".join(first[a:b]), "".join(second[c:d]))
        for kind, a, b, c, d in matcher.get_opcodes()
    ]


def _from_both_ends(first: str, second: str) -> list[Span]:
    shorter = min(len(first), len(second))
    start = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    end = next((i for i in range(shorter - start) if first[-1 - i] != second[-1 - i]), shorter - start)
    a, b = len(first) - end, len(second) - end
    found = [
        Span(True, first[:start], second[:start]),
        Span(False, first[start:a], second[start:b]),
        Span(True, first[a:], second[b:]),
    ]
    return [span for span in found if span.first or span.second]

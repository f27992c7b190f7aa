"""How alike two answers are, in bounded time: also where both run into a loop.

`difflib` compares the places of equal characters. Where a few characters repeat over a whole answer, as in a loop,
these are so many that two answers of 4,000 characters take minutes.
"""

from collections import Counter
from difflib import SequenceMatcher

#: Pairs of equal pieces that `difflib` may look at: about a second, at worst
MOST_PAIRS = 200_000


def similarity(first: str, second: str) -> float:
    """Share of the characters that both texts have in common, in order: 0 to 1.

    Characters in blocks that `difflib` finds; where that takes too long, those of the longest common subsequence.
    """
    if _pairs(first, second) <= MOST_PAIRS:
        return SequenceMatcher(None, first, second, autojunk=False).ratio()
    return 2 * common_subsequence(first, second) / (len(first) + len(second))


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


def _pairs(first: str, second: str) -> int:
    counts = Counter(second)
    return sum(count * counts[piece] for piece, count in Counter(first).items())

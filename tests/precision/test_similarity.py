"""How alike answers are: as difflib says for short ones, bounded for those that run into loops."""

import difflib
import random

import pytest

from telechat_kit.precision import similarity as module
from telechat_kit.precision.similarity import common_subsequence, similarity

LOOPS = ("好的，我知道了。" * 500, "好的，我知道了，" * 500)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("", "", 1.0), ("a", "", 0.0), ("abc", "abc", 1.0), ("abcd", "abxd", 0.75)],
)
def test_short_answers_are_as_alike_as_difflib_says(first: str, second: str, expected: float) -> None:
    assert similarity(first, second) == expected
    assert similarity(first, second) == difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def test_answers_in_loops_are_compared_without_the_pairs_of_their_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("difflib would take minutes")

    monkeypatch.setattr(module, "SequenceMatcher", never)
    assert similarity(*LOOPS) == 7 / 8


def test_the_longest_common_subsequence_is_that_of_its_definition() -> None:
    def slowly(first: str, second: str) -> int:
        row = [0] * (len(second) + 1)
        for character in first:
            before = row
            row = [0]
            for place, other in enumerate(second):
                row.append(before[place] + 1 if character == other else max(before[place + 1], row[place]))
        return row[-1]

    draw = random.Random(0)
    for _ in range(50):
        first, second = ("".join(draw.choices("abc", k=draw.randrange(40))) for _ in range(2))
        assert common_subsequence(first, second) == slowly(first, second)

"""Changed documents are read or refused: no traceback, no hang, no other meaning that nothing would tell.

`make fuzz` draws for minutes with hypothesis, and shrinks what it finds; the seeds here take seconds. What was found
once stands in `found.jsonl`. `count_endings.py` counts over thousands of seeds, for older versions too.
"""

import json
from pathlib import Path

import pytest
from endings import BAD, HASHED, OTHER, REFUSED, SAME, SILENT, TRACEBACK, judge, understood
from mutations import LIMIT, Change, changed, drawn
from targets import TARGETS, Corpus, Target

BY_NAME = {target.name: target for target in TARGETS}
FOUND = [json.loads(line) for line in Path(__file__).with_name("found.jsonl").read_text().splitlines()]
#: Seeds of each target in the suite; reading a model takes longer than reading a text
SEEDS, MODEL_SEEDS = 30, 6
#: Seconds that hypothesis may take for a target, about
SECONDS = 20


def check(target: Target, corpus: Corpus, expected: str, name: str, changes: list[Change]) -> None:
    ending = judge(target, corpus, expected, name, changes)
    assert ending.kind not in BAD, f"{target.name}, {name}, {changes}: {ending.kind}: {ending.told}"
    if ending.kind == REFUSED:
        assert len(ending.told) < 1200, ending.told
        assert ending.told.endswith((".", "?")), ending.told  # a remedy, or the name that was meant


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_changed_documents_are_read_or_refused(target: Target, corpus: Corpus) -> None:
    expected = understood(target, corpus)
    for seed in range(MODEL_SEEDS if target.hashed else SEEDS):
        name = target.files[seed % len(target.files)]
        check(target, corpus, expected, name, drawn(f"{target.name} {seed}"))


@pytest.mark.parametrize("case", FOUND, ids=lambda case: f"{case['target']} {case['seed']}")
def test_what_was_found_once_is_mended(case: dict[str, str], corpus: Corpus) -> None:
    target, seed = BY_NAME[case["target"]], int(case["seed"])
    name = target.files[seed % len(target.files)]
    check(target, corpus, understood(target, corpus), name, drawn(f"{target.name} {seed}"))


@pytest.mark.fuzz
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_hypothesis_finds_no_document_that_breaks_a_reader(target: Target, corpus: Corpus) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st  # noqa: PLC0415  (an extra of developers)

    expected = understood(target, corpus)
    number = st.integers(0, LIMIT - 1)
    changes = st.lists(st.builds(Change, number, number, number), min_size=1, max_size=3)

    @hypothesis.settings(
        max_examples=SECONDS * (10 if target.hashed else 50),
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.sampled_from(target.files), changes)
    def attempt(name: str, drawn_changes: list[Change]) -> None:
        check(target, corpus, expected, name, drawn_changes)

    attempt()


def test_a_reader_that_breaks_or_misreads_is_noticed(corpus: Corpus) -> None:
    """Else the tests above would show nothing."""

    def ending(name: str, expected: str, changes: list[Change], hashed: bool = False) -> str:
        reader = Target(
            "plain", lambda _: corpus.floats, (name,), lambda folder: _heads(folder / name), hashed
        )
        return judge(reader, corpus, expected, name, changes).kind

    heads = _heads(corpus.floats / "config.json")
    assert ending("config.json", heads, []) == SAME
    assert ending("config.json", "other", []) == OTHER
    assert ending("config.json", heads, [Change(3, LIMIT // 2, 0)]) == TRACEBACK  # cut in the middle
    assert ending("config.json", "other", [], hashed=True) == SILENT
    assert ending("config.json", heads, [Change(3 + 4 * 6, 0, 13)], hashed=True) in (TRACEBACK, HASHED)


def _heads(path: Path) -> str:
    return str(json.loads(path.read_text())["n_head"])


def test_a_seed_gives_the_same_changes_everywhere() -> None:
    assert drawn("folder 0") == drawn("folder 0") != drawn("folder 1")
    assert changed(b'{"a": [1, 2]}', [Change(0, 0, 0)]) == b"{}"
    assert changed(b"abc", [Change(3, 0, 0)]) == b""

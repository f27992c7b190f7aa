"""Timed runs on disk: whatever stands behind the last whole one is dropped, and finished ones are read whole or refused."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from telechat_kit.errors import DataError
from telechat_kit.performance.timed_samples import Journal, Sample, partial_samples, read_samples

SAMPLE = Sample("float", 3, 2, 0, 0.5, 0.1, 0.4)


@pytest.mark.parametrize(
    "tail",
    [
        b'{"key": "work", "sam',
        b"\0\0\0\0",  # a power cut
        "{\"key\": \"中".encode()[:-1],
        b"5",
        b"[]",
        b'{"key": "work"}',
        b'{"key": "work", "sample": {}, "token_ids": []}',
        b'{"key": "work", "sample": [], "token_ids": 5}',
        b'{"key": "work", "sample": {"other": 1}, "token_ids": [1]}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_journal_goes_on_behind_its_last_whole_run(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    row = {"key": "work", "sample": asdict(SAMPLE), "token_ids": [1, 2]}
    other = row | {"key": "of other work"}
    lines = [json.dumps(line).encode() for line in (row, other, row)]
    partial_samples(path).write_bytes(b"\n".join([*lines, tail]))
    journal = Journal(path, "work")
    assert journal.answers("float") == [(3, [1, 2])] * 2
    journal.publish()
    assert read_samples(path) == [SAMPLE] * 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xfe{\0", r"UTF-16 text"),
        (b"[]\n", r"sample 1: .*Run 04_performance again"),
        (json.dumps(asdict(SAMPLE)).encode() + b'\n{"precision": 5}', r"sample 2: .*Run 04"),
        (b'{"precision"', r"line 1 is not valid JSON .*Run 04_performance again"),
        (None, r"cannot be read: No such file .*Run 04_performance again"),
    ],
)
def test_damaged_samples_are_refused_with_their_place(
    content: bytes | None, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "samples.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_samples(path)

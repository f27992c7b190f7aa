"""Changes to a document, each three numbers: what hypothesis draws and shrinks, and what a seed draws.

Bytes are changed anywhere; what is JSON (also the table of contents of a safetensors file) by its values and keys too.
"""

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

#: Numbers of a change are drawn below this
LIMIT = 1 << 16


class Change(NamedTuple):
    """`kind` of change, `where` in the document, `what` is put there; each below `LIMIT`."""

    kind: int
    where: int
    what: int


#: What people and attackers put into texts
TOKENS = (
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\\ud83d", "😀".encode(), "²".encode(), b"\xed\xa0\x80", b"\r", b"\n\n",
    b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"9" * 5000, b"1e-3", b"null", b"true", b"{}", b"[]", b'""', b'"',
    b"[" * 100_000, b'{"a":' * 3000, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"../../x",
    b"=", b"#", b": ", b"|", b",", b"<img src=x>", b"{{ 1/0 }}", b"{% for a in range(10**9) %}x{% endfor %}",
    b"&a [*a]", b"!!python/object:os.system x", b"\t", b"%s%n", b"\\", b"'",
)  # fmt: skip
#: What stands where another value of JSON is due
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 1 << 31, 10**9, 10**30, 0.5, -0.5, 1e308, 1e-320, "", "x", "1", "float16",
    "int8", "../../etc/passwd", "\ud83d", "x" * 300, [], {}, [[]], [1], {"a": 1}, [None], float("nan"), float("inf"),
)  # fmt: skip


def drawn(seed: str) -> list[Change]:
    """One to three changes, the same for the same seed on every machine and version."""
    draw = random.Random(seed)
    return [Change(*(draw.randrange(LIMIT) for _ in range(3))) for _ in range(draw.choice((1, 1, 1, 2, 3)))]


def changed(document: bytes, changes: Sequence[Change]) -> bytes:
    """`document` with all changes, one after the other."""
    for change in changes:
        document = _changed(document, change)
    return document


def _changed(document: bytes, change: Change) -> bytes:
    by_structure = change.kind % 4
    if by_structure in (0, 1) and (value := _parsed(document)) is not None:
        return json.dumps(_restructured(value, change)).encode()
    if by_structure in (0, 1, 2) and (table := _table(document)) is not None:
        length, value = table
        content = json.dumps(_restructured(value, change)).encode()
        return struct.pack("<Q", len(content)) + content + document[8 + length :]
    return _in_bytes(document, change)


def _parsed(document: bytes) -> Any:
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) and value else None


def _table(document: bytes) -> tuple[int, Any] | None:
    """Length and value of the table of contents of a safetensors file."""
    if len(document) < 10 or document[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", document[:8])
    value = _parsed(document[8 : 8 + length]) if length < len(document) else None
    return None if value is None else (length, value)


def _in_bytes(document: bytes, change: Change) -> bytes:
    place = change.where * (len(document) + 1) // LIMIT
    span = 1 + change.what % 64
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: document[:place],
        lambda: document[:place] + document[place + span :],
        lambda: document[:place] + document[place : place + span] * 2 + document[place + span :],
        lambda: _flipped(document, place, change.what % 8),
        lambda: document[:place] + TOKENS[change.what % len(TOKENS)] + document[place:],
        lambda: document[:place] + TOKENS[change.what % len(TOKENS)] + document[place + span :],
        lambda: TOKENS[change.what % len(TOKENS)] + document,
        lambda: TOKENS[change.what % len(TOKENS)],
    )
    return ways[change.kind // 4 % len(ways)]()


def _flipped(document: bytes, place: int, bit: int) -> bytes:
    place = min(place, len(document) - 1)
    return document[:place] + bytes([document[place] ^ 1 << bit]) + document[place + 1 :] if document else b""


def _restructured(value: Any, change: Change) -> Any:
    """`value` with another value, without a key, with a renamed one, or with two values swapped, at one place of it."""
    places = list(_places(value))
    holder, key = places[change.where * len(places) // LIMIT]
    way = change.kind // 4 % 8
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[str(VALUES[change.what % len(VALUES)])[:80].encode("ascii", "replace").decode()] = holder.pop(
            key
        )
    elif way == 2:
        other, place = places[change.what * len(places) // LIMIT]
        holder[key] = json.loads(json.dumps(other[place]))
    elif way == 3 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * (2, -1, 0.5, 3)[change.what % 4]
    else:
        holder[key] = VALUES[change.what % len(VALUES)]
    return value


def _places(value: Any) -> Any:
    """Every place below `value`: the dict or list that holds it, and its key; the first ones of long lists."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(min(len(holder), 8)))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])

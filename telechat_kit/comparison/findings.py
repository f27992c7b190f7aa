"""What a check of a run found: one line for each thing that was compared, computed anew, or could not be."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from math import isclose
from typing import Any

from telechat_kit.messages import Message, marked

#: `differs` is said and does not fail: another version of the code, say. `not readable` and `not checked` do not
#: fail either; they are listed.
SAME, CHANGED, LOST, NOTE, UNCHECKED = (
    marked("same"),
    marked("changed"),
    marked("not readable"),
    marked("differs"),
    marked("not checked"),
)
#: Figures are computed by the same functions from the same numbers: only another numpy may round otherwise
RELATIVE, ABSOLUTE = 1e-9, 1e-12


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `part` groups findings; `found` says why where nothing could be compared."""

    name: str
    recorded: str
    found: str
    verdict: str
    part: str = ""


def compared(part: str, name: str, recorded: Any, again: Any) -> Iterator[Finding]:
    """One finding if both values are equal to their last digits, else one for each place that is not."""
    differing = list(_differences(name, _plain(recorded), _plain(again)))
    if not differing:
        yield Finding(name, "", "", SAME, part)
    for place, a, b in differing:
        yield Finding(place, short(a), short(b), CHANGED, part)


def unchecked(part: str, name: str, reason: str) -> Finding:
    """What could not be checked, and why."""
    return Finding(name, "", reason, UNCHECKED, part)


def short(value: Any) -> str:
    """A value as a table shows it."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _differences(place: str, recorded: Any, again: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(recorded, dict) and isinstance(again, dict):
        for key in {**recorded, **again}:
            yield from _differences(f"{place}.{key}", recorded.get(key), again.get(key))
    elif isinstance(recorded, list | tuple) and isinstance(again, list | tuple):
        if len(recorded) != len(again):
            yield Message("{place}, number", place=place), len(recorded), len(again)
            return
        for index, (a, b) in enumerate(zip(recorded, again, strict=True)):
            yield from _differences(f"{place}[{index}]", a, b)
    elif not _equal(recorded, again):
        yield place, recorded, again


def _equal(recorded: Any, again: Any) -> bool:
    if isinstance(recorded, float) and isinstance(again, int | float):
        return isclose(recorded, again, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return bool(recorded == again)

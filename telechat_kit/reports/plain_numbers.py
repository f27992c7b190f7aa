"""Tables for programs: values, ends of intervals and units in columns of their own, numbers without ornament."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
_UNIT = r"(?:%|x|[a-zA-Zµ/]+|% of positions|nats per token)"
_INTERVAL = re.compile(
    rf"(?P<value>{_NUMBER})\s?(?P<inner>{_UNIT})?\s*\[(?P<low>{_NUMBER}),\s*(?P<high>{_NUMBER})\]\s?(?P<outer>{_UNIT})?(?: \*)?"
)
_RANGE = re.compile(
    rf"(?P<low>{_NUMBER})\s?(?P<inner>{_UNIT})?\s*–\s*(?P<high>{_NUMBER})\s?(?P<outer>{_UNIT})?"
)
_VALUE = re.compile(rf"(?P<value>{_NUMBER})\s?(?P<outer>{_UNIT})?")
_NOTHING = {"", "-", "–", "—"}


@dataclass(frozen=True)
class _Cell:
    value: str = ""
    low: str = ""
    high: str = ""
    unit: str = ""


def plain_numbers(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """A table as a program reads it: the first row is its header, as that of the page.

    A column of figures such as `1.13 [1.08, 1.18] times` becomes `name`, `name, low`, `name, high` and `name, unit`;
    thousands lose their commas. A column whose every cell is one number of one unit keeps its place, the unit goes
    into its name. Columns of text stay as they are.
    """
    header, body = rows[0], [list(row) + [""] * (len(rows[0]) - len(row)) for row in rows[1:]]
    columns: list[tuple[str, list[str]]] = []
    for number, name in enumerate(header):
        columns += _split(name, [row[number] for row in body])
    return [[name for name, _ in columns], *([cells[i] for _, cells in columns] for i in range(len(body)))]


def _split(name: str, texts: list[str]) -> list[tuple[str, list[str]]]:
    cells = [_parsed(text) for text in texts]
    if not any(cell is not None and (cell.value or cell.low) for cell in cells):
        return [(name, texts)]
    if any(cell is None for cell in cells) and not any(cell and cell.low for cell in cells):
        return [(name, texts)]  # numbers among words, such as a version among names
    found = [cell or _Cell(value=text) for cell, text in zip(cells, texts, strict=True)]
    units = {cell.unit for cell in found if cell.value or cell.low}
    shared = next(iter(units)) if len(units) == 1 else ""
    title = f"{name} ({shared})" if shared else name
    columns = [(title, [cell.value for cell in found])] if any(cell.value for cell in found) else []
    if any(cell.low for cell in found):
        columns += [
            (f"{name}, low", [cell.low for cell in found]),
            (f"{name}, high", [cell.high for cell in found]),
        ]
    if len(units) > 1:
        columns.append((f"{name}, unit", [cell.unit for cell in found]))
    return columns


def _parsed(text: str) -> _Cell | None:
    """The parts of a cell; None where it is no figure."""
    if text.strip() in _NOTHING:
        return _Cell()
    for pattern in (_INTERVAL, _RANGE, _VALUE):
        if found := pattern.fullmatch(text.strip()):
            parts = found.groupdict()
            unit = parts.get("inner") or parts.get("outer") or ""
            value, low, high = (_bare(parts.get(key) or "") for key in ("value", "low", "high"))
            return _Cell(value, low, high, unit)
    return None


def _bare(number: str) -> str:
    return number.replace(",", "").replace("−", "-").removeprefix("+")

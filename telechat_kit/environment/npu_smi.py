"""What `npu-smi info` says: chips, their memory, and the processes on them.

Two lines a chip, columns between bars, as public logs show them for 310P (memory in one column) and for 910B and A3
(host memory, then HBM); a second table lists processes.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

_PAIR = re.compile(r"(?<![0-9])([0-9]{1,12})\s*/\s*([0-9]{1,12})(?![0-9])")
_NAME = re.compile(r"([0-9]{1,12})\s+(?![0-9]+$)(\S.*)")
_NUMBER = re.compile(r"[0-9]{1,12}(?![0-9])")
#: A 310B has no bus number
_BUS = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-fxX]{2}:|NA$")
_VERSION = re.compile(r"npu-smi\s+([0-9]\S*)")


@dataclass(frozen=True)
class DeviceProcess:
    """A process that holds memory of a chip, in MB."""

    pid: int
    name: str
    memory: int


@dataclass(frozen=True)
class Chip:
    """One chip, which is one device: card number, place on the card, name, health, memory in MB."""

    card: int
    place: int
    name: str
    health: str
    used: int
    total: int
    processes: tuple[DeviceProcess, ...] = ()

    @property
    def free(self) -> int:
        return self.total - self.used


@dataclass(frozen=True)
class Smi:
    """The whole output: version of the tool, which is the driver's, and the chips in the order of their devices."""

    version: str
    chips: tuple[Chip, ...]


def parse(text: str) -> Smi:
    """Read the output of `npu-smi info`; lines that are no rows of its tables are left out."""
    version = _VERSION.search(text)
    rows = [_cells(line) for line in text.splitlines() if line.lstrip().startswith("|")]
    split = next((i for i, row in enumerate(rows) if "Process id" in row), len(rows))
    processes = _processes(rows[split:])
    chips = tuple(_chips(rows[:split], processes))
    return Smi(version[1] if version else "", chips)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _chips(rows: list[list[str]], processes: dict[tuple[int, int], tuple[DeviceProcess, ...]]) -> list[Chip]:
    chips = []
    for first, second in pairwise(rows):
        if min(len(first), len(second)) < 3 or not _BUS.match(second[1]):
            continue
        names, places = _NAME.match(first[0]), _NUMBER.match(second[0])
        memory = _PAIR.findall(second[2])  # host memory, then HBM where there is some
        if names and places and memory:
            key = (int(names[1]), int(places[0]))
            used, total = map(int, memory[-1])
            chips.append(Chip(*key, names[2], first[1], used, total, processes.get(key, ())))
    return chips


def _processes(rows: list[list[str]]) -> dict[tuple[int, int], tuple[DeviceProcess, ...]]:
    found: dict[tuple[int, int], tuple[DeviceProcess, ...]] = {}
    for row in rows:
        numbers = row[0].split()
        if len(row) < 4 or not numbers or not all(map(_NUMBER.fullmatch, (*numbers[:2], row[1], row[3]))):
            continue
        key = (int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0)
        # the name's column may be empty, the process is there all the same
        process = DeviceProcess(int(row[1]), row[2] or "no name", int(row[3]))
        found[key] = (*found.get(key, ()), process)
    return found

"""Energy counters: joules of a whole CPU package or card, other programs included, where the device reports them."""

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from telechat_kit.backends import require_device, split_devices
from telechat_kit.messages import Message, marked

#: Linux's power capping framework (kernel documentation, power/powercap/powercap.rst)
POWERCAP = Path("/sys/class/powercap")
#: A zone of its own; `intel-rapl:0:0` is part of it, `intel-rapl-mmio:0` counts the same package again
_TOP_ZONE = re.compile(r"intel-rapl:\d+")


class EnergyReader(Protocol):
    """Reads the energy of the devices of a measurement."""

    @property
    def basis(self) -> str:
        """Which counter is read, or why there is none."""
        ...

    def joules(self) -> float | None:
        """Joules since some moment before the first call, of all devices; None: not reported."""
        ...


@dataclass(frozen=True)
class NoCounter:
    """A device that reports no energy; `basis` says why."""

    basis: str

    def joules(self) -> None:
        """Not reported."""


class PackageCounters:
    """The counters of CPU packages: microjoules that begin again behind `max_energy_range_uj`.

    They must be read more often than they begin again, which is after minutes at full power.

    Raises:
        OSError: a counter may not be read.
    """

    def __init__(self, zones: Sequence[Path]) -> None:
        self._ranges = {zone: _microjoules(zone / "max_energy_range_uj") for zone in zones}
        self._last = {zone: _microjoules(zone / "energy_uj") for zone in zones}
        self._total = 0

    @property
    def basis(self) -> str:
        """Which counter is read."""
        count = len(self._last)
        if count == 1:
            return marked("the counter of 1 CPU package (RAPL)")
        return Message("the counters of {count} CPU packages (RAPL)", count=count)

    def joules(self) -> float | None:
        """Joules of all packages since the first reading; None if a counter can no longer be read."""
        try:
            found = {zone: _microjoules(zone / "energy_uj") for zone in self._last}
        except OSError:
            return None
        for zone, now in found.items():
            self._total += now - self._last[zone] + (self._ranges[zone] if now < self._last[zone] else 0)
        self._last = found
        return self._total / 1e6


class CardCounters:
    """NVML's total energy of NVIDIA cards: millijoules since the driver was loaded, from Volta on.

    Args:
        nvml: the module `pynvml`.
        uuids: of the cards, as NVML has them ("GPU-..."). Its counter moves some ten times a second, so short runs
            are told roughly.

    Raises:
        nvml.NVMLError: no driver, no such card, or a card without the counter.
    """

    def __init__(self, nvml: Any, uuids: Sequence[str]) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        # as bytes: older releases of pynvml take no text
        self._cards = [nvml.nvmlDeviceGetHandleByUUID(uuid.encode()) for uuid in uuids]
        self._millijoules()

    @property
    def basis(self) -> str:
        """Which counter is read."""
        count = len(self._cards)
        if count == 1:
            return marked("the total energy of 1 card (NVML)")
        return Message("the total energy of {count} cards (NVML)", count=count)

    def joules(self) -> float | None:
        """Joules of all cards since the driver was loaded; None if a counter can no longer be read."""
        try:
            return self._millijoules() / 1e3
        except self._nvml.NVMLError:
            return None

    def _millijoules(self) -> int:
        return sum(int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(card)) for card in self._cards)


def energy_reader(device: str, powercap: Path | None = None) -> EnergyReader:
    """The reader for a profile's `device`; several of one kind are added up.

    Args:
        powercap: folder of the zones of CPU packages; None: the kernel's.
    """
    found = [require_device(part) for part in split_devices(device)]
    kind = found[0][0]
    if kind == "cpu":
        return package_counters(powercap or POWERCAP)
    if kind == "cuda":
        return _card_counters([number for _, number in found])
    return NoCounter(marked("npu-smi reports the power of a chip, not its energy"))


def package_counters(folder: Path) -> EnergyReader:
    """The counters of all CPU packages below `folder`; a package that cannot be read leaves none."""
    zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if _is_package(zone)]
    if not zones:
        return NoCounter(Message("no counter of a CPU package under {folder}", folder=folder))
    try:
        return PackageCounters(zones)
    except PermissionError:
        return NoCounter(
            marked("only root may read the counters of CPU packages; chmod a+r energy_uj of each")
        )
    except (OSError, ValueError) as error:
        return NoCounter(Message("a counter of a CPU package cannot be read: {error}", error=error))


def _is_package(zone: Path) -> bool:
    try:
        name = (zone / "name").read_text(encoding="ascii")
    except OSError:
        return False
    return bool(_TOP_ZONE.fullmatch(zone.name)) and name.startswith("package")


def _microjoules(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _card_counters(numbers: Sequence[int]) -> EnergyReader:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return NoCounter(marked("NVML is read through pynvml: pip install nvidia-ml-py"))
    try:
        # NVML numbers the cards in its own order, so torch's number would name another one
        return CardCounters(
            nvml, [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in numbers]
        )
    except nvml.NVMLError as error:
        return NoCounter(Message("NVML: {error}", error=error))


def spent(before: float | None, after: float | None) -> float | None:
    """Joules between two readings; None where one of them is missing."""
    return None if before is None or after is None else after - before

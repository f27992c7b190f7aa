"""Energy: the kernel's counters of CPU packages and NVML's of cards, on files and a module of the same form."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from telechat_kit.performance import energy
from telechat_kit.performance.energy import (
    CardCounters,
    PackageCounters,
    energy_reader,
    package_counters,
    spent,
)

RANGE = 262143328850


def zone(folder: Path, place: str, name: str, microjoules: int) -> Path:
    """A zone as the kernel writes it."""
    path = folder / place
    path.mkdir()
    for file, text in {"name": name, "max_energy_range_uj": RANGE, "energy_uj": microjoules}.items():
        (path / file).write_text(f"{text}\n")
    return path


def use(path: Path, microjoules: int) -> None:
    found = int((path / "energy_uj").read_text()) + microjoules
    (path / "energy_uj").write_text(f"{found % RANGE}\n")


@pytest.fixture
def powercap() -> Iterator[Path]:
    """Two packages with a part of one, the whole platform, and a package's second interface; all may enter it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    zone(folder, "intel-rapl:0", "package-0", 1_000_000)
    zone(folder, "intel-rapl:0:0", "core", 5)
    zone(folder, "intel-rapl:1", "package-1", RANGE - 2_000_000)
    zone(folder, "intel-rapl:2", "psys", 7)
    zone(folder, "intel-rapl-mmio:0", "package-0", 9)
    (folder / "intel-rapl").mkdir()
    yield folder
    shutil.rmtree(folder)


def test_joules_are_those_of_all_packages_and_of_nothing_else(powercap: Path) -> None:
    reader = energy_reader("auto", powercap)
    before = reader.joules()
    use(powercap / "intel-rapl:0", 3_500_000)
    use(powercap / "intel-rapl:1", 250_000)
    for other in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        use(powercap / other, 99_000_000)
    assert spent(before, reader.joules()) == 3.75
    assert reader.basis == "the counters of 2 CPU packages (RAPL)"


def test_a_counter_that_begins_again_is_gone_on_with(powercap: Path) -> None:
    reader = energy_reader("cpu", powercap)
    found = [reader.joules()]
    for _ in range(3):
        use(powercap / "intel-rapl:1", RANGE // 2)
        found.append(reader.joules())
    steps = [spent(a, b) for a, b in pairwise(found)]
    assert steps == pytest.approx([RANGE // 2 / 1e6] * 3)


def test_cpus_that_share_a_model_are_counted_once(powercap: Path) -> None:
    reader = energy_reader("cpu,cpu", powercap)
    use(powercap / "intel-rapl:0", 1_000_000)
    assert reader.joules() == 1.0


def test_a_counter_that_is_lost_leaves_no_figure(powercap: Path) -> None:
    reader = energy_reader("cpu", powercap)
    before = reader.joules()
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert before == 0.0
    assert spent(before, reader.joules()) is None


def test_a_machine_without_counters_says_so(powercap: Path) -> None:
    for place in powercap.glob("intel-rapl:*"):
        (place / "name").write_text("psys\n")
    for folder in (powercap, powercap / "nowhere"):
        reader = package_counters(folder)
        assert reader.joules() is None
        assert reader.basis == f"no counter of a CPU package under {folder}"


def test_a_counter_for_root_alone_says_so(powercap: Path) -> None:
    (powercap / "intel-rapl:1" / "energy_uj").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        reader = package_counters(powercap)
    finally:
        os.seteuid(user)
    assert reader.joules() is None
    assert reader.basis == "only root may read the counters of CPU packages; chmod a+r energy_uj of each"


def test_a_damaged_counter_says_so(powercap: Path) -> None:
    (powercap / "intel-rapl:0" / "energy_uj").write_text("nothing\n")
    assert package_counters(powercap).basis.startswith("a counter of a CPU package cannot be read: ")


class Nvml:
    """What the reader calls of pynvml, for two cards."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules = {b"GPU-a": 5_000, b"GPU-b": 70_000}
        self.started = False

    def nvmlInit(self) -> None:
        self.started = True

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> bytes:
        if not self.started or uuid not in self.millijoules:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: bytes) -> int:
        if self.millijoules[handle] < 0:
            raise self.NVMLError("Not Supported")
        return self.millijoules[handle]


def test_joules_of_cards_are_added_up() -> None:
    nvml = Nvml()
    reader = CardCounters(nvml, ["GPU-a", "GPU-b"])
    before = reader.joules()
    nvml.millijoules[b"GPU-a"] += 1_500
    nvml.millijoules[b"GPU-b"] += 500
    assert spent(before, reader.joules()) == 2.0
    assert reader.basis == "the total energy of 2 cards (NVML)"
    nvml.millijoules[b"GPU-b"] = -1
    assert reader.joules() is None


@pytest.mark.parametrize(
    ("uuid", "millijoules", "basis"),
    [
        ("b", 70_000, "the total energy of 1 card (NVML)"),
        ("c", 0, "NVML: Not Found"),
        ("b", -1, "NVML: Not Supported"),
    ],
)
def test_a_card_is_found_by_its_uuid_or_there_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, uuid: str, millijoules: int, basis: str
) -> None:
    nvml = Nvml()
    nvml.millijoules[b"GPU-b"] = millijoules
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(energy, "require_device", lambda _: ("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuid))
    reader = energy_reader("cuda:0")
    assert (reader.basis, reader.joules()) == (basis, 70.0 if millijoules > 0 else None)


def test_without_pynvml_cards_have_a_reason_and_chips_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(energy, "require_device", lambda device: (device[:-2], 0))
    for device, reason in (("cuda:0", "pip install nvidia-ml-py"), ("npu:0", "npu-smi reports the power")):
        reader = energy_reader(device)
        assert reason in reader.basis
        assert reader.joules() is None


def test_spent_needs_both_readings() -> None:
    assert spent(1.0, 3.5) == 2.5
    assert spent(None, 1.0) is None
    assert spent(1.0, None) is None


def test_a_package_without_its_range_is_refused(powercap: Path) -> None:
    (powercap / "intel-rapl:0" / "max_energy_range_uj").unlink()
    with pytest.raises(FileNotFoundError):
        PackageCounters([powercap / "intel-rapl:0"])

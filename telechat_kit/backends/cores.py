"""The processor's cores: how many of them this process may use, and how many others take meanwhile.

Threads that wait for each other spin for about 0.1 ms and then sleep (`telechat_kit/__init__.py`). Fewer threads on a
busy machine bring nothing more: two that sleep were as fast as one beside two busy loops on two cores.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

#: Where Linux shows the control groups
CONTROL_GROUPS = Path("/sys/fs/cgroup")
#: Which groups this process is in
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may run on: its affinity, and the CPU time that its control groups grant."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = granted_cores()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def granted_cores() -> float | None:
    """CPU seconds per second that the control groups grant (`docker run --cpus 1.5`); None without a limit."""
    grants = [grant for folder in _folders() if (grant := _grant(folder)) is not None]
    return min(grants, default=None)


def keep_to_granted_cores() -> None:
    """Let torch, and with it the kernels, use no more threads than the process is granted now.

    Else all of them stand still for the rest of each period, at different places. A grant may change while we run.
    """
    if granted_cores() is not None and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def _folders() -> list[Path]:
    """Folders of this process's control groups and of all that they are in; a container sees its own as the root."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            root = CONTROL_GROUPS / controllers.replace("cpuacct,cpu", "cpu,cpuacct")
            own = root / path.lstrip("/")
            found += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return found


def _grant(folder: Path) -> float | None:
    """The grant that stands in a folder of version 2 (`cpu.max`) or 1."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class Busy:
    """Cores that other programs, and other guests of the same host, took on average, of those of the machine."""

    cores: int
    taken: float


@dataclass(frozen=True)
class CoreClock:
    """CPU seconds so far: of the machine, and of this process with its children that have ended; wall seconds."""

    machine: float
    own: float
    idle: float

    @classmethod
    def now(cls) -> "CoreClock":
        """What stands on the clocks."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # also within user and nice
        return cls(sum(times) - idle - guests, own.user + own.system, idle)

    def busy_since(self) -> Busy | None:
        """What others took since this clock was read; None if no time has passed on it."""
        now, cores = CoreClock.now(), psutil.cpu_count() or 1
        passed = (now.machine + now.idle) - (self.machine + self.idle)
        if passed <= 0:
            return None
        others = (now.machine - self.machine) - (now.own - self.own)
        return Busy(cores, min(max(others / passed, 0.0), 1.0) * cores)

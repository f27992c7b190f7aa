"""The machine as the checks see it: its files, commands, environment variables and packages, and nothing else.

Every check asks a `Probe`, so the recorded outputs of another machine go the same way as the machine at hand.
"""

import getpass
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import psutil

DRIVER = "/usr/local/Ascend/driver"
_IMPORT_TEST = Path(__file__).with_name("import_test.py")
#: torch_npu takes seconds to import; a minute and more where an NPU hangs, and then for ever
_IMPORT_SECONDS = 180
_COMMAND_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """What a command left. `code` 127: no such command, 124: it ran past its time."""

    code: int
    output: str
    error: str = ""


def run_command(command: Sequence[str], seconds: float = _COMMAND_SECONDS) -> Outcome:
    """Run a command with the driver's libraries in reach, because npu-smi needs them before anything is sourced."""
    folders = [f"{DRIVER}/lib64/{part}".rstrip("/") for part in ("", "common", "driver")]
    path = ":".join(filter(None, [os.environ.get("LD_LIBRARY_PATH", ""), *folders]))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env={**os.environ, "LD_LIBRARY_PATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(124, "", f"no answer within {seconds:.0f} s")
    except OSError as error:
        return Outcome(127, "", str(error))
    return Outcome(done.returncode, done.stdout, done.stderr)


def run_npu_smi(arguments: Sequence[str]) -> Outcome:
    """`npu-smi` with arguments, from the search path or from where the driver puts it."""
    places = (shutil.which("npu-smi"), "/usr/local/bin/npu-smi", "/usr/local/sbin/npu-smi")
    tool = next((place for place in places if place and Path(place).is_file()), "npu-smi")
    return run_command([tool, *arguments])


def import_torch_npu() -> Outcome:
    """Import torch_npu in a process of its own, which may crash or hang without harm; see `import_test.py`."""
    return run_command([sys.executable, "-c", _IMPORT_TEST.read_text(encoding="utf-8")], _IMPORT_SECONDS)


def installed_version(name: str) -> str | None:
    """Version of an installed Python package, from its metadata and without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def user_name() -> str:
    """Name of the user; empty in a container that knows no name for the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""


@dataclass(frozen=True)
class Probe:
    """What the checks may ask a machine. Paths are absolute ones of that machine, below `root` here."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    arch: str = platform.machine()
    python: str = platform.python_version()
    package: Callable[[str], str | None] = installed_version
    npu_smi: Callable[[Sequence[str]], Outcome] = run_npu_smi
    import_torch_npu: Callable[[], Outcome] = import_torch_npu
    free_memory: Callable[[], float] = lambda: psutil.virtual_memory().available
    free_disk: Callable[[Path], float] = lambda folder: shutil.disk_usage(folder).free
    home: Path = field(default_factory=Path.home)
    user: str = field(default_factory=user_name)
    host: str = field(default_factory=socket.gethostname)

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    def exists(self, absolute: str) -> bool:
        return self.path(absolute).exists()

    def names(self, folder: str, pattern: str = "*") -> list[str]:
        """Names in a folder that match a pattern, sorted; none if there is no such folder."""
        try:
            return sorted(path.name for path in self.path(folder).glob(pattern))
        except OSError:
            return []

    def text(self, absolute: str) -> str:
        """A small file; empty where it is not there or not readable."""
        try:
            return self.path(absolute).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def values(self, absolute: str) -> dict[str, str]:
        """The `key=value` or `key : value` lines of a version file; empty where it is not there or not readable."""
        return parse_values(self.text(absolute))

    @property
    def in_container(self) -> bool:
        marks = ("/.dockerenv", "/run/.containerenv")
        return "KUBERNETES_SERVICE_HOST" in self.environ or any(self.exists(mark) for mark in marks)


def parse_values(text: str) -> dict[str, str]:
    """`key=value` and `key : value` lines as a dictionary with lower-case keys; other lines are left out."""
    found = {}
    for line in text.splitlines():
        separator = "=" if "=" in line else ":"
        key, mark, value = line.partition(separator)
        if mark and not line.lstrip().startswith("#"):
            found[key.strip().lower()] = value.strip().strip('"')
    return found


def parent(absolute: str, levels: int = 1) -> str:
    """The folder `levels` above a path of the probed machine."""
    return str(PurePosixPath(absolute).parents[levels - 1])

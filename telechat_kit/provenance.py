"""Exactly which weights, tokenizer, data, code, versions and hardware a record comes from."""

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil

import telechat_kit
from telechat_kit.files import project_root, sha256

_PACKAGES = (
    "telechat-kit",
    "torch",
    "torch_npu",
    "transformers",
    "safetensors",
    "numpy",
    "papermill",
    "nbconvert",
)


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a record was made; a comparison reads them before any figure."""

    device: str
    device_name: str
    threads: int
    memory_bytes: int
    system: str
    versions: dict[str, str]
    code: str
    started: str
    hashes: dict[str, str] = field(default_factory=dict)
    #: which operator of the device did what, where there is more than one way
    operators: dict[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Versions of Python, the kit and the packages that decide about numbers."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES if _installed(name)}
    return {"python": platform.python_version(), **found}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def combined_hash(parts: Iterable[str]) -> str:
    """SHA-256 over several hashes or names, in the order given."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _file_hash(path: Path, size: int, modified: int) -> str:
    del size, modified  # part of the key only: a changed file is hashed again
    return sha256(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file; asked again for an unchanged file, this process remembers it."""
    status = path.stat()
    return _file_hash(path, status.st_size, status.st_mtime_ns)


def processor_name() -> str:
    """Model name of the processor, or its architecture where the system names none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


@cache
def machine() -> str:
    """The machine that a result was made on, as far as results depend on it: system, processor, cores, memory."""
    import torch  # noqa: PLC0415  (the rest of this module is wanted without it)

    cores, memory = psutil.cpu_count(), psutil.virtual_memory().total / 2**30
    processor = f"{processor_name()} ({torch.get_num_threads()} threads)"
    return f"{platform.system()} {platform.machine()}, {processor}, {cores} cores, {memory:.0f} GiB"


def edited_notebooks() -> list[str]:
    """Names of the notebooks that are not as committed; without git none is known to be."""
    try:
        lines = _git(project_root(), "status", "--porcelain", "--", "notebooks").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
    return sorted(
        Path(line.split()[-1].strip('"')).name for line in lines if line.endswith((".ipynb", '.ipynb"'))
    )


def code_version() -> str:
    """The commit of the project, "+changes" if the tree differs; without git the hash of the package's files.

    Of an installed package its version and that hash.
    """
    root = project_root()
    own = Path(__file__).resolve().parent.parent
    if root.resolve() != own:  # a commit there would be of another repository
        return f"{telechat_kit.__version__} sha256:{code_hash()[:12]}"
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "telechat_kit", "notebooks")
    except (OSError, subprocess.CalledProcessError):
        return f"sha256:{code_hash()[:12]}"
    return f"{commit}{'+changes' if changed else ''}"


def code_hash() -> str:
    """Hash of the package's code, templates and messages: what a step's result and its page depend on besides their inputs."""
    folder = Path(__file__).parent
    files = sorted(path for kind in ("*.py", "*.c", "*.j2", "*.css", "*.mo") for path in folder.rglob(kind))
    return combined_hash(f"{path.name} {file_hash(path)}" for path in files)


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

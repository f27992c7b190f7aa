"""Exactly which weights, tokenizer, data, code, versions and hardware a record comes from."""

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import psutil
import torch

from telechat_kit.backends import backend_for
from telechat_kit.errors import CheckpointError
from telechat_kit.files import project_root, sha256
from telechat_kit.model.checkpoint import weight_files

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
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


@dataclass(frozen=True)
class FileHash:
    """Name below the folder, size and SHA-256 of one file."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class FolderHashes:
    """Every file of a folder, and the combined hashes that records carry; empty where there is nothing to hash.

    `problem`: why the folder is no whole checkpoint, if it is none.
    """

    files: list[FileHash]
    weights: str
    tokenizer: str
    problem: str


def conditions(device: torch.device, devices: int = 1, /, **folders: Path) -> Conditions:
    """Conditions here and now on `device`, with the hashes of the weights and tokenizer of each named folder.

    `devices`: how many like it share a model.
    """
    backend, hashes = backend_for(device.type), {}
    for name, folder in folders.items():
        hashes[f"{name}_weights"] = weights_hash(folder)
        hashes[f"{name}_tokenizer"] = tokenizer_hash(folder)
    return Conditions(
        device=device.type,
        device_name=backend.device_name() if devices == 1 else f"{devices} x {backend.device_name()}",
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.machine()}",
        versions=versions(),
        code=code_version(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        hashes=hashes,
        operators=backend.operators(),
    )


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


def weights_hash(folder: Path) -> str:
    """One hash over the weight files of a checkpoint folder, by name and content."""
    return combined_hash(f"{path.name} {file_hash(path)}" for path in weight_files(folder))


def tokenizer_hash(folder: Path) -> str:
    """One hash over the tokenizer files of a checkpoint folder."""
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    return combined_hash(f"{path.name} {file_hash(path)}" for path in files)


def folder_hashes(folder: Path) -> FolderHashes:
    """Sizes and hashes of all files of a folder, below it too, by name; files that begin with a dot are left out."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    files = [FileHash(str(p.relative_to(folder)), p.stat().st_size, file_hash(p)) for p in paths]
    try:
        weights, problem = weights_hash(folder), ""
    except CheckpointError as error:
        weights, problem = "", str(error)
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return FolderHashes(files, weights, tokenizer_hash(folder) if has_tokenizer else "", problem)


def code_version() -> str:
    """The commit of the project, "+changes" if the tree differs; without git the hash of the package's files."""
    root = project_root()
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "telechat_kit", "notebooks")
    except (OSError, subprocess.CalledProcessError):
        return f"sha256:{code_hash()[:12]}"
    return f"{commit}{'+changes' if changed else ''}"


def code_hash() -> str:
    """Hash of the package's Python and C files: what a step's result depends on besides its inputs."""
    folder = Path(__file__).parent
    files = sorted(path for kind in ("*.py", "*.c") for path in folder.rglob(kind))
    return combined_hash(f"{path.name} {file_hash(path)}" for path in files)


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

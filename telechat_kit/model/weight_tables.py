"""Weight files by their tables of contents: whether one can be whole, and what shapes a folder holds.

Nothing of a tensor is read here, and nothing is built: a config that does not fit is refused before it costs memory.
"""

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from telechat_kit.errors import CheckpointError, DataError
from telechat_kit.messages import Message, marked
from telechat_kit.strict_json import LFS_POINTER, parse
from telechat_kit.widths import visible

#: Bytes of a table of contents that no model of the family comes near
MOST_HEADER_BYTES = 16 << 20
#: How the names of dtypes of floating point begin in safetensors
_REAL = ("F", "BF")
_NUMPY_MAGIC = b"\x93NUMPY"


def damage(path: Path) -> str | None:
    """Why a weight file cannot be whole, from its own table of contents; None if it may be."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(LFS_POINTER))
        if begin == LFS_POINTER:
            return marked("a pointer of git-lfs: run `git lfs pull` where it was cloned")
        if not begin:
            return "empty"
        if path.suffix == ".safetensors":
            return _safetensors_damage(path, begin)
        if path.suffix == ".npy":
            return None if begin.startswith(_NUMPY_MAGIC) else marked("no NumPy file")
        return _archive_damage(path)
    except (
        SafetensorError,
        zipfile.BadZipFile,
        NotImplementedError,
        OSError,
        ValueError,
        struct.error,
    ) as error:
        return str(error) or type(error).__name__


def _safetensors_damage(path: Path, begin: bytes) -> str | None:
    if len(begin) < 8:
        return marked("cut off")
    (length,) = struct.unpack("<Q", begin[:8])
    if length > MOST_HEADER_BYTES:
        return Message("a table of contents of {length:,.0f} MB", length=length / 1e6)
    with safe_open(path, framework="pt") as file:
        odd = next((name for name in file.keys() if visible(name) != name), None)  # noqa: SIM118  (no dict)
    return None if odd is None else Message("a tensor is called {name!a}", name=odd[:100])


def _archive_damage(path: Path) -> str | None:
    """torch stores tensors as they are: an archive that unpacks to more than it holds is none of its files."""
    if not zipfile.is_zipfile(path):
        return marked(
            "cut off, or no archive as torch writes it since 1.6: torch.load and torch.save make one of it"
        )
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        return Message(
            "it unpacks to {size:,.0f} MB from {st_size:,.0f} MB",
            size=size / 1e6,
            st_size=path.stat().st_size / 1e6,
        )
    return None


def stored_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of safetensors files, by their names there, from the tables of contents alone.

    Raises:
        CheckpointError: a table is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        if path.suffix == ".safetensors":
            for name, entry in _table(path).items():
                shapes[name] = tuple(entry["shape"])
    return shapes


def integer_tensor(files: Iterable[Path]) -> str:
    """The first tensor of safetensors files that holds no real numbers, by its table of contents; else empty."""
    for path in files:
        for name, entry in _table(path).items() if path.suffix == ".safetensors" else ():
            if not str(entry["dtype"]).startswith(_REAL):
                return Message("{path}: {name} holds {entry}", path=path, name=name, entry=entry["dtype"])
    return ""


def _table(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        content = file.read(length)
    try:
        table = parse(content, str(path), marked("Copy the file again."))
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return {name: entry for name, entry in table.items() if name != "__metadata__"}

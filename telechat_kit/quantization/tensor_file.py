"""A safetensors file written piece by piece, for tensors that do not fit into memory together.

The bytes are those of `safetensors.torch.save_file`, which needs all tensors at once.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

#: Names of dtypes in the format, in the order in which the tensors follow each other: wide ones first
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {name: rank for rank, name in enumerate(DTYPES)}
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Entry:
    """One tensor of the file to be, and a function that gives its bytes in pieces."""

    name: str
    dtype: str  # as the format names it
    shape: list[int]
    chunks: Callable[[], Iterable[bytes]]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


def tensor_entry(
    name: str, dtype: torch.dtype, shape: Iterable[int], chunks: Callable[[], Iterable[bytes]]
) -> Entry:
    """The entry of a tensor whose bytes `chunks` gives when it is called."""
    return Entry(name, _NAMES[dtype], list(shape), chunks)


def whole_entry(name: str, tensor: Tensor) -> Entry:
    """The entry of a tensor that is there, or mapped from a file."""
    return tensor_entry(name, tensor.dtype, tensor.shape, partial(_pieces, tensor))


def _pieces(tensor: Tensor) -> Iterator[bytes]:
    for part in tensor.contiguous().flatten().split(_CHUNK_BYTES // tensor.element_size()):
        yield part.view(torch.uint8).numpy().tobytes()


def file_entries(path: Path) -> list[Entry]:
    """The tensors of a safetensors file; their bytes are read when they are asked for."""
    start, header = _read_header(path)
    return [
        Entry(name, facts["dtype"], facts["shape"], partial(_read, path, start, *facts["data_offsets"]))
        for name, facts in header.items()
        if name != "__metadata__"
    ]


def file_metadata(path: Path) -> dict[str, str]:
    """The texts that were saved with the tensors of a safetensors file."""
    return _read_header(path)[1].get("__metadata__", {})


def write_tensor_file(path: Path, entries: Iterable[Entry]) -> None:
    """Write `entries` to a safetensors file, holding one piece of one tensor at a time."""
    ordered = sorted(entries, key=lambda entry: (_ORDER[entry.dtype], entry.name))
    with path.open("wb") as file:
        file.write(_header(ordered))
        for entry in ordered:
            if (written := sum(map(file.write, entry.chunks()))) != entry.nbytes:
                raise RuntimeError(f"{entry.name} gave {written} bytes, {entry.nbytes} were announced")


def _header(entries: Iterable[Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _read_header(path: Path) -> tuple[int, dict]:
    """Where the tensors' bytes begin, and the table of contents."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return 8 + length, json.loads(file.read(length))


def _read(path: Path, start: int, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start + begin)
        for position in range(begin, end, _CHUNK_BYTES):
            yield file.read(min(_CHUNK_BYTES, end - position))

"""Dictionaries of tensors in `.npy` files, read without running anything that the file may hold.

NumPy stores a dictionary as a pickle, and a pickle can name any function to be called. Here only tensors, dicts,
lists, tuples, texts and numbers come in; every other name stops the reading before it is looked up.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from telechat_kit.errors import CheckpointError
from telechat_kit.messages import Message
from telechat_kit.model.bounds import more_memory

#: What reading may take beside the tensors; a pickle can ask for any amount with one instruction
_SPARE_BYTES = 1 << 30


class _Known:
    """A function that a pickle may call. It cannot be changed by the pickle: BUILD asks `__setstate__` first."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it tries to change a function")


class _ObjectArray:
    """Stands in for NumPy's array of no axes: a real one would take raw bytes of the file as its objects."""

    content: object = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, _, _, values = state
        if shape != () or not isinstance(values, list) or len(values) != 1:
            raise pickle.UnpicklingError(f"it holds an array of shape {shape}")
        self.content = values[0]


class _Placeholder:
    """Stands in for NumPy's array class and dtype, which only describe the array above."""

    def __setstate__(self, state: object) -> None:
        """Leave out what the file says of it."""


def _storage(content: bytes) -> Any:
    if content.startswith(b"PK"):
        raise pickle.UnpicklingError("it holds an archive for a storage")
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.storage.TypedStorage | torch.UntypedStorage):
        raise pickle.UnpicklingError(f"it holds {type(storage).__name__} for a storage")
    return storage


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    if not isinstance(storage, torch.storage.TypedStorage | torch.UntypedStorage):
        raise pickle.UnpicklingError("it builds a tensor of something else than a storage")
    elements = storage.nbytes() // storage.element_size()
    if not _fits(offset, size, stride, elements):
        raise pickle.UnpicklingError("it builds a tensor larger than its storage")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _fits(offset: int, size: tuple[int, ...], stride: tuple[int, ...], elements: int) -> bool:
    """Whether every element of a tensor lies in a storage of so many: torch would grow the storage instead."""
    numbers = [offset, *size, *stride]
    if not all(type(number) is int and number >= 0 for number in numbers) or len(size) != len(stride):
        return False
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    return 0 in size or last < elements


def _parameter(data: Tensor, *_: object) -> Tensor:
    return data


#: What torch and NumPy write for a dictionary of tensors, and what is called instead
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): lambda *_: _Placeholder(),
    ("numpy", "dtype"): lambda *_: _Placeholder(),
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _ObjectArray(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _ObjectArray(),
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): lambda *_: {},
}


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Known:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _Known(_KNOWN[module, name])


def read_dictionary(path: Path) -> dict[str, Tensor]:
    """The dictionary of tensors in a `.npy` file that `numpy.save` wrote.

    Raises:
        CheckpointError: the file is damaged, or holds anything but tensors and plain containers.
    """
    try:
        with path.open("rb") as stream, more_memory(2 * path.stat().st_size + _SPARE_BYTES):
            _skip_header(stream)
            content = _TensorUnpickler(stream).load()
        values = content.content if isinstance(content, _ObjectArray) else content
    # a damaged pickle may raise anything: the bytes are instructions
    except Exception as error:
        raise CheckpointError(
            "{path} holds more than a dictionary of tensors or is damaged, so it is refused ({error}). Get "
            "the file from its publisher.",
            path=path,
            error=str(error)[:200] or type(error).__name__,
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            "{path} holds no dictionary of tensors. Get the file from its publisher.", path=path
        )
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            told = ascii(name[:80]) if isinstance(name, str) else f"a name of type {type(name).__name__}"
            raise CheckpointError(
                "{path}: {told} is no tensor. Get the file from its publisher.", path=path, told=told
            )
    return values


def _skip_header(stream: BinaryIO) -> None:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if shape != () or dtype != np.dtype("O"):
        raise ValueError(Message("an array of {dtype} with shape {shape}", dtype=dtype, shape=shape))

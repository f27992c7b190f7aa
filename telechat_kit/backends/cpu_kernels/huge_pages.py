"""Memory in huge pages for what a token streams: fewer pages to find, and no stop of the prefetch at each of 4096 bytes.

Linux gives them to a process that asks (`madvise`), on x86-64 2 MiB each. Elsewhere, and where
`/sys/kernel/mm/transparent_hugepage/enabled` says `never`, all stays as it was.
"""

import ctypes
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SIZE = ENABLED.with_name("hpage_pmd_size")
MADV_HUGEPAGE = 14
#: Where tensors begin in a memory that they share
ALIGNMENT = 64
#: After so many bytes the allocator is asked to give back what has become free: it keeps small pieces otherwise
TRIM_AFTER = 1 << 29


@cache
def page_size() -> int | None:
    """Bytes of a huge page; None where a process cannot have any."""
    try:
        if "[never]" in ENABLED.read_text(encoding="ascii"):
            return None
        return int(SIZE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As `torch.empty`, in huge pages if there are some and it is as large as one."""
    size = page_size()
    if size is None or (nbytes := math.prod(shape) * dtype.itemsize) < size:
        return torch.empty(*shape, dtype=dtype)
    whole = -(-nbytes // size) * size
    memory = torch.empty(whole + size, dtype=torch.uint8)
    start = -memory.data_ptr() % size
    # a refusal costs the speed only
    _libc().madvise(ctypes.c_void_p(memory.data_ptr() + start), ctypes.c_size_t(whole), MADV_HUGEPAGE)
    return memory[start : start + nbytes].view(dtype).view(*shape)


def gather(tensors: Iterable[Tensor]) -> None:
    """Move the data of contiguous `tensors` of the CPU into one memory of huge pages, in their order.

    Tensors stay the objects that they are, and what shared its data still does. Memory grows by one tensor at a time.
    Those that were made in inference mode stay where they are: torch gives them no other data.
    """
    held = [each for each in tensors if each.is_contiguous() and each.numel() and not each.is_inference()]
    places: dict[tuple[int, int], int] = {}
    end = 0
    for tensor in held:
        if _data(tensor) not in places:
            places[_data(tensor)] = end
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    if (size := page_size()) is None or end < size:
        return
    with torch.inference_mode(False), torch.no_grad():
        memory, moved, untrimmed = empty((end,), torch.uint8), set[tuple[int, int]](), 0
        for tensor in held:
            start = places[key := _data(tensor)]
            target = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            if key not in moved:
                moved.add(key)
                target.copy_(tensor)
                untrimmed += tensor.nbytes
            tensor.data = target
            if untrimmed >= TRIM_AFTER:
                _trim()
                untrimmed = 0
    _trim()


def _data(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes


def _trim() -> None:
    trim = getattr(_libc(), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(ctypes.c_size_t(0))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)

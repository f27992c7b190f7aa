"""What foreign files may make the process do: so many seconds, so much memory. Beyond, an error in place of an end."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

try:
    import resource
except ImportError:  # not Unix
    resource = None  # type: ignore[assignment]

_STATM = Path("/proc/self/statm")


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` gives, written in Python; `TimeoutError` at the first of its lines after so many seconds."""
    end = time.monotonic() + seconds

    def watch(_frame: FrameType, _event: str, _argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"longer than {seconds:g} seconds")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return call()
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def more_memory(most: int) -> Iterator[None]:
    """Give the process at most so many further bytes while the context lasts: then `MemoryError`. Linux alone counts.

    One instruction in a file asks for a hundred gigabytes, and the system would rather end another process than
    refuse them.
    """
    if resource is None or not _STATM.exists():
        yield
        return
    used = int(_STATM.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [used + most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

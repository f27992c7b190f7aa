"""One run at a time in a folder: a lock that the system frees when its process dies, however it dies."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from telechat_kit.errors import KitError
from telechat_kit.files import relative, writing

NAME = ".run.lock"
#: What a run writes beside its results while it works; without a living run these are remains
_REMAINS = (".*.running.ipynb", ".*.tmp")


class LockedError(KitError):
    """Another run is at work in the folder."""

    exit_code = 4


class FolderLock:
    """A held lock. Its file names the processes of the run, so that a later one can end what a dead one left."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def note_children(self) -> None:
        """Write down this process and its children as they are now."""
        me = psutil.Process()
        children = [[child.pid, child.create_time()] for child in me.children() if _alive(child)]
        owner = {"pid": me.pid, "host": socket.gethostname(), "children": children}
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, json.dumps(owner).encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[FolderLock]:
    """Hold the run folder `folder`. What a killed run left is ended and removed first.

    Raises:
        LockedError: another run is at work in the folder.
    """
    path = folder / NAME
    with writing(path):
        descriptor = _acquire(path)
    try:
        _end_orphans(_owner(descriptor))
        for pattern in _REMAINS:
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)
        lock = FolderLock(descriptor)
        with writing(path):
            lock.note_children()
        yield lock
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _flock(descriptor):
            owner = _owner(descriptor)
            os.close(descriptor)
            who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
            raise LockedError(
                f"a run is at work in {relative(path.parent)} ({who}). Wait for it, or choose another run_folder."
            )
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True  # no lock of this kind there
    import fcntl  # noqa: PLC0415  (there is none on Windows)

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(descriptor: int) -> dict[str, object]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = json.loads(os.read(descriptor, 1 << 16))
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"pid", "host"} <= set(found) else {}


def _end_orphans(owner: dict[str, object]) -> None:
    """End the kernels of a run that was killed: they would go on writing where the new run writes."""
    children = owner.get("children") if owner.get("host") == socket.gethostname() else None
    for pid, created in children if isinstance(children, list) else ():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == created:
                process.kill()
                process.wait(10)


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False

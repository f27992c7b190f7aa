"""One run at a time in a folder: a lock that the system frees when its process dies, however it dies."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from telechat_kit.errors import DataError, KitError
from telechat_kit.files import relative, writing
from telechat_kit.manifest import RUN_FOLDER
from telechat_kit.messages import Message, marked
from telechat_kit.strict_json import parse
from telechat_kit.variables import set_meanwhile

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
        _end_orphans(_owner(descriptor), folder)
        for pattern in _REMAINS:
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)
        lock = FolderLock(descriptor)
        with writing(path):
            lock.note_children()
        with set_meanwhile(
            {RUN_FOLDER: str(folder.resolve())}
        ):  # what is started carries the name of the folder
            yield lock
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        # a link would be followed and what it points to emptied
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        if not _flock(descriptor):
            owner = _owner(descriptor)
            os.close(descriptor)
            who = (
                Message("process {process} on {machine}", process=owner["pid"], machine=owner["host"])
                if owner
                else marked("another process")
            )
            raise LockedError(
                "a run is at work in {parent} ({who}). Wait for it, or choose another run_folder.",
                parent=relative(path.parent),
                who=who,
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


def _owner(descriptor: int) -> dict[str, Any]:
    """What the lock's file tells of its process; nothing if that is not what `note_children` writes."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        found = parse(os.read(descriptor, 1 << 16), NAME, "")
    except DataError:
        return {}
    whole = isinstance(found, dict) and type(found.get("pid")) is int and isinstance(found.get("host"), str)
    return found if whole else {}


def _end_orphans(owner: dict[str, Any], folder: Path) -> None:
    """End the kernels of a run that was killed: they would go on writing where the new run writes.

    The file may be forged, so a process must say itself, by `RUN_FOLDER`, that it was started for this folder.
    """
    children = owner.get("children") if owner.get("host") == socket.gethostname() else None
    for child in children if isinstance(children, list) else ():
        if not (isinstance(child, list) and len(child) == 2 and type(child[0]) is int and child[0] > 0):
            continue
        with contextlib.suppress(psutil.Error, OverflowError):
            process = psutil.Process(child[0])
            if process.create_time() == child[1] and process.environ().get(RUN_FOLDER) == str(
                folder.resolve()
            ):
                process.kill()
                process.wait(10)


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False

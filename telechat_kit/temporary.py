"""Temporary folders that go with their process, or with the next one that needs such a folder.

A process that is killed removes nothing. Each folder therefore holds a file that its process keeps locked: the system
gives the lock free when the process ends, however it ends, and who gets it may remove the folder.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

PREFIX = "telechat-"
#: The locked file. A folder without one was made by somebody else, and stays
HELD = ".telechat-kit-holds-this"
#: Seconds after which an empty folder is one whose process was killed before it could lock anything
_MOMENT = 60


@contextlib.contextmanager
def temporary_folder(within: Path | None = None) -> Iterator[Path]:
    """A folder of this process's own, removed at the end; those of dead processes there are removed first.

    Args:
        within: where it is made; the system's place for temporary files by default.
    """
    base = Path(within or tempfile.gettempdir())
    _remove_abandoned(base)
    folder, lock = _held_folder(base)
    try:
        yield folder
    finally:
        _remove(folder)
        lock.release()


def _held_folder(base: Path) -> tuple[Path, filelock.BaseFileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        lock = filelock.FileLock(folder / HELD, thread_local=False)
        with contextlib.suppress(FileNotFoundError):
            lock.acquire()
            if (folder / HELD).exists():
                return folder, lock
        lock.release()  # another process came between the file and its lock, and took the folder for a dead one's


def _remove_abandoned(base: Path) -> None:
    """Remove the folders of this user in `base` whose process is gone."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, filelock.Timeout):  # in use, or another user's
            if (folder / HELD).is_file():
                with filelock.FileLock(folder / HELD, timeout=0):
                    _remove(folder)
            elif folder.stat().st_mtime < time.time() - _MOMENT:
                folder.rmdir()  # only if it is empty


def _remove(folder: Path) -> None:
    """The locked file goes last: a removal that is broken off can be taken up again."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != HELD:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / HELD).unlink(missing_ok=True)
        folder.rmdir()

"""One case: a document changed by a seed, read, and judged. What is refused must be refused as a `KitError`."""

import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mutations import Change, changed
from targets import Corpus, Target, run_hashes

from telechat_kit.errors import KitError

#: Seconds that a reader may take for one document
MOST_SECONDS = 20
#: How a case ends. "silent": another meaning is accepted, and no hash of a run would tell.
REFUSED, SAME, OTHER, HASHED, SILENT, TRACEBACK, HANG = (
    "refused", "same", "other", "hashed", "silent", "traceback", "hang",
)  # fmt: skip
BAD = (SILENT, TRACEBACK, HANG)


class _Hang(BaseException):
    """The reader took too long."""


@dataclass(frozen=True)
class Ending:
    """How a case ended; `told` is the message, or the end of the traceback."""

    kind: str
    told: str = ""


def understood(target: Target, corpus: Corpus) -> str:
    """The digest of the whole document."""
    with _copied(target.source(corpus)) as folder:
        return target.read(folder)


def judge(target: Target, corpus: Corpus, expected: str, name: str, changes: Sequence[Change]) -> Ending:
    """What the reader makes of the corpus with the file `name` changed; `expected` is its digest of the whole one."""
    source = target.source(corpus)
    with _copied(source) as folder:
        content = changed((source / name).read_bytes(), changes)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        try:
            with _limited():
                found = target.read(folder)
                if found == expected:
                    return Ending(SAME)
                if not target.hashed:
                    return Ending(OTHER)
                return Ending(HASHED if _hashes_tell(folder, source) else SILENT, name)
        except KitError as error:
            return Ending(REFUSED, str(error))
        except _Hang:
            return Ending(HANG, name)
        except BaseException as error:  # code in Rust panics with errors that are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return Ending(TRACEBACK, "".join(traceback.format_exception(error, limit=-4))[-900:])


@contextmanager
def _copied(source: Path) -> Iterator[Path]:
    """A folder with the files of `source`, which may be replaced and removed, but not written to."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as temporary:
        yield Path(shutil.copytree(source, Path(temporary) / "given", copy_function=_link))


def _hashes_tell(folder: Path, source: Path) -> bool:
    return list(run_hashes(folder)) != list(run_hashes(source))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

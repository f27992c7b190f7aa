"""Files and where they lie: project root, atomic writes, hashes, room on the disk."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import psutil

from telechat_kit.errors import DataError, KitError, ParameterError
from telechat_kit.messages import Message, marked
from telechat_kit.messages import gettext as _
from telechat_kit.strict_json import parse, read_bytes


def project_root() -> Path:
    """Folder that holds `notebooks/` and `params/`: the nearest one upward, else the one beside the package."""
    start = Path.cwd()
    for folder in (start, *start.parents, Path(__file__).resolve().parent.parent):
        if (folder / "notebooks" / "01_setup.ipynb").is_file() and (folder / "params").is_dir():
            return folder
    return start


def shipped_project() -> Path:
    """The project that came with the package: inside it if it was installed from a wheel, beside it in a checkout."""
    inside = Path(__file__).resolve().parent / "project"
    return inside if inside.is_dir() else inside.parent.parent


def resolve(path: str | Path) -> Path:
    """Absolute form of `path`; a relative one is relative to the project root, wherever the command started.

    Raises:
        ParameterError: it is no text: papermill's `-p` makes a number of `2024` and of `007`. Or no system takes it
            for a path: a link to itself, a name too long, a NUL.
    """
    path = _expanded(path)
    return _possible(path if path.is_absolute() else project_root() / path)


def _expanded(path: str | Path) -> Path:
    """`path` with `~` as the home folder; as it is where nobody has one."""
    if not isinstance(path, str | Path):
        raise ParameterError(
            "a path is given as {name} {path!r}. Put it into quotes; with papermill use -r for it, which "
            "guesses no types.",
            name=type(path).__name__,
            path=path,
        )
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def absolute(path: str | Path) -> Path:
    """Absolute form of `path`; a relative one is relative to the current folder.

    Raises:
        ParameterError: no system takes it for a path.
    """
    return _possible(_expanded(path).absolute())


def _possible(path: Path) -> Path:
    """`path`, where something is or may come to be; Python's own functions each end in another way at others."""
    try:
        str(path).encode()
        path.stat()
    except UnicodeEncodeError as error:  # Linux takes any bytes for a name; records and pages hold UTF-8
        raise ParameterError(
            "{path!a} cannot be a path: it is not UTF-8. Rename it, or correct it.", path=str(path)
        ) from error
    except ValueError as error:  # a NUL
        raise ParameterError(
            "{path!a} cannot be a path ({error}). Correct it.", path=str(path), error=error
        ) from error
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", errno.ELOOP) in (errno.ELOOP, errno.ENAMETOOLONG):
            told = getattr(error, "strerror", None) or error
            raise ParameterError(
                "{shortened} cannot be a path ({told}). Give another.", shortened=_shortened(path), told=told
            ) from error
    return path


def _shortened(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"


def relative(path: str | Path) -> str:
    """`path` as the project knows it: relative to the root if it lies below it."""
    path = Path(path)
    return str(path.relative_to(project_root())) if path.is_relative_to(project_root()) else str(path)


def written(*paths: Path) -> None:
    """Say where files were written, as the project knows them: the last cell of a notebook."""
    print(_("written:"), *map(relative, paths))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system has against writing `path`, as a `KitError` that says what to do."""
    try:
        yield
    except IsADirectoryError as error:
        raise KitError("{path} is a folder where a file is due. Move it away.", path=path) from error
    except OSError as error:
        raise KitError(
            "cannot write {path}: {strerror}. Free space or choose another folder.",
            path=path,
            strerror=error.strerror or error,
        ) from error
    except Exception as error:
        if "(os error " not in str(error):  # so libraries in Rust name what the system said
            raise
        raise KitError(
            "cannot write {path}: {error}. Free space or choose another folder.", path=path, error=error
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` and rename it to `path` at the end; on an error nothing is left.

    What a killed process left of the same file is removed first.
    """
    temporary = path.with_name(f".{path.name}.{_mark(os.getpid())}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_remains(path, ".tmp")
        try:
            yield temporary
            temporary.chmod(0o644)  # safetensors (0.8) leaves a file to its owner alone
            os.replace(temporary, path)  # noqa: PTH105  (a rename over an existing file, on every system)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; at the end it takes the place of `folder`, whole or not at all.

    A link stays, and what it points to is replaced. What a killed process left of the same folder is removed first.
    """
    folder = folder.resolve()
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_remains(folder, ".new")
        prefix = f".{folder.name}.{_mark(os.getpid())}."
        temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".new", dir=folder.parent))
        try:
            yield temporary
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _mark(process: int) -> str:
    """What names of temporary files hold of the process at work: no other machine takes it for a dead one of its own."""
    return f"{process}@{socket.gethostname()}"


def _remove_remains(target: Path, suffix: str) -> None:
    """Remove what processes of this machine that are gone left beside `target` under their temporary names."""
    host = re.escape(socket.gethostname())
    name = re.compile(rf"\.{re.escape(target.name)}\.(\d+)@{host}(\.\w+)?{re.escape(suffix)}")
    for path in target.parent.iterdir():
        found = name.fullmatch(path.name)
        if found is None or psutil.pid_exists(int(found[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def replace_folder(temporary: Path, folder: Path) -> None:
    """Rename the finished folder `temporary` to `folder`; what is there goes when the new one has its place.

    Everybody may read it: safetensors (0.8) and `mkdtemp` leave files and folders to their owner alone.
    """
    temporary.chmod(0o755)
    for path in temporary.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    if not folder.exists():
        temporary.rename(folder)
        _remove_remains(folder, ".old")  # of a process that was killed between the two renames below
        return
    prefix = f".{folder.name}.{_mark(os.getpid())}."
    aside = Path(tempfile.mkdtemp(prefix=prefix, suffix=".old", dir=folder.parent))
    old = aside / "old"
    folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        _remove_remains(folder, ".old")


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process makes `folder`, and keep them waiting while the context lasts."""
    folder = folder.resolve()
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = lock_beside(folder)
        with filelock.FileLock(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)


def lock_beside(folder: Path) -> Path:
    """The file that `one_at_a_time` locks; there while a process makes `folder`, or if one was killed doing so."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.{LOCK}")


#: Names in a work folder that stand for the process at work in it
LOCK, OWNER = "lock", "owner"


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of the work folder `folder`, made if needed, while the context lasts.

    The system gives the lock free when the process that holds it ends, however it ends: one that a dead process
    left is taken over.

    Raises:
        KitError: another process is at work in it; the message names process and machine.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise KitError(
                "{owner} is at work in {folder}. Wait until it is done, or give another target folder.",
                owner=_owner(folder),
                folder=folder,
            ) from error
    try:
        write_text(folder / OWNER, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def _owner(folder: Path) -> str:
    path = folder / OWNER
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "another process"


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented UTF-8 JSON, whole or not at all. NaN is refused: JSON has none."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(
    path: Path, remedy: str = marked("Remove it and run the step again."), once: bool = False
) -> Any:
    """Parse a JSON file; `remedy` ends the errors of one that is damaged. With `once` no key may stand twice.

    Raises:
        DataError: the file is missing, or what `strict_json` does not take; file and line named.
    """
    if not path.exists():
        raise DataError("{path} does not exist. Run the step that writes it, or correct the path.", path=path)
    return parse(read_bytes(path, remedy), str(path), remedy, once)


def read_jsonl(path: Path, remedy: str) -> list[Any]:
    """The values of a file of JSON lines; none if it is empty.

    Raises:
        DataError: the file cannot be read, or a line is not what `strict_json` takes; line named.
    """
    lines = read_bytes(path, remedy).split(b"\n") if not path.is_file() or path.stat().st_size else []
    return [
        parse(line, Message("{path}, line {number}", path=path, number=number), remedy)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object a line, whole or not at all."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()  # Python 3.10
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to begin what cannot end: raise `KitError` if fewer than `needed` bytes are free under `folder`."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise KitError(
            "{purpose} needs {needed:.2f} GB under {folder}, {free:.2f} GB are free. Free space or choose "
            "another folder.",
            purpose=purpose,
            needed=needed / 1e9,
            folder=folder,
            free=free / 1e9,
        )

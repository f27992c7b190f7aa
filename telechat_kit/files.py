"""Files and where they lie: project root, atomic writes, hashes, jsonl lines, room on the disk."""

import codecs
import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from telechat_kit.errors import DataError, KitError


def project_root() -> Path:
    """Folder that holds `notebooks/` and `params/`: the nearest one upward, else the one beside the package."""
    start = Path.cwd()
    beside_package = Path(__file__).resolve().parent.parent
    for folder in (start, *start.parents, beside_package):
        if (folder / "notebooks" / "01_setup.ipynb").is_file() and (folder / "params").is_dir():
            return folder
    return start


def resolve(path: str | Path) -> Path:
    """Absolute form of `path`; a relative one is relative to the project root, wherever the command started."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else project_root() / path


def relative(path: str | Path) -> str:
    """`path` as the project knows it: relative to the root if it lies below it."""
    path = Path(path)
    return str(path.relative_to(project_root())) if path.is_relative_to(project_root()) else str(path)


def written(*paths: Path) -> None:
    """Say where files were written, as the project knows them: the last cell of a notebook."""
    print("written:", *map(relative, paths))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system has against writing `path`, as a `KitError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise KitError(
            f"cannot write {path}: {error.strerror or error}. Free space or choose another folder."
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` and rename it to `path` at the end; on an error nothing is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)  # noqa: PTH105  (a rename over an existing file, on every system)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; at the end it takes the place of `folder`, whole or not at all."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield temporary
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, folder: Path) -> None:
    """Rename the finished folder `temporary` to `folder`, in place of what is there."""
    temporary.chmod(0o755)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


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
                f"{_owner(folder)} is at work in {folder}. Wait until it is done, or give another target folder."
            ) from error
    try:
        write_text(folder / OWNER, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def _owner(folder: Path) -> str:
    path = folder / OWNER
    return path.read_text(encoding="utf-8") if path.is_file() else "another process"


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented UTF-8 JSON, whole or not at all. NaN is refused: JSON has none."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; a missing or damaged one is a `DataError` that names the file and line."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist. Run the step that writes it, or correct the path."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}. Remove it and run the step again.") from error


def read_jsonl(path: Path, required: str) -> list[dict[str, Any]]:
    """Objects of a jsonl file, one a line; blank lines are skipped.

    Raises:
        DataError: the file is missing or empty, or a line is no JSON object with a text under `required`.
    """
    return list(read_numbered_jsonl(path, required).values())


def read_numbered_jsonl(path: Path, required: str) -> dict[int, dict[str, Any]]:
    """The objects of `read_jsonl` by the numbers of their lines in the file, from 1."""
    if not path.is_file():
        raise DataError(f'{path} does not exist. Give a file of {{"{required}": "..."}} lines.')
    rows = {}
    # not str.splitlines(): it also cuts at separators that may stand inside a JSON text, such as U+2028
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            rows[number] = _parse_line(line, path, number, required)
    if not rows:
        raise DataError(f'{path} holds no lines. Give at least one {{"{required}": "..."}} line.')
    return rows


def _parse_line(line: bytes, path: Path, number: int, required: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        text = line.decode("utf-8").strip()
        row = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}). Convert it.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}). Correct the line."
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get(required), str) or not row[required].strip():
        raise DataError(
            f'{where}: expected an object with a non-empty text under "{required}", got {text[:80]}'
        )
    return row


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
            f"{purpose} needs {needed / 1e9:.2f} GB under {folder}, {free / 1e9:.2f} GB are free. "
            "Free space or choose another folder."
        )

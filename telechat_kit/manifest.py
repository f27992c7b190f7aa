"""`manifest.json` of a run folder: name, size and SHA-256 of every file of the run, written last of all.

It tells what was changed, lost or added since, and is what a signature is made over. Who can write the folder can
write it anew: whether figures are true is the business of `runs.verification`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from telechat_kit.errors import DataError
from telechat_kit.files import read_json, sha256, write_json
from telechat_kit.messages import marked

SCHEMA = "telechat-kit/manifest/1"
NAME, SIGNATURE = "manifest.json", "manifest.json.sig"
#: Who wrote it: `telechat-kit run`, or the report of a run that was stepped through by hand
BY_RUN, BY_HAND = "run", "hand"
#: In the environment of a kernel: the run folder that it works for. The run writes the manifest there, not its notebooks.
RUN_FOLDER = "TELECHAT_KIT_RUN_FOLDER"
#: Folder of a run for copies of the notebooks that a person steps through and saves (`telechat-kit lab`)
COPIES = "notebooks"
#: Folders with one of these are runs or checkpoints of their own
_OTHERS = ("run.json", "config.json", NAME)


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a run by their names below its folder."""

    schema: str
    made_by: str
    files: dict[str, FileEntry]

    def covers(self, name: str) -> bool:
        """Whether a file of that name would stand in it.

        Where notebooks are stepped through by hand they are saved after their last cell, so after the manifest.
        """
        return _covered(name, self.made_by)


def _covered(name: str, made_by: str) -> bool:
    if name.startswith(f"{COPIES}/"):
        return False
    return made_by == BY_RUN or name == "report.html" or not name.endswith((".ipynb", ".html"))


def run_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of the files of a run, in order: all but hidden ones, the manifest, and other runs below it."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in (NAME, SIGNATURE):
            continue
        if path.is_file():
            yield path.name, path
        elif path.is_dir() and not path.is_symlink() and not any((path / name).exists() for name in _OTHERS):
            yield from ((f"{path.name}/{name}", file) for name, file in run_files(path))


def write_manifest(folder: Path, made_by: str, earlier: bytes | None = None) -> Path:
    """Write the manifest of what lies in `folder` now, whole or not at all. A signature of another one goes.

    Args:
        earlier: content of the manifest that the signature was made for, where it is not in its place any more.
    """
    path = folder / NAME
    before = path.read_bytes() if path.is_file() else earlier
    files = {
        name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for name, file in run_files(folder)
        if _covered(name, made_by)
    }
    write_json(path, {"schema": SCHEMA, "made_by": made_by, "files": files})
    if path.read_bytes() != before:
        (folder / SIGNATURE).unlink(missing_ok=True)
    return path


def withdraw_manifest(folder: Path) -> bytes | None:
    """Take the manifest away while the files change; its content, for `write_manifest`."""
    path = folder / NAME
    content = path.read_bytes() if path.is_file() else None
    path.unlink(missing_ok=True)
    return content


def renew_manifest(folder: Path, create: bool = False) -> None:
    """Follow a change that is no run's: a record or page written by hand. A run of `telechat-kit run` does it itself.

    Args:
        create: also where there is none.
    """
    if os.environ.get(RUN_FOLDER) == str(folder.resolve()):
        return
    if create or (folder / NAME).is_file():
        write_manifest(folder, BY_RUN if (folder / "run.json").is_file() else BY_HAND)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a run folder; None where there is none.

    Raises:
        DataError: it is damaged, or of another version of the kit.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    return parse_manifest(read_json(path, marked("Run again, or remove it.")), str(path))


def parse_manifest(values: Any, where: str) -> Manifest:
    """Parsed JSON as a manifest; `where` names its place in errors."""
    try:
        found = TypeAdapter(Manifest).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part)[:60] for part in first["loc"])
        raise DataError(
            "{where} is damaged ({place}). Run again, or remove it.",
            where=where,
            place=f"{key}: {first['msg']}" if key else first["msg"],
        ) from error
    if found.schema != SCHEMA:
        raise DataError(
            '{where} has schema "{found}", this kit reads "{known}". Run again.',
            where=where,
            found=found.schema[:80],
            known=SCHEMA,
        )
    return found

"""Whose a folder is: only what the kit wrote is replaced, unless the caller says aloud that all of it may go."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from telechat_kit.errors import CheckpointError, DataError
from telechat_kit.files import read_json
from telechat_kit.messages import Message

#: Entry of the kit's record in a folder: names of all files that were written with it
FILES = "files"


def names_in(folder: Path) -> list[str]:
    """Names of the files and links below `folder`, and of its empty folders, relative to it."""
    paths = [
        path
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    ]
    return sorted(str(path.relative_to(folder)) for path in paths)


def require_free(target: Path, record: str, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Refuse a target that is a file, or holds what the kit did not write; with `overwrite` that may go.

    Args:
        record: the file that tells what the kit wrote: `quantize.json` or `export.json`.
        inputs: folders that are read from, which must not lie in the target.

    Raises:
        CheckpointError: what would be lost is named.
    """
    if any(path == target or path.is_relative_to(target) for path in (each.resolve() for each in inputs)):
        raise CheckpointError(
            "{target} holds what is read from. Give the new weights a folder of their own.", target=target
        )
    if target.is_file():
        raise CheckpointError(
            "{target} is a file. Give the new weights a folder of their own.", target=target
        )
    if overwrite or not target.is_dir():
        return
    written = _written(target / record)
    lost = [name for name in names_in(target) if name not in written]
    if lost:
        names = ", ".join(lost[:3])
        if len(lost) > 3:
            names = Message("{names} and {count} more", names=names, count=len(lost) - 3)
        raise CheckpointError(
            "{target} holds other files, which would be lost: {names}. Give the new weights a folder of "
            "their own, move these files away, or allow it with overwrite.",
            target=target,
            names=names,
        )


def _written(path: Path) -> set[str]:
    """The files that the kit's record tells of; none if the record is not there or not the kit's."""
    try:
        record: Any = read_json(path) if path.is_file() else None
    except DataError:
        return set()
    if not isinstance(record, dict) or not str(record.get("schema")).startswith("telechat-kit/"):
        return set()
    names = record.get(FILES)
    return {path.name, *(str(name) for name in names)} if isinstance(names, list) else set()

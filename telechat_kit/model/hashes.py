"""Hashes of checkpoint folders: of the weights and the tokenizer as records carry them, and of every file."""

from dataclasses import dataclass
from pathlib import Path

from telechat_kit.errors import CheckpointError
from telechat_kit.model.config_files import read_object
from telechat_kit.model.folder import weight_files
from telechat_kit.model.tokenizer_files import FILES
from telechat_kit.provenance import combined_hash, file_hash

#: JSON files that tell of a folder and decide nothing
_TOLD = ("quantize.json", "export.json", "origin.json")
#: Entry of the kit's records beside quantized weights: SHA-256 of each weight file by its name
WEIGHTS = "weights_sha256"
#: Those records; an export's own stands for the weights that it wrote
_RECORDS = ("quantize.json", "export.json")


@dataclass(frozen=True)
class FileHash:
    """Name below the folder, size and SHA-256 of one file."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class FolderHashes:
    """Every file of a folder, and the combined hashes that records carry; empty where there is nothing to hash.

    `problem`: why the folder is no whole checkpoint, if it is none.
    """

    files: list[FileHash]
    weights: str
    tokenizer: str
    problem: str


def weights_hash(folder: Path) -> str:
    """One hash over the weight files of a checkpoint folder, by name and content."""
    return combined_hash(f"{path.name} {file_hash(path)}" for path in weight_files(folder))


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each weight file of a folder, as the records beside quantized weights hold them."""
    return {path.name: file_hash(path) for path in weight_files(folder)}


def require_recorded_weights(folder: Path) -> bool:
    """Compare the weight files of a folder with the hashes in the kit's record beside them.

    Returns:
        False if no record there holds any: an older kit's, another tool's, or a float checkpoint.

    Raises:
        CheckpointError: a file is another than the one that was written.
    """
    recorded: dict[str, str] = {}
    for path in (folder / name for name in _RECORDS):
        found = read_object(path).get(WEIGHTS) if path.is_file() else None
        recorded |= found if isinstance(found, dict) else {}
    if not recorded:
        return False
    here = weight_hashes(folder)
    changed = [name for name in {**recorded, **here} if recorded.get(name) != here.get(name)]
    if changed:
        raise CheckpointError(
            "{folder} is not the file that was written here: its SHA-256 is {here}, the record beside it "
            "says {recorded}. Copy the folder again, or quantize again.",
            folder=folder / changed[0],
            here=here.get(changed[0], "none")[:16],
            recorded=recorded.get(changed[0], "none")[:16],
        )
    return True


def tokenizer_hash(folder: Path) -> str:
    """One hash over the tokenizer files of a checkpoint folder."""
    files = [folder / name for name in FILES if (folder / name).is_file()]
    return combined_hash(f"{path.name} {file_hash(path)}" for path in files)


def settings_hash(folder: Path) -> str:
    """One hash over what else decides the answers of a checkpoint: its JSON files, without tokenizer and records."""
    named = (path for path in sorted(folder.glob("*.json")) if path.name not in (*FILES, *_TOLD))
    paths = [path for path in named if path.is_file()]
    return combined_hash(f"{path.name} {file_hash(path)}" for path in paths)


def folder_hashes(folder: Path) -> FolderHashes:
    """Sizes and hashes of all files of a folder, below it too, by name; files that begin with a dot are left out.

    Raises:
        CheckpointError: a file cannot be read.
    """
    try:
        paths = [
            path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")
        ]
        files = [FileHash(str(p.relative_to(folder)), p.stat().st_size, file_hash(p)) for p in paths]
    except OSError as error:
        raise CheckpointError(
            "{path} cannot be read: {strerror}. Give its owner's rights, or another folder.",
            path=error.filename,
            strerror=error.strerror,
        ) from error
    try:
        weights, problem = weights_hash(folder), ""
    except CheckpointError as error:
        weights, problem = "", str(error)
    has_tokenizer = any((folder / name).is_file() for name in FILES)
    return FolderHashes(files, weights, tokenizer_hash(folder) if has_tokenizer else "", problem)

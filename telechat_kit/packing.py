"""Pack a run: one archive with all that another machine needs to verify it, but the weights."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import telechat_kit
from telechat_kit.errors import DataError
from telechat_kit.files import atomic_path, project_root, relative, resolve
from telechat_kit.provenance import file_hash
from telechat_kit.run_data import RunData, read_run_data

SCHEMA = "telechat-kit/pack/1"
MANIFEST = "PACK.json"
_PROJECT = ("telechat_kit", "notebooks", "params", "environment")
_FILES = ("pyproject.toml", "README.md", "LICENSE", "Makefile")
_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}


def pack(run_folder: str | Path, target: Path) -> Path:
    """Write the zip archive `target`: the run folder, code, notebooks, parameters and data, and a manifest.

    Raises:
        DataError: the folder holds no run, or a data file that the run names is gone.
    """
    folder = resolve(run_folder)
    run = read_run_data(folder)
    files = dict(_contents(folder, run))
    manifest = {
        "schema": SCHEMA,
        "kit": telechat_kit.__version__,
        "run": f"results/{folder.name}",
        "weights": _weights(run),
        "how": f"unpack, put the weights in place, then: make report PROFILE=results/{folder.name}/params.yaml, "
        f"or: telechat-kit verify results/{folder.name}",
        "files": {name: file_hash(path) for name, path in files.items()},
    }
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files.items():
            _add(archive, name, path.read_bytes())
        _add(archive, MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
    return target


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """A member without the time of day: the same run packs to the same bytes."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    archive.writestr(member, content)


def _contents(folder: Path, run: RunData) -> Iterator[tuple[str, Path]]:
    root = project_root()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield f"results/{folder.name}/{path.relative_to(folder).as_posix()}", path
    for name in _PROJECT:
        for path in sorted((root / name).rglob("*")):
            if path.is_file() and not _SKIPPED & set(path.parts) and path.suffix != ".so":
                yield path.relative_to(root).as_posix(), path
    for path in (root / name for name in _FILES):
        if path.is_file():
            yield path.name, path
    yield from _data(run)


def _data(run: RunData) -> Iterator[tuple[str, Path]]:
    """Texts that the parameters name outside `params/`."""
    for key in ("jsonl_path", "calibration_path", "text_path"):
        value = run.parameters.get(key)
        if value and ("/" in value or "." in Path(value).suffix) and value != "pydoc_data.topics":
            path = resolve(value)
            if not path.is_file():
                raise DataError(f"{path}, the {key} of the run, is gone. Put it back, then pack.")
            if relative(path) == str(path):
                yield f"data/{path.name}", path
            elif not relative(path).startswith("params/"):
                yield relative(path), path


def _weights(run: RunData) -> dict[str, str]:
    """Folder of the float weights and their hash: what the archive leaves out."""
    if run.setup is None:
        return {}
    return {run.setup.checkpoint_path: run.setup.conditions.hashes.get("float_weights", "")}

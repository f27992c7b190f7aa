"""Pack a run: one archive with all that another machine needs to verify it, but the weights."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

import telechat_kit
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import DataError
from telechat_kit.files import atomic_path, project_root, resolve
from telechat_kit.manifest import NAME as SEAL
from telechat_kit.manifest import SIGNATURE, read_manifest
from telechat_kit.provenance import file_hash
from telechat_kit.strict_json import encodes
from telechat_kit.texts import KIT_TEXTS, PYDOC_TOPICS, SEALED_TEXTS, text_names

SCHEMA = "telechat-kit/pack/1"
MANIFEST = "PACK.json"
_PROJECT = ("telechat_kit", "notebooks", "params", "environment")
_FILES = ("pyproject.toml", "README.md", "LICENSE", "Makefile")
#: Parameters that name data
_DATA = ("jsonl_path", "calibration_path", "text_path", "kinds_path", "languages_path", "tasks_path")
_SKIPPED = {"__pycache__", ".ipynb_checkpoints"}


def pack(run_folder: str | Path, target: Path, outside: bool = False) -> Path:
    """Write the zip archive `target`: the run folder, code, notebooks, parameters and data, and a manifest.

    A run of somebody else names what it likes as its data: files that do not lie in the project are packed only if
    the caller says so.

    Args:
        outside: files that the run names or links to from outside the project may be packed.

    Raises:
        DataError: the folder holds no run, or a data file that the run names is gone or lies outside the project.
    """
    folder = resolve(run_folder)
    run = read_run_data(folder)
    data, name = _data(run, outside), f"results/{folder.name}"
    if not outside:
        _require_own(
            [path for path in folder.rglob("*") if path.is_symlink()], folder.resolve(), "a link of the run"
        )
    files = dict(_contents(folder)) | {
        place: path for places in data.values() for place, path in places.items()
    }
    rewritten = _with_places(name, run, data)
    rewritten |= _resealed(name, folder, rewritten)
    if f"{name}/{SEAL}" in rewritten:
        files.pop(f"{name}/{SIGNATURE}", None)  # it is of what lay here
    if odd := [place for place in files if not encodes(place)]:
        raise DataError("{name!a}: this name is not UTF-8. Rename the file, then pack.", name=odd[0])
    manifest = {
        "schema": SCHEMA,
        "kit": telechat_kit.__version__,
        "run": name,
        "weights": _weights(run),
        "how": f"unpack, put the weights in place, then: make report PROFILE={name}/params.yaml, "
        f"or: telechat-kit verify {name}",
        "files": {place: _hash(rewritten.get(place), path) for place, path in files.items()},
    }
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, path in files.items():
            _add(archive, place, rewritten.get(place) or path.read_bytes())
        _add(archive, MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
    return target


def _hash(content: bytes | None, path: Path) -> str:
    return file_hash(path) if content is None else hashlib.sha256(content).hexdigest()


def _with_places(name: str, run: RunData, data: dict[str, dict[str, Path]]) -> dict[str, bytes]:
    """Profile and state of the run, so that they find its data where the archive has them."""
    if not run.state:
        return {}
    values = _moved(run, data)
    # what the steps read is told by the names that it had
    moved = {"moved": {key: run.parameters[key] for key in data}} if data else {}
    profile = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    state = json.dumps(run.state | {"parameters": values} | moved, ensure_ascii=False, indent=2)
    return {f"{name}/params.yaml": profile.encode(), f"{name}/run.json": f"{state}\n".encode()}


def _resealed(name: str, folder: Path, rewritten: dict[str, bytes]) -> dict[str, bytes]:
    """The manifest with the hashes of what is packed otherwise than it lies here; nothing if all is as it is."""
    manifest = read_manifest(folder)
    places = {place: place.removeprefix(f"{name}/") for place in rewritten}
    if manifest is None or all(_bytes(folder / own) == rewritten[p] for p, own in places.items()):
        return {}
    files = {own: asdict(entry) for own, entry in manifest.files.items()}
    for place, own in places.items():
        content = rewritten[place]
        files[own] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    packed = json.dumps(asdict(manifest) | {"files": files}, ensure_ascii=False, indent=2)
    return {f"{name}/{SEAL}": f"{packed}\n".encode()}


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """A member without the time of day: the same run packs to the same bytes."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    archive.writestr(member, content)


def _contents(folder: Path) -> Iterator[tuple[str, Path]]:
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


def _data(run: RunData, outside: bool) -> dict[str, dict[str, Path]]:
    """Texts and task files that the parameters name outside `params/`: parameter -> name in the archive -> file."""
    found: dict[str, dict[str, Path]] = {}
    for key in _DATA:
        for path in (resolve(name) for name in _names(run, key) if not _is_packed_anyway(name)):
            if not path.exists():
                raise DataError(
                    "{path}, the {key} of the run, is gone. Put it back, then pack.", path=path, key=key
                )
            files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
            if not outside:
                _require_own([path, *files], project_root().resolve(), f"the {key} of the run")
            places = {f"data/{key}/{file.relative_to(path.parent).as_posix()}": file for file in files}
            found.setdefault(key, {}).update(places)
    return found


def _names(run: RunData, key: str) -> list[str]:
    """The texts that a parameter names."""
    return [name for name in text_names(str(run.parameters.get(key) or "")) if name]


def _is_packed_anyway(name: str) -> bool:
    """Whether a text comes with the code, or lies below `params/`, links and dots followed."""
    own = (project_root() / "params").resolve()
    return name in (PYDOC_TOPICS, KIT_TEXTS, SEALED_TEXTS) or resolve(name).resolve().is_relative_to(own)


def _require_own(paths: Iterable[Path], root: Path, what: str) -> None:
    """Refuse what does not lie below `root`, links followed, or has a hidden folder on its way there."""
    for path in paths:
        try:
            real = path.resolve()
        except RuntimeError as error:  # before Python 3.13
            raise DataError("{path}, {what}, leads to itself. Remove it.", path=path, what=what) from error
        within = real.is_relative_to(root) and real != root
        if not within or any(part.startswith(".") for part in real.relative_to(root).parts):
            raise DataError(
                "{path}, {what}, lies outside {root} or in a hidden folder: it would become part of the archive. "
                "Look at it, and allow it with --outside, or copy it into the project.",
                path=path,
                what=what,
                root=root,
            )


def _moved(run: RunData, data: dict[str, dict[str, Path]]) -> dict[str, Any]:
    """The parameters of the run with the places that its data have in the archive."""

    def place(key: str, name: str) -> str:
        return name if _is_packed_anyway(name) else f"data/{key}/{resolve(name).name}"

    return run.parameters | {key: ", ".join(place(key, name) for name in _names(run, key)) for key in data}


def _weights(run: RunData) -> dict[str, str]:
    """Folder of the float weights and their hash: what the archive leaves out."""
    if run.setup is None:
        return {}
    return {run.setup.checkpoint_path: run.setup.conditions.hashes.get("float_weights", "")}

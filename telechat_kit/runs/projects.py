"""New projects: the folder of notebooks, profiles and data that runs start in, and copies of notebooks to step through."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import nbformat

from telechat_kit.errors import DataError
from telechat_kit.files import absolute, atomic_folder, resolve, shipped_project, write_text, writing
from telechat_kit.manifest import COPIES
from telechat_kit.runs.notebook_language import in_language
from telechat_kit.runs.parameters_cell import comments_in_sight, filled_in, is_parameters_cell
from telechat_kit.runs.profile import Profile, notebook_path
from telechat_kit.runs.state import STEPS

#: What a project holds: what a checkout has under the same names, without what only its developers need
PARTS: Mapping[str, tuple[str, ...]] = {
    "notebooks": ("*.ipynb",),
    "params": ("*.yaml", "sweeps/*.yaml", "data/**/*"),
    "environment": ("constraints*.txt", "demo-model.txt", "versions.yaml"),
}


def create_project(folder: str | Path) -> Path:
    """Copy the kit's notebooks, profiles, data and versions into `folder`, which may exist and hold other things.

    Raises:
        DataError: `folder` holds one of these parts already; nothing is changed.
        KitError: it cannot be written.
    """
    target = absolute(folder)
    taken = [name for name in PARTS if (target / name).exists()]
    if taken:
        raise DataError(
            "{target} holds {taken} already. Name another folder, or move that away.",
            target=target,
            taken=", ".join(f"{name}/" for name in taken),
        )
    source = shipped_project()
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        for name, patterns in PARTS.items():
            with atomic_folder(target / name) as part:
                for path in (path for pattern in patterns for path in sorted((source / name).glob(pattern))):
                    if path.is_file():
                        copy = part / path.relative_to(source / name)
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, copy)
    return target


def copy_notebooks(profile: Profile, overwrite: bool = False) -> Path:
    """Copies of the five notebooks in `notebooks/` of the profile's run folder, with its parameters filled in.

    Stepping through them leaves the sources as they are; the records lie in the run folder, where `verify` and
    `report` look for them.

    Args:
        overwrite: replace copies that are there; else they stay, with what was changed in them.

    Returns:
        The folder of the copies.
    """
    folder = resolve(profile.run_folder) / COPIES
    for step in STEPS:
        target = folder / f"{step.name}.ipynb"
        if target.exists() and not overwrite:
            continue
        notebook = in_language(nbformat.read(notebook_path(step.name), as_version=4), profile.language)
        for cell in notebook.cells:
            if is_parameters_cell(cell):
                cell.source = comments_in_sight(filled_in(cell.source, profile.values))
        write_text(target, nbformat.writes(notebook))
    return folder

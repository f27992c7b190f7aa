"""A project with checkpoints of TeleChat's shapes in it, of which only the table of contents takes room."""

from pathlib import Path

import pytest
from recorded import SEVEN_B, TWELVE_B, write_shaped

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A project folder: the real notebooks, parameters and versions.yaml, and models/telechat-7b and -12b."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params", "environment"):
        (folder / name).symlink_to(ROOT / name)
    write_shaped(folder / "models" / "telechat-7b", SEVEN_B, tiny_folder)
    write_shaped(folder / "models" / "telechat-12b", TWELVE_B, tiny_folder)
    return folder

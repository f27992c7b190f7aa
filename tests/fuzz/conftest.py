"""What is changed in the fuzz tests: folders that the whole suite shares, and texts."""

import shutil
from pathlib import Path

import pytest
from corpus import write_texts
from targets import Corpus

from telechat_kit.quantization import export


@pytest.fixture(scope="session")
def corpus(
    tiny_folder: Path, tiny_w8a8_folder: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Corpus:
    """Every format of the tiny model, a run of it, and texts."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, form in (("numpy", "numpy"), ("ascend", "ascendV1"), ("compressed", "compressed-tensors")):
        export(tiny_w8a8_folder, folder / name, form, model_path=tiny_folder)
    run = folder / "run"
    shutil.copytree(tiny_run, run)
    if not (run / "run.json").exists():  # the shared run was made by verbs; one by the command has a state
        shutil.copy(Path(__file__).parents[2] / "results" / "reference" / "run.json", run)
    return Corpus(
        floats=tiny_folder,
        w8a8=tiny_w8a8_folder,
        numpy=folder / "numpy",
        ascend=folder / "ascend",
        compressed=folder / "compressed",
        run=run,
        texts=write_texts(folder / "texts"),
    )

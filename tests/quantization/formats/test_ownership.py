"""Other people's folders: what the kit did not write stays, unless it is said aloud that it may go."""

import json
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from telechat_kit.environment.checkpoint_checks import make_embedded
from telechat_kit.errors import CheckpointError, KitError
from telechat_kit.files import replace_folder, writing
from telechat_kit.model.folder import weight_files
from telechat_kit.quantization import Calibration, Recipe, export, quantize


def quantized(source: Path, target: Path, **options: Any) -> None:
    calibration = Calibration("pydoc_data.topics", calibration_samples=1, calibration_tokens=16)
    quantize(source, target, Recipe("L0", anti_outlier="none"), calibration, device="cpu", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def own(tiny_folder: Path, tmp_path: Path) -> Path:
    quantized(tiny_folder, tmp_path / "w8a8")
    return tmp_path / "w8a8"


def without_record(folder: Path) -> str:
    (folder / "quantize.json").unlink()
    return "config.json"


def with_note(folder: Path) -> str:
    (folder / "note.txt").write_text("mine")
    return "note.txt"


def with_folder(folder: Path) -> str:
    (folder / "notes" / "old").mkdir(parents=True)
    return str(Path("notes", "old"))


def with_foreign_record(folder: Path) -> str:
    (folder / "quantize.json").write_text('{"schema": "vendor/1"}')
    return "config.json"


def with_damaged_record(folder: Path) -> str:
    (folder / "quantize.json").write_text("{")
    return "config.json"


CHANGES = [without_record, with_note, with_folder, with_foreign_record, with_damaged_record]


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_kit_did_not_write_is_named_and_stays(
    own: Path, tiny_folder: Path, change: Callable[[Path], str]
) -> None:
    lost = change(own)
    before = contents(own)
    with pytest.raises(CheckpointError, match="holds other files, which would be lost") as caught:
        quantized(tiny_folder, own)
    assert lost in str(caught.value)
    assert contents(own) == before
    quantized(tiny_folder, own, overwrite=True)
    assert not (own / "note.txt").exists()
    assert weight_files(own)


def test_the_kit_replaces_its_own_folder(own: Path, tiny_folder: Path) -> None:
    before = contents(own)
    quantized(tiny_folder, own)
    assert contents(own).keys() == before.keys()


def test_an_export_replaces_an_earlier_one_and_nothing_else(own: Path, tmp_path: Path) -> None:
    target = tmp_path / "export"
    export(own, target, "ascendV1")
    export(own, target, "compressed-tensors")
    with_note(target)
    with pytest.raises(CheckpointError, match=r"would be lost: note\.txt"):
        export(own, target, "ascendV1")
    export(own, target, "ascendV1", overwrite=True)
    assert not (target / "note.txt").exists()


def test_a_file_in_place_of_the_folder_is_one_clear_error(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="is a file"):
            quantized(tiny_folder, tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


def test_overwriting_never_reaches_what_is_read_from(tiny_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folder, tmp_path / "models" / "tiny"))
    (tmp_path / "link").symlink_to(source)
    for target in (tmp_path / "models", tmp_path / "link"):
        with pytest.raises(CheckpointError):
            quantized(source, target, overwrite=True)
    assert contents(source) == contents(tiny_folder)


def test_a_link_stays_and_its_folder_is_filled(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for _ in range(2):
        quantized(tiny_folder, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert weight_files(tmp_path / "disk")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "a").write_text("a")
    with pytest.raises(KitError, match="cannot write"), writing(old):
        replace_folder(_missing(tmp_path), old)
    assert contents(old) == {"a": b"a"}


def _missing(tmp_path: Path) -> Path:
    class Gone(type(tmp_path)):  # type: ignore[misc]
        def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
            """Removed by somebody after it was finished."""

    return Gone(tmp_path / "gone")


def test_a_full_disk_told_by_a_library_in_rust_is_a_kit_error(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="Free space or choose another folder"), writing(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError), writing(tmp_path):
        raise RuntimeError("something else")


def _make(folder: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    try:
        results.put(str(weight_files(make_embedded(folder, "tiny-random"))[0].name))
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")


def test_two_processes_that_make_the_same_model_both_find_it_whole(tmp_path: Path) -> None:
    context = get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(tmp_path / "tiny"), barrier, results)
    workers = [context.Process(target=_make, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=120) for _ in workers] == ["model.safetensors"] * 2
    for worker in workers:
        worker.join()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["n_layer"] == 4

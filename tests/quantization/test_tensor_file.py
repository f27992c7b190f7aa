"""The safetensors writer that never holds all tensors: its bytes are those of the library's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from telechat_kit.quantization.tensor_file import (
    DTYPES,
    Entry,
    file_entries,
    file_metadata,
    write_tensor_file,
)


def test_joined_parts_are_the_file_that_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        f"{letter}.{name}é": torch.arange(6).reshape(2, 3).to(dtype)
        for letter in "bBa"
        for name, dtype in DTYPES.items()
    } | {"empty": torch.zeros(0, 4), "one": torch.ones(1)}
    names = list(tensors)
    save_file(tensors, tmp_path / "whole", metadata={"format": "pt"})
    parts = [tmp_path / "first", tmp_path / "second"]
    for path, half in zip(parts, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in half}, path, metadata={"part": path.name})

    write_tensor_file(tmp_path / "joined", [entry for path in parts for entry in file_entries(path)])

    assert (tmp_path / "joined").read_bytes() == (tmp_path / "whole").read_bytes()
    assert load_file(tmp_path / "joined").keys() == tensors.keys()
    assert file_metadata(parts[0]) == {"part": "first"}


def test_a_tensor_of_other_length_than_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="x gave 4 bytes, 8 were announced"):
        write_tensor_file(tmp_path / "file", [Entry("x", "F32", [2], lambda: [b"1234"])])

"""Dictionaries of tensors in `.npy` files: read as the reference tool wrote them, and nothing in them runs."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from telechat_kit.errors import CheckpointError
from telechat_kit.model.unpickling import read_dictionary

GOLDEN = Path(__file__).parents[1] / "data" / "quantization" / "saved_numpy"


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.trace, "ran")


class Calls:
    """Unpickling it calls `function`, and sets its state if there is one."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], *state: Any) -> None:
        self.reduced = (function, arguments, *state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def write(path: Path, content: Any) -> Path:
    values = np.empty((), dtype=object)
    values[()] = content
    np.save(path, values, allow_pickle=True)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_dictionary(path)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npy")), ids=lambda path: path.stem)
def test_files_of_the_reference_are_read_as_numpy_reads_them(path: Path) -> None:
    ours, theirs = read_dictionary(path), np.load(path, allow_pickle=True).item()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name])


def test_views_parameters_and_all_dtypes_survive(tmp_path: Path) -> None:
    content = OrderedDict(
        view=torch.arange(12.0).reshape(3, 4).T[1:],
        parameter=torch.nn.Parameter(torch.ones(2)),
        half=torch.ones(2, dtype=torch.float16),
        brain=torch.ones(2, dtype=torch.bfloat16),
        bits=torch.tensor([-1, 2**40]),
        empty=torch.empty(0, dtype=torch.int8),
    )
    read = read_dictionary(write(tmp_path / "a.npy", content))
    assert all(torch.equal(read[name], value) for name, value in content.items())
    assert all(read[name].dtype == value.dtype for name, value in content.items())
    assert not read["parameter"].requires_grad


@pytest.mark.parametrize("where", ["value", "key", "list", "hooks", "storage"])
def test_code_is_refused_and_does_not_run(where: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    evil: Any = Malicious(trace)
    if where == "storage":
        stream = io.BytesIO()
        torch.save(evil, stream, _use_new_zipfile_serialization=False)
        evil = Calls(torch.storage._load_from_bytes, (stream.getvalue(),))
    if where == "hooks":
        data = torch.ones(2)
        arguments = (data.storage(), 0, (2,), (1,), False, evil)
        evil = Calls(torch._utils._rebuild_tensor_v2, arguments)
    content = {"list": {"a": [evil]}, "key": {evil: torch.ones(1)}}.get(where, {"a": evil})
    path = write(tmp_path / "a.npy", content)
    message = error_of(path)
    assert f"{path} holds more than a dictionary of tensors" in message
    assert not trace.exists()
    np.load(path, allow_pickle=True)
    assert trace.exists()  # it would have run


@pytest.mark.parametrize(
    "function", [eval, getattr, print, torch.load, np.load, pickle.loads, torch.nn.Parameter, io.BytesIO]
)
def test_every_other_name_is_refused(function: Any, tmp_path: Path) -> None:
    assert "it names " in error_of(write(tmp_path / "a.npy", {"a": Calls(function, ())}))


def test_functions_that_may_be_called_cannot_be_changed(tmp_path: Path) -> None:
    named = pickle.dumps(torch._utils._rebuild_tensor_v2, protocol=4).removesuffix(b".")
    state = pickle.dumps({"_function": 1}, protocol=4)[2:]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    path = tmp_path / "a.npy"
    path.write_bytes(header.getvalue() + named + state[9:].removesuffix(b".") + b"b.")
    assert "it tries to change a function" in error_of(path)


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(1)],
        torch.ones(1),
        {"a": 1.0},
        {1: torch.ones(1)},
        {"a": {"b": torch.ones(1)}},
        {"a": None},
    ],
)
def test_what_is_no_dictionary_of_tensors_is_named(content: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npy", content)
    message = error_of(path)
    assert str(path) in message
    assert "Get the file from its publisher" in message


def test_arrays_of_numbers_and_raw_bytes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    assert "an array of float64" in error_of(tmp_path / "a.npy")
    array = Calls(
        np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (), np.dtype("O"), False, b"8bytes..")
    )
    assert "it holds an array of shape ()" in error_of(write(tmp_path / "b.npy", {"a": array}))


@pytest.mark.parametrize("kept", [0, 3, 60, 128, 140, 1000, -1])
def test_truncated_files_are_named(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes((GOLDEN / "quant_bias.npy").read_bytes()[:kept])
    assert str(path) in error_of(path)


def test_an_instruction_that_asks_for_all_memory_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npy", {"a": torch.ones(1)})
    header = path.read_bytes()[:128]
    path.write_bytes(header + b"\x80\x04Nr\xff\xff\xff\xf0.")  # LONG_BINPUT: a memo of 64 GB
    assert "MemoryError" in error_of(path)

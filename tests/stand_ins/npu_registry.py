"""How the stand-ins of npu operators are registered: under the real schemas, every call written down.

Importing `npu_operators` defines the `npu` namespace of this process; the real torch_npu must not be imported then.
"""

import functools
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from npu_sabotage import sabotaged
from torch import Tensor

SCHEMAS = Path(__file__).resolve().parents[1] / "data" / "npu" / "schemas.txt"
ND, FRACTAL_NZ = 2, 29

#: Libraries must stay referenced: torch forgets what a collected one registered
_libraries: list[torch.library.Library] = []
#: storage -> its format, and a tensor that keeps the storage, and so its address, in use
_formats: dict[int, tuple[int, Tensor]] = {}
_calls: dict[str, "Call"] = {}


@dataclass(frozen=True)
class Call:
    """One kind of call: operator, arguments that differ from the schema's defaults, and what came back.

    Tensors are `{"dtype", "shape", "format"}`; calls that differ in sizes only are one kind.
    """

    operator: str
    arguments: dict[str, Any]
    result: list[dict[str, Any]]

    @property
    def kind(self) -> str:
        """What makes two calls the same kind."""

        def shapeless(value: Any) -> Any:
            if isinstance(value, dict):
                return {**value, "shape": len(value["shape"])}
            return "a number" if isinstance(value, float | list) else value

        ignored = {"num_heads"}
        parts = {name: shapeless(value) for name, value in self.arguments.items() if name not in ignored}
        return json.dumps([self.operator, parts])


def calls() -> list[Call]:
    """One call of each kind made so far, in the order of operators."""
    return [_calls[kind] for kind in sorted(_calls)]


def forget_calls() -> None:
    """Begin a new list of calls."""
    _calls.clear()


def format_of(tensor: Tensor) -> int:
    """Storage format of a tensor: that of its memory, so a view has the format of what it views."""
    return _formats.get(tensor.untyped_storage().data_ptr(), (ND, tensor))[0]


def set_format(tensor: Tensor, number: int) -> Tensor:
    """Say in which format the memory of `tensor` counts as stored."""
    _formats[tensor.untyped_storage().data_ptr()] = (number, tensor)
    return tensor


def register(implementations: dict[str, Callable[..., Any]]) -> None:
    """Define all schemas of the data file, and register `implementations` for the CPU.

    Calling one that has none raises NotImplementedError: what no stand-in covers cannot pass.
    """
    schemas = SCHEMAS.read_text(encoding="utf-8").splitlines()
    texts = {text.removeprefix("npu::").split("(")[0]: text.removeprefix("npu::") for text in schemas}
    definitions = torch.library.Library("npu", "DEF")
    kernels = torch.library.Library("npu", "IMPL", "CPU")
    _libraries.extend([definitions, kernels])
    for text in texts.values():
        definitions.define(text)
    for name, implementation in implementations.items():
        kernels.impl(name, _noted(name, implementation))


def _noted(name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(implementation)
    def kernel(*args: Any, **options: Any) -> Any:
        result = sabotaged(name, lambda: implementation(*args, **options))
        _note(Call(name, _arguments(name, args, options), [_described(part) for part in _parts(result)]))
        return result

    return kernel


def _note(call: Call) -> None:
    if call.kind in _calls:
        return
    _calls[call.kind] = call
    if (folder := os.environ.get("TORCH_NPU_STAND_IN_CALLS")) is not None:
        # at once and whole: a notebook's kernel is killed when its work is done
        text = json.dumps([asdict(each) for each in calls()])
        (Path(folder) / f"{os.getpid()}.json").write_text(text, encoding="utf-8")


def _arguments(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    schema = getattr(torch.ops.npu, name).default._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, args, strict=False)} | options
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return {
        key: _described(value)
        for key, value in given.items()
        if value is not None and not (key in defaults and _same(defaults[key], value))
    }


def _same(default: Any, value: Any) -> bool:
    return not isinstance(value, Tensor) and default == value


def _parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _described(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return list(value) if isinstance(value, list | tuple) else value
    return {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "format": "FRACTAL_NZ" if format_of(value) == FRACTAL_NZ else "ND",
        "transposed": value.ndim == 2 and not value.is_contiguous() and value.t().is_contiguous(),
    }

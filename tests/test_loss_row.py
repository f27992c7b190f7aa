"""What `make bench-loss` holds every tool to: int8 on both sides of each product, and the kit's float model."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def loss_row(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("loss_row")


class Rounded(nn.Linear):
    """Both sides rounded to `steps` on either side of nothing."""

    steps = 127

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.rounded(x), self.rounded(self.weight))

    def rounded(self, values: Tensor) -> Tensor:
        scale = values.abs().amax(-1, keepdim=True) / self.steps
        return (values / scale).round() * scale


def tool(
    monkeypatch: pytest.MonkeyPatch, made: type[nn.Linear], factor: float = 1.0
) -> tuple[nn.Linear, str]:
    """A tool whose quantized model is a `made`, and whose float model is `factor` times that of the reference."""
    torch.manual_seed(0)
    weight, head = torch.randn(512, 512), nn.Linear(512, 40, bias=False)
    module: Any = ModuleType("a_tool")

    def seen(linear: nn.Linear) -> Any:
        from loss_row import Network  # noqa: PLC0415

        def states(ids: Tensor) -> Tensor:
            return linear(torch.sin(ids[..., None] * torch.arange(1.0, 513.0)))

        return Network(states, head)

    def quantize(_model: nn.Linear, _samples: Any) -> Any:
        from loss_row import Quantized  # noqa: PLC0415

        linear = made(512, 512, bias=False)
        linear.weight = nn.Parameter(weight)
        return Quantized(lambda: seen(linear))

    plain = nn.Linear(512, 512, bias=False)
    plain.weight = nn.Parameter(weight * factor)
    module.PACKAGES, module.load, module.network, module.quantize = (), lambda _: plain, seen, quantize
    monkeypatch.setitem(sys.modules, "a_tool", module)
    return head, "a_tool"


def request_of(loss_row: ModuleType, folder: Path, head: nn.Linear, name: str) -> Any:
    samples, kind = [[1, 2, 3, 4]], [[5, 6, 7], [2, 9, 4]]
    torch.manual_seed(0)
    weight = torch.randn(512, 512)

    def states(rows: list[list[int]]) -> Tensor:
        return (torch.sin(torch.tensor(rows)[..., None] * torch.arange(1.0, 513.0)) @ weight.T)[
            :, :-1
        ].clone()

    save_file(
        {"sample": states(samples), "zh": states(kind), "head": head.weight.detach()},
        folder / "float.safetensors",
    )
    return loss_row.Request(name, {}, "", str(folder / "float.safetensors"), samples, {"zh": kind})


def test_an_int8_tool_gets_its_row(
    loss_row: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = loss_row.run(request_of(loss_row, tmp_path, *tool(monkeypatch, Rounded)))
    assert row.levels.linears == 1 and 100 < row.levels.input <= 256 and 100 < row.levels.weight <= 256
    assert len(row.by_sequence["zh"]) == 2 and all(0 < means[2] < 0.1 for means in row.by_sequence["zh"])
    assert row.float_difference < 1e-3


def test_a_tool_that_left_a_linear_in_float_gets_none(
    loss_row: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="not int8 on both sides"):
        loss_row.run(request_of(loss_row, tmp_path, *tool(monkeypatch, nn.Linear)))


def test_a_tool_with_another_float_model_gets_none(
    loss_row: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="the float model is not the kit's"):
        loss_row.run(request_of(loss_row, tmp_path, *tool(monkeypatch, Rounded, factor=1.01)))

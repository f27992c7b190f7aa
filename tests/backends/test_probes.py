"""The probes of a backend's operations: right where the operators are, and told apart where they are not."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from telechat_kit.backends import npu
from telechat_kit.backends.probes import Probes, Sizes

SIZES = Sizes(hidden=256, heads=2, kv_heads=1, head_dim=128, ffn=96)
ROWS = (1, 10, 17, 100)


def npu_probes(monkeypatch: pytest.MonkeyPatch) -> Probes:
    """The NPU backend on CPU tensors: the stand-ins of its operators take them."""
    probes = Probes(torch.device("cpu"), SIZES, torch.float16)
    monkeypatch.setattr(probes, "backend", npu)
    return probes


@pytest.mark.parametrize("rows", ROWS)
def test_every_operation_of_a_chip_is_right(
    any_chip: ModuleType, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    probes = npu_probes(monkeypatch)
    found = {name: probes.probe(name, rows) for name in probes.names(rows)}
    assert {name: p.difference() for name, p in found.items() if p.difference() > p.tolerance} == {}
    assert npu.operations.set_aside() == {}
    plain_ways = {name for name, way in npu.operators().items() if "plain" in way}
    assert plain_ways == set()


@pytest.mark.parametrize("rows", ROWS)
def test_every_operation_of_the_cpu_is_right(rows: int) -> None:
    probes = Probes(torch.device("cpu"), SIZES, torch.float32)
    found = {name: probes.probe(name, rows) for name in probes.names(rows)}
    assert {name: p.difference() for name, p in found.items() if p.difference() > p.tolerance} == {}


def spoiled(operator: Callable[..., Tensor | tuple[Tensor, ...]], value: float) -> Callable[..., object]:
    def call(*args: object, **options: object) -> object:
        result = operator(*args, **options)
        for part in result if isinstance(result, tuple) else (result,):
            if part.is_floating_point():
                part.mul_(value)
        return result

    return call


@pytest.mark.parametrize("value", [1.1, float("nan")])
def test_an_operator_that_gives_other_numbers_is_found(
    chip_310p: ModuleType, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    probes = npu_probes(monkeypatch)
    operators = {
        "rms_norm": "npu_rms_norm",
        "rotate": "npu_apply_rotary_pos_emb",
        "prompt_attention": "npu_prompt_flash_attention",
        "decode_attention": "npu_incre_flash_attention",
        "int8_linear": "npu_quant_matmul",
        "swiglu": "npu_swiglu",
    }
    for name, operator in operators.items():
        monkeypatch.setattr(chip_310p, operator, spoiled(getattr(chip_310p, operator), value))
        probe = probes.probe(name, 17)
        assert not probe.difference() <= probe.tolerance, name

"""One trial of an operation: what each kind of failure is called, without a process of its own."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from telechat_kit.backends import cpu, cuda, npu
from telechat_kit.backends.operator_trials import listed, tried
from telechat_kit.backends.probes import Probes, Sizes

SIZES = Sizes(hidden=256, heads=2, kv_heads=1, head_dim=128, ffn=96)


@pytest.fixture
def probes(chip_310p: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Probes:
    """The NPU backend on CPU tensors: the stand-ins of its operators take them, and nothing has to be waited for."""
    made = Probes(torch.device("cpu"), SIZES, torch.float16)
    monkeypatch.setattr(made, "backend", npu)
    monkeypatch.setattr(npu, "synchronize", lambda: None)
    return made


def failing(message: str) -> Callable[..., Any]:
    def operator(*args: object, **options: object) -> None:
        raise RuntimeError(message)

    return operator


def test_a_right_operator_has_a_time_and_a_small_error(probes: Probes) -> None:
    result = tried(probes, "rms_norm", "npu_rms_norm", 17)
    assert result["verdict"] == "right"
    assert 0 < result["error"] < 0.01
    assert result["milliseconds"] > 0


@pytest.mark.parametrize(
    ("message", "verdict", "told"),
    [
        ("error code is 561103, atten_mask must be NULL", "refused", "error code is 561103, atten_mask must be NULL"),
        ("NPU out of memory. Tried to allocate 2.00 GiB", "no memory", "NPU out of memory. Tried to allocate 2.00 GiB"),
        ("error code is 207001, memory", "no memory", "error code is 207001, memory"),
        ("error code is 507015, aicore exception", "crashed", "the device (seen at npu_rms_norm) failed (error code is 507015, aicore"),
    ],
)  # fmt: skip
def test_errors_are_told_apart(
    probes: Probes,
    chip_310p: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    message: str,
    verdict: str,
    told: str,
) -> None:
    monkeypatch.setattr(chip_310p, "npu_rms_norm", failing(message))
    result = tried(probes, "rms_norm", "npu_rms_norm", 10)
    assert result["verdict"] == verdict
    assert result["message"].startswith(told)


@pytest.mark.parametrize(("factor", "error"), [(1.5, 0.5), (float("nan"), None), (float("inf"), None)])
def test_other_numbers_are_wrong_by_so_much(
    probes: Probes, chip_310p: ModuleType, monkeypatch: pytest.MonkeyPatch, factor: float, error: float | None
) -> None:
    right = chip_310p.npu_swiglu
    monkeypatch.setattr(chip_310p, "npu_swiglu", lambda both: right(both) * factor)
    result = tried(probes, "swiglu", "npu_swiglu", 10)
    assert result["verdict"] == "wrong"
    assert result["error"] == (None if error is None else pytest.approx(error, abs=0.01))


def test_values_off_by_one_step_are_wrong_if_they_are_many(
    probes: Probes, chip_310p: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = chip_310p.npu_quantize
    way = "npu_quantize, dividing"
    assert tried(probes, "quantize", way, 10)["verdict"] == "right"
    monkeypatch.setattr(chip_310p, "npu_quantize", lambda x, *rest: right(x * 1.002, *rest))
    result = tried(probes, "quantize", way, 10)
    assert result["verdict"] == "wrong"
    assert 0.01 < result["error"] < 1


def test_what_the_model_does_not_call_is_said(probes: Probes) -> None:
    assert tried(probes, "prompt_attention", "plain torch", 1) == {"verdict": "not called"}
    # the better way is there and takes the call
    assert tried(probes, "rms_norm", "plain torch", 1) == {"verdict": "not called"}


@pytest.mark.parametrize("backend", [cpu, cuda])
def test_every_way_of_the_other_backends_is_right(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of CUDA on CPU tensors: its products and their padding are torch's own there too."""
    probes = Probes(torch.device("cpu"), SIZES, torch.float32)
    monkeypatch.setattr(probes, "backend", backend)
    monkeypatch.setattr(backend, "synchronize", lambda: None)
    try:
        for name, ways in listed(probes).items():
            for i, way in enumerate(ways):
                backend.operations.forget()
                for better in ways[:i]:
                    backend.operations.use_slower(name, "not what is tried", better)
                assert tried(probes, name, way, 17)["verdict"] == "right", (name, way)
    finally:
        backend.operations.forget()


def test_a_gpu_without_int8_products_gets_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cuBLAS says on one: the product is replaced once, and the record says so."""
    monkeypatch.setattr(
        torch, "_int_mm", failing("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLt")
    )
    x, weight = (torch.arange(n * 8, dtype=torch.int8).view(n, 8) for n in (3, 8))
    try:
        assert torch.equal(cuda.accumulate(x, weight), (x.int() @ weight.int().t()))
        assert cuda.operations.ways("int8_linear") == ("plain torch",)
        assert (
            "torch._int_mm set aside (failed in the middle of the run: CUDA error"
            in cuda.operators()["int8_linear"]
        )
    finally:
        cuda.operations.forget()

"""What `device: auto` means: the best device that works, and why no better one."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import call_list
import pytest

from telechat_kit.backends import choose_device, cuda, npu, require_device, resolve_device
from telechat_kit.environment.setup import check

ASK = """
from telechat_kit.backends import choose_device, resolve_device
print(resolve_device("auto"))
print(*choose_device().against, sep="; ")
"""


@pytest.fixture(autouse=True)
def anew() -> None:
    choose_device.cache_clear()


@pytest.mark.parametrize(
    ("chip", "device", "why"),
    [("Ascend310P3", "npu:0", ""), ("Ascend310B1", "cpu", "the chip Ascend310B1 ")],
)  # fmt: skip
def test_an_npu_that_works_is_taken_and_one_that_does_not_is_named(
    chip: str, device: str, why: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(
        command, env=call_list.environment(chip, tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == device
    assert done.stdout.splitlines()[1].startswith(why)
    assert bool(done.stdout.splitlines()[1]) == bool(why)


def test_without_a_device_it_is_the_cpu_and_every_other_one_has_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(npu, "device_count", lambda: 0)
    monkeypatch.setattr(cuda, "device_count", lambda: 0)
    assert resolve_device("auto").type == "cpu"
    assert choose_device().against == ("torch sees none", "torch sees none")
    assert choose_device().said("cpu: x") == "cpu: x (no npu: torch sees none; no cuda: torch sees none)"


def test_a_gpu_that_cannot_multiply_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu, "device_count", lambda: 0)
    monkeypatch.setattr(cuda, "device_count", lambda: 1)

    def busy(index: int) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with")

    monkeypatch.setattr(cuda, "open_device", busy)
    assert require_device("auto") == ("cpu", 0)
    assert (
        choose_device().against[-1].endswith("CUDA error: all CUDA-capable devices are busy or unavailable")
    )


def test_the_set_up_says_why(monkeypatch: pytest.MonkeyPatch, chip_310p: ModuleType) -> None:
    """The stand-in in this process has a chip and no memory: torch refuses the first tensor on it."""
    rows = {row.component: row for row in check("models/x", "results/x", "auto")}
    assert rows["device"].found.startswith("cpu: ")
    assert "(no npu: " in rows["device"].found

"""torch_npu for tests of the NPU backend: its operators run on CPU tensors, by the exact stand-ins."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import npu_operators
import pytest
import torch
from npu_memory import Memory

from telechat_kit.backends.npu import operations, runtime, toolkit

#: A CANN toolkit of the version that the stand-ins pretend to have
TOOLKIT = Path(__file__).parents[1] / "data" / "npu" / "toolkit"

UseChip = Callable[[str], ModuleType]


def forget_the_chip() -> None:
    """What the backend asks torch_npu and CANN for once a process."""
    runtime.current_chip.cache_clear()
    runtime.has.cache_clear()
    toolkit.cann_version.cache_clear()
    operations.forget()


@pytest.fixture
def use_chip(monkeypatch: pytest.MonkeyPatch) -> Iterator[UseChip]:
    """Make `import torch_npu` give the stand-ins, on a chip such as "Ascend310P3"."""

    def use(name: str) -> ModuleType:
        module = ModuleType("torch_npu")
        for operator in npu_operators.OPERATORS:
            setattr(module, operator, getattr(torch.ops.npu, operator))
        module.npu = Memory("npu")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torch_npu", module)
        monkeypatch.setattr(npu_operators.Chip, "name", name)
        monkeypatch.setenv("ASCEND_HOME_PATH", str(TOOLKIT))
        forget_the_chip()
        return module

    yield use
    forget_the_chip()


@pytest.fixture(params=["Ascend310P3", "Ascend910B4"])
def any_chip(request: pytest.FixtureRequest, use_chip: UseChip) -> ModuleType:
    """The stand-ins on each kind of chip in turn."""
    return use_chip(request.param)


@pytest.fixture
def chip_310p(use_chip: UseChip) -> ModuleType:
    """The stand-ins on an Atlas 300I Pro."""
    return use_chip("Ascend310P3")


@pytest.fixture
def chip_910b(use_chip: UseChip) -> ModuleType:
    """The stand-ins on a 910B."""
    return use_chip("Ascend910B4")

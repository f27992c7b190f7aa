"""Ways of an operation that fail while a run is on: which is replaced, which ends the process, and what is said of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from telechat_kit.backends.failures import failed_kernels, is_lost, is_out_of_memory
from telechat_kit.backends.forms import Form, Forms, Way
from telechat_kit.errors import DeviceError

NAN = float("nan")
QUEUE = (
    "The Inner error is reported as above. The process exits for this inner error, and the current working operator "
    "name is aclnnSwiGluV2.\nERR00100 PTA call acl api failed"
)


def raising(message: str) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        raise RuntimeError(message)

    return run


def gate(run: Callable[[Tensor], Tensor], slower: Callable[[Tensor], Tensor] = lambda x: x + 1) -> Form:
    """An operation whose best way is `run`."""
    return Forms().form("gate", Way("fast", run, kernels=("SwiGlu",)), Way("slow", slower))


def spoiling(x: Tensor) -> Tensor:
    """An operator that writes NaN into its argument."""
    return x.fill_(NAN)


def test_a_way_that_fails_is_replaced_once_and_told() -> None:
    form = gate(raising("call aclnnSwiGlu failed, error code is 561103"))
    assert form(torch.zeros(2)).tolist() == [1, 1]
    told = "call aclnnSwiGlu failed, error code is 561103"
    assert form.forms.operators() == {
        "gate": f"slow; fast set aside (failed in the middle of the run: {told})"
    }


def test_too_little_memory_replaces_nothing() -> None:
    form = gate(raising("call aclnnSwiGlu failed, error code is 207001"))
    with pytest.raises(RuntimeError, match="207001"):
        form(torch.zeros(2))
    assert form.forms.set_aside() == {}


def test_a_way_that_makes_nan_is_replaced_where_it_is_watched() -> None:
    form, x = gate(spoiling), torch.zeros(2)
    assert form(x.clone()).isnan().all()
    assert form.forms.repaired(lambda: form(x)).tolist() == [1, 1]
    assert x.tolist() == [0, 0]
    assert form.forms.set_aside() == {"gate": {"fast": "gave NaN in the middle of the run"}}
    assert form(x).tolist() == [1, 1]  # without being watched


@pytest.mark.parametrize("given", [0.0, NAN])
def test_nan_of_the_model_itself_is_no_fault_of_a_way(given: float) -> None:
    form = gate(spoiling, spoiling)
    assert form.forms.repaired(lambda: form(torch.full((2,), given))).isnan().all()
    assert form.forms.set_aside() == {}


def test_an_operator_that_failed_behind_its_call_is_named_and_remembered_and_not_the_one_at_hand() -> None:
    forms, remembered = Forms(), list[tuple[str, str, str]]()
    forms.remember = lambda *told: remembered.append(told)
    guilty = forms.form("gate", Way("fast gate", lambda x: x, kernels=("SwiGlu",)), Way("slow", lambda x: x))
    innocent = forms.form("norm", Way("fast norm", raising(QUEUE), kernels=("RmsNorm",)), Way("slow", abs))
    guilty(torch.zeros(1))
    with pytest.raises(
        DeviceError, match=r"^fast gate failed \(The Inner error .* a slower way then takes its"
    ):
        innocent(torch.zeros(1))
    assert [told[:2] for told in remembered] == [("gate", "fast gate")]
    assert forms.set_aside() == {}  # nothing more is executed here, by no way


def test_a_card_that_is_gone_is_told_and_no_way_is_blamed() -> None:
    form = gate(raising("AclrtSynchronizeStream, error code is 507899"))
    form.forms.remember = lambda *_: pytest.fail("a way is blamed")
    with pytest.raises(
        DeviceError, match=r"^the device \(seen at fast\) failed .*npu-smi info.*check --operators"
    ):
        form(torch.zeros(1))


@pytest.mark.parametrize(
    ("message", "lost", "memory", "kernels"),
    [
        (QUEUE, True, False, {"SwiGlu"}),
        (f"{QUEUE}\nfault kernel_name=RmsNorm_5d0f_1, hash", True, False, {"RmsNorm"}),
        (f"{QUEUE}\nMemory_Allocation_Failure(EL0004): Failed to allocate memory.", True, True, {"SwiGlu"}),
        ("call aclnnMul failed, error code is 507015", True, False, set()),
        ("call aclnnMul failed, error code is 561103", False, False, set()),
        ("call aclnnMul failed, error code is 200000", False, True, set()),
        ("call aclnnMul failed, error code is 207001", False, True, set()),
        ("CUDA error: an illegal memory access was encountered", True, False, set()),
        ("CUDA error: no kernel image is available for execution on the device", False, False, set()),
        ("CUDA out of memory. Tried to allocate 2 GiB", False, True, set()),
    ],
)
def test_what_errors_of_devices_mean(message: str, lost: bool, memory: bool, kernels: set[str]) -> None:
    error = RuntimeError(message)
    assert (is_lost(error), is_out_of_memory(error), failed_kernels(error)) == (lost, memory, kernels)

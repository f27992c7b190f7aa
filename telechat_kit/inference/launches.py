"""Operators that a device has to start for a prompt and for each token behind it, counted where torch hands them over.

At batch 1 a device may wait longer for operators to be started than for what they do. Counted is what torch's dispatcher
gives the device: views and allocations, which start nothing, are left out. An operator of a vendor counts once, whatever
it starts inside.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from telechat_kit.backends import backend_for
from telechat_kit.inference.generation import start_run
from telechat_kit.inference.graph import GraphRun
from telechat_kit.model.network import TelechatForCausalLM

#: Operators in a row whose time gives that of one, and how often they are timed
IN_A_ROW, TIMES = 200, 5
#: They allocate, give memory another shape, or only ask what it holds
_START_NOTHING = (
    "aten::empty",
    "aten::new_empty",
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::detach",
    "npu::get_npu_format",
)
_KEYS = {"cuda": "CUDA", "npu": "PrivateUse1"}


@dataclass(frozen=True)
class Launches:
    """Operators started for a prompt of `input_tokens`, and for one token behind it, by one sequence."""

    precision: str
    input_tokens: int
    prompt: int
    token: int


class LaunchCounter(TorchDispatchMode):
    """Counts the operators that torch hands to a device of the kind `device_type` while it is entered."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._key = _KEYS.get(device_type, "CPU")
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._is_of_others(func):  # what it is made of is handed over one by one
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        if starts_something(func):
            self.started(func, args, result)
        return result

    def started(self, func: OpOverload, args: Any, result: Any) -> None:  # noqa: ARG002  (for those who count more)
        """Called for each operator that was started."""
        self.count += 1

    def _is_of_others(self, func: OpOverload) -> bool:
        """Whether torch makes `func` of other operators on this device."""
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        return has(func.name(), "CompositeImplicitAutograd") and not has(func.name(), self._key)


def starts_something(func: OpOverload) -> bool:
    """Whether a device has to do something for the operator `func`."""
    if func._schema.name.startswith(_START_NOTHING):
        return False
    aliases = [result.alias_info for result in func._schema.returns]
    return not aliases or not all(alias is not None and not alias.is_write for alias in aliases)


@torch.inference_mode()
def count_launches(
    precision: str, model: TelechatForCausalLM, prompt_ids: Sequence[int], graph: str = "none"
) -> Launches | None:
    """Operators of `prompt_ids` and of a token behind them; None on a CPU, whose operators are plain calls.

    With `graph` "capture" the replay counts as one.
    """
    kind = model.device.type
    if kind == "cpu":
        return None
    run = start_run(model, len(prompt_ids) + 2, graph)
    run.best([run.best(prompt_ids)])  # what is made at the first use must not count
    run = start_run(model, len(prompt_ids) + 2, graph)
    prompt, token = LaunchCounter(kind), LaunchCounter(kind)
    with prompt:
        first = run.best(prompt_ids)
    with token:
        run.best([first])
    return Launches(precision, len(prompt_ids), prompt.count, token.count + isinstance(run, GraphRun))


@torch.inference_mode()
def launch_seconds(device: torch.device) -> float | None:
    """Time to start one operator on `device`: that of small sums in a row, at their best; None on a CPU."""
    if device.type == "cpu":
        return None
    backend, x = backend_for(device.type), torch.zeros(16, device=device)
    best = float("inf")
    for _ in range(TIMES):
        backend.synchronize()
        start = time.perf_counter()
        for _ in range(IN_A_ROW):
            x.add_(1)
        backend.synchronize()
        best = min(best, time.perf_counter() - start)
    return best / IN_A_ROW

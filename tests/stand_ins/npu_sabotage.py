"""Operators that go wrong on purpose: what a defective card or a wrong release does, on the stand-ins.

`TORCH_NPU_STAND_IN_SABOTAGE="npu_swiglu:refuse,npu_rms_norm:wrong,npu_quantize:nan@40"` names operators and how they
fail, from the first call on or from the one after `@`. The ways to fail: `refuse` (CANN's message), `memory` (its
code for memory), `wrong` (numbers that are off), `nan`, `kill` (the process ends at once), `hang` (it never ends), `late`
(torch_npu's queue of operators ends: an error at the next read, and then silence over results that are not calculated),
`gone` (the card is taken away: every operator and every read fails).
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

REFUSAL = "call {name} failed, error code is 561103, [Error]: the parameters are refused (sabotage)"
NO_MEMORY = "call {name} failed, error code is 207001, [Error]: memory allocation error (sabotage)"

#: What torch_npu 2.x says of an operator that failed behind its call (NPUQueue.cpp), with the operator's name in CANN
LATE = (
    "The Inner error is reported as above. The process exits for this inner error, and the current working operator name "
    "is {kernel}.\nSince the operator is called asynchronously, the stacktrace may be inaccurate.\nERR00100 PTA call acl api failed."
)
GONE = "NPU function error: c10_npu::acl::AclrtSynchronizeStreamWithTimeout(stream), error code is 507899 (sabotage)"
KERNELS = {"npu_swiglu": "aclnnSwiGlu", "npu_quant_matmul": "aclnnQuantMatmulWeightNz"}

_calls: Counter[str] = Counter()


class Queue:
    """torch_npu's queue of operators: an error that is still to be told, and whether it ended with one."""

    told_next: str | None = None
    ended = False
    gone = False


def read() -> None:
    """What the host is told when it waits for the device."""
    if Queue.gone:
        raise RuntimeError(GONE)
    if (told := Queue.told_next) is not None:
        Queue.told_next = None
        raise RuntimeError(told)


def sabotaged(name: str, call: Callable[[], Any]) -> Any:
    """What `call` of the operator `name` gives, or what the environment says that it does instead."""
    kind = _planned(name)
    if kind == "gone" or Queue.gone:
        Queue.gone = True
        read()
    if kind == "late" and not Queue.ended:
        Queue.ended, Queue.told_next = True, LATE.format(kernel=KERNELS[name])
    if Queue.ended:
        kind = "skip"
    if kind is None:
        return call()
    if kind in ("refuse", "memory"):
        raise RuntimeError((REFUSAL if kind == "refuse" else NO_MEMORY).format(name=name))
    if kind == "kill":
        os._exit(139)
    if kind == "hang":
        time.sleep(3600)
    result = call()
    return tuple(map(_SPOILED[kind], result)) if isinstance(result, tuple) else _SPOILED[kind](result)


def _planned(name: str) -> str | None:
    """How the call of `name` that is made now shall fail; None: not at all."""
    plan = os.environ.get("TORCH_NPU_STAND_IN_SABOTAGE", "")
    for entry in filter(None, plan.split(",")):
        operator, _, rest = entry.partition(":")
        kind, _, first = rest.partition("@")
        if operator == name:
            _calls[name] += 1
            return kind if _calls[name] >= int(first or 1) else None
    return None


def _wrong(part: Tensor) -> Tensor:
    """In place, as an operator that writes into its arguments does: a quarter more, or the next integer."""
    return part.mul_(1.25) if part.is_floating_point() else part.bitwise_xor_(1)


def _nan(part: Tensor) -> Tensor:
    return part.fill_(float("nan")) if part.is_floating_point() else part


_SPOILED: dict[str, Callable[[Tensor], Tensor]] = {"wrong": _wrong, "nan": _nan, "skip": Tensor.zero_}

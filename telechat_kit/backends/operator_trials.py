"""One operation of a device tried against plain torch: run as a process of its own, which may crash without harm.

    python -m telechat_kit.backends.operator_trials '{"device": "npu:0", ...}'

`environment.operator_tests` starts it, reads its lines and judges silence. It opens the device, says what it is, and then
a line for each of the `probes` that it is asked for.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

import torch

from telechat_kit.backends import Backend, backend_for, resolve_device
from telechat_kit.backends.failures import first_line, is_out_of_memory
from telechat_kit.backends.forms import MIDDLE
from telechat_kit.backends.probes import Probe, Probes, Sizes
from telechat_kit.errors import DeviceError

#: What a line of this process begins with: drivers and toolkits print lines of their own
MARK = "@trial "
#: Behind the call that is compared: so many are timed, or as many as this time allows
REPEATS, SECONDS = 5, 0.3
#: The way of an operation that has one only
ONLY_WAY = "torch"


def listed(probes: Probes) -> dict[str, tuple[str, ...]]:
    """What can be tried: operation -> its ways, best first."""
    operations = probes.backend.operations
    return {
        name: operations.ways(name) if name in operations.names() else (ONLY_WAY,) for name in probes.names(2)
    }


def tried(probes: Probes, name: str, way: str, rows: int) -> dict[str, Any]:
    """One trial: verdict, error, milliseconds and message, as `environment.operator_results.OperatorTest` has them."""
    if name not in probes.names(rows):
        return {"verdict": "not called"}
    try:
        probe = probes.probe(name, rows)
        error = probe.difference()
        probes.backend.synchronize()
    except DeviceError as failure:  # the process has lost the device
        return {"verdict": "crashed", "message": first_line(failure)}
    except RuntimeError as failure:
        verdict = "no memory" if is_out_of_memory(failure) else "refused"
        return {"verdict": verdict, "message": first_line(failure)}
    return _of_another_way(probes.backend, name, way) or _judged(probe, error, probes.backend)


def _of_another_way(backend: Backend, name: str, way: str) -> dict[str, Any] | None:
    """The result if it is not `way` that gave it: the operator refused, or a run does not call it here."""
    if name not in backend.operations.names():
        return None
    if refusal := backend.operations.set_aside().get(name, {}).get(way):
        return {"verdict": "refused", "message": refusal.removeprefix(f"{MIDDLE}: ")}
    return None if way in backend.operations.used(name) else {"verdict": "not called"}


def _judged(probe: Probe, error: float, backend: Backend) -> dict[str, Any]:
    if not error <= probe.tolerance:
        finite = math.isfinite(error)
        message = "" if finite else "NaN, infinity, or another shape"
        return {"verdict": "wrong", "error": error if finite else None, "message": message}
    return {"verdict": "right", "error": error, "milliseconds": _milliseconds(probe.run, backend)}


def _milliseconds(call: Callable[[], object], backend: Backend) -> float:
    times = list[float]()
    while len(times) < REPEATS and sum(times) < SECONDS:
        start = time.perf_counter()
        call()
        backend.synchronize()
        times.append(time.perf_counter() - start)
    return 1000 * median(times)


def _tell(**line: object) -> None:
    sys.stdout.write(MARK + json.dumps(line) + "\n")
    sys.stdout.flush()


def _begin_anew(backend: Backend, aside: Mapping[str, Iterable[str]]) -> None:
    backend.operations.forget()
    for operation, ways in aside.items():
        for way in ways:
            backend.operations.use_slower(operation, "not what is tried", way)


@torch.inference_mode()
def main(request: Mapping[str, Any]) -> None:
    """Open the device, then try `operation` in its `way` at each of `rows`; without an operation, say what there is."""
    try:
        device = resolve_device(request["device"])
    except DeviceError as error:
        _tell(problem=str(error))
        return
    backend = backend_for(device.type)
    stored = getattr(torch, request["dtype"]) if request["dtype"] else None
    dtype = backend.choose_dtype(None, stored)
    probes = Probes(device, Sizes(**request["sizes"]), dtype)
    _tell(device=backend.device_name(), dtype=str(dtype).removeprefix("torch."))
    if not request["operation"]:
        _tell(operations=listed(probes))
        return
    for rows in request["rows"]:
        _begin_anew(backend, request["aside"])
        result = tried(probes, request["operation"], request["way"], rows)
        _tell(rows=rows, **result)
        if result["verdict"] == "crashed":
            return


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

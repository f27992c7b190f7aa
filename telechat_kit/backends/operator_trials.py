"""One operation of a device tried against plain torch: run as a process of its own, which may crash without harm.

    python -m telechat_kit.backends.operator_trials '{"device": "npu:0", ...}'

`environment.operator_tests` starts it, reads its lines and judges silence. Reference values are taken on the CPU, in
float64 or in the integers that the kit's reference says, on some of the outputs: all of them would take minutes.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from telechat_kit.backends import Backend, backend_for, plain, resolve_device
from telechat_kit.backends.failures import first_line, is_out_of_memory
from telechat_kit.errors import DeviceError

#: What a line of this process begins with: drivers and toolkits print lines of their own
MARK = "@trial "
#: Outputs of a linear, and heads of attention, that are compared
COLUMNS, HEADS = 64, 2
#: Largest difference to the reference, as a share of its largest value. Half precisions round inputs of a sum, the
#: softmax of an Ascend is taken in float16
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
#: Share of int8 values that may be off by one: x / scale in exactly the middle is rounded before or after adding
TIES = 0.01
REPEATS, SECONDS = 5, 0.3
#: Room behind the filled part of a cache, as in a run
SPARE = 24
#: Not forms on any device, and called by every run
ALWAYS = {"float_linear": "torch"}

Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Sizes:
    """Shapes of a model as its operators see them."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Trial:
    """A call on the device, and how far its outputs are off: `error` of [0, limit] is right, NaN never."""

    call: Callable[[], Outputs]
    error: Callable[[Outputs], float]
    limit: float


@dataclass(frozen=True)
class Stage:
    """Where and with what trials are made: random values that depend on the seed alone."""

    backend: Backend
    device: torch.device
    dtype: torch.dtype
    sizes: Sizes
    rows: int

    def values(self, *shape: int, seed: int = 0) -> Tensor:
        """Normal values `[*shape]` on the CPU, rounded to the dtype."""
        generator = torch.Generator().manual_seed(1000 * self.rows + seed)
        return torch.randn(*shape, generator=generator).to(self.dtype)

    def integers(self, *shape: int, seed: int = 0) -> Tensor:
        """Int8 values `[*shape]` on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-127, 128, shape, generator=generator).to(torch.int8)

    def there(self, part: Tensor) -> Tensor:
        return part.to(self.device)

    def compared(self, call: Callable[[], Outputs], *references: Tensor, limit: float = 0.0) -> Trial:
        """A trial whose outputs are to be `references`, a share of the largest value being allowed."""

        def error(outputs: Outputs) -> float:
            parts = outputs if isinstance(outputs, tuple) else (outputs,)
            return max(off_by(part.cpu(), ref) for part, ref in zip(parts, references, strict=True))

        return Trial(call, error, limit or TOLERANCE[self.dtype])


def off_by(found: Tensor, reference: Tensor) -> float:
    """Largest difference as a share of the largest value of `reference`; NaN if anything found is not finite."""
    if found.shape != reference.shape:
        return math.inf
    found, reference = found.double(), reference.double()
    if not bool(found.isfinite().all()):
        return math.nan
    return float((found - reference).abs().max() / reference.abs().max().clamp(min=1e-30))


def _quantize(stage: Stage) -> Trial:
    x, scale, offset = (
        stage.values(stage.rows, stage.sizes.hidden),
        torch.tensor([0.031]),
        torch.tensor([7.0]),
    )
    reference = plain.quantize(x, scale, offset).short()
    arguments = tuple(map(stage.there, (x, scale, offset)))

    def error(found: Outputs) -> float:
        assert isinstance(found, Tensor)
        off = (found.cpu().short() - reference).abs()
        return math.inf if int(off.max()) > 1 else float((off > 0).double().mean())

    return Trial(lambda: stage.backend.quantize(*arguments), error, TIES)


def _int8_linear(stage: Stage) -> Trial:
    """Into the feed-forward and out of it: the longest sums and the most outputs of a block."""
    wide, narrow = stage.sizes.ffn, stage.sizes.hidden
    calls, references, columns = [], [], list[Tensor]()
    for size, out in ((narrow, wide), (wide, narrow)):
        tensors = {
            "weight": stage.integers(out, size),
            "input_scale": torch.tensor([0.031]),
            "input_offset": torch.tensor([7.0]),
            "quant_bias": torch.arange(out, dtype=torch.int32) % 1000,
            "deq_scale": torch.linspace(0.5, 2, out) / (2500 * math.sqrt(size)),
        }
        x, some = stage.values(stage.rows, size), _some(out, COLUMNS)
        x_q = plain.quantize(x, tensors["input_scale"], tensors["input_offset"]).double()
        product = x_q @ tensors["weight"][some].double().t() + tensors["quant_bias"][some]
        references.append(product * tensors["deq_scale"][some])
        prepared = stage.backend.prepare_linear({name: stage.there(part) for name, part in tensors.items()})
        calls.append((stage.there(x), prepared))
        columns.append(some)

    def call() -> Outputs:
        return tuple(stage.backend.int8_linear(x, **tensors) for x, tensors in calls)

    return _of_columns(stage, call, columns, references)


def _dynamic_int8_linear(stage: Stage) -> Trial:
    wide, narrow = stage.sizes.ffn, stage.sizes.hidden
    calls, references, columns = [], [], list[Tensor]()
    for size, out in ((narrow, wide), (wide, narrow)):
        scale = torch.linspace(0.5, 2, out) / (70 * math.sqrt(size))
        tensors = {
            "weight": stage.integers(out, size),
            "weight_scale": scale,
            "bias": torch.linspace(-1, 1, out),
        }
        x, some = stage.values(stage.rows, size), _some(out, COLUMNS)
        x_q, x_scale = plain.quantize_per_token(x)
        product = x_q.double() @ tensors["weight"][some].double().t()
        references.append(product * x_scale.double() * scale[some] + tensors["bias"][some])
        there = {name: stage.there(part) for name, part in tensors.items()}
        calls.append((stage.there(x), stage.backend.prepare_dynamic_linear(there)))
        columns.append(some)

    def call() -> Outputs:
        return tuple(stage.backend.dynamic_int8_linear(x, **tensors) for x, tensors in calls)

    return _of_columns(stage, call, columns, references)


def _float_linear(stage: Stage) -> Trial:
    linear = torch.nn.Linear(stage.sizes.hidden, stage.sizes.ffn, bias=False, dtype=stage.dtype)
    linear.weight = torch.nn.Parameter(stage.values(*linear.weight.shape, seed=1), requires_grad=False)
    x, some = stage.values(stage.rows, stage.sizes.hidden), _some(stage.sizes.ffn, COLUMNS)
    reference = x.double() @ linear.weight[some].double().t()
    linear, there = linear.to(stage.device), stage.there(x)
    stage.backend.prepare_float_linear(linear)
    return _of_columns(
        stage, lambda: (stage.backend.float_linear(there, linear.weight, None),), [some], [reference]
    )


def _some(count: int, wanted: int) -> Tensor:
    """Up to `wanted` of `count` numbers, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()


def _of_columns(
    stage: Stage, call: Callable[[], Outputs], columns: list[Tensor], references: list[Tensor]
) -> Trial:
    whole = stage.compared(call, *references)
    return Trial(
        call,
        lambda outputs: whole.error(
            tuple(y.cpu()[:, some] for y, some in zip(outputs, columns, strict=True))
        ),
        whole.limit,
    )


def _rms_norm(stage: Stage) -> Trial:
    x, weight = stage.values(stage.rows, stage.sizes.hidden), stage.values(stage.sizes.hidden, seed=1)
    reference = plain.rms_norm(x.double(), weight.double(), 1e-5)
    there = tuple(map(stage.there, (x, weight)))
    return stage.compared(lambda: stage.backend.rms_norm(*there, 1e-5), reference)


def _add_rms_norm(stage: Stage) -> Trial:
    x, residual = (stage.values(stage.rows, stage.sizes.hidden, seed=seed) for seed in (0, 1))
    weight = stage.values(stage.sizes.hidden, seed=2)
    total = (x + residual).double()
    reference = plain.rms_norm(total, weight.double(), 1e-5)
    there = tuple(map(stage.there, (x, residual, weight)))
    return stage.compared(lambda: stage.backend.add_rms_norm(*there, 1e-5), reference, total)


def _swiglu(stage: Stage) -> Trial:
    both = stage.values(stage.rows, 2 * stage.sizes.ffn)
    there = stage.there(both)
    return stage.compared(lambda: stage.backend.swiglu(there), plain.swiglu(both.double()))


def _silu_product(stage: Stage) -> Trial:
    gate, up = (stage.values(stage.rows, stage.sizes.ffn, seed=seed) for seed in (0, 1))
    there = tuple(map(stage.there, (gate, up)))
    return stage.compared(
        lambda: stage.backend.silu_product(*there), plain.silu_product(gate.double(), up.double())
    )


def _rotate(stage: Stage) -> Trial:
    sizes = stage.sizes
    query, key = (
        stage.values(1, heads, stage.rows, sizes.head_dim, seed=heads)
        for heads in (sizes.heads, sizes.kv_heads)
    )
    angles = torch.linspace(0, 3, stage.rows)[:, None] * torch.linspace(0, 1, sizes.head_dim)
    tables = [table.to(stage.dtype) for table in (angles.cos(), angles.sin())]
    references = plain.rotate(query.double(), key.double(), *(table.double() for table in tables))
    there, cos_sin = tuple(map(stage.there, (query, key))), tuple(map(stage.there, tables))
    # the operation may write into its arguments
    return stage.compared(
        lambda: stage.backend.rotate(there[0].clone(), there[1].clone(), *cos_sin), *references
    )


def _attention(queries: int, stage: Stage) -> Trial:
    """`queries` of a sequence of `rows` positions, whose keys and values are the front of a cache's slot."""
    sizes = stage.sizes
    query = stage.values(1, sizes.heads, queries, sizes.head_dim)
    slots = [
        stage.values(1, sizes.kv_heads, stage.rows + SPARE, sizes.head_dim, seed=seed) for seed in (1, 2)
    ]
    heads = _some(sizes.heads, HEADS)
    own = [slot[:, heads * sizes.kv_heads // sizes.heads, : stage.rows].double() for slot in slots]
    reference = plain.attention_in_products(query[:, heads].double(), *own, None)
    there, cache = stage.there(query), [stage.there(slot)[:, :, : stage.rows] for slot in slots]
    whole = stage.compared(
        lambda: stage.backend.attention(there, *cache, None), reference, limit=2 * TOLERANCE[stage.dtype]
    )

    def error(outputs: Outputs) -> float:
        assert isinstance(outputs, Tensor)
        return whole.error(outputs.cpu()[:, heads])

    return Trial(whole.call, error, whole.limit)


TRIALS: dict[str, Callable[[Stage], Trial]] = {
    "quantize": _quantize,
    "int8_linear": _int8_linear,
    "dynamic_int8_linear": _dynamic_int8_linear,
    "float_linear": _float_linear,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "swiglu": _swiglu,
    "silu_product": _silu_product,
    "rotate": _rotate,
    "prompt_attention": lambda stage: _attention(stage.rows, stage),
    "decode_attention": lambda stage: _attention(1, stage),
}


def listed(backend: Backend) -> dict[str, tuple[str, ...]]:
    """What can be tried: operation -> its ways, in the order in which they depend on each other."""
    forms = {name: backend.forms.ways(name) for name in backend.forms.names()}
    known = {**{name: (way,) for name, way in ALWAYS.items()}, **forms}
    return {name: known[name] for name in TRIALS if name in known}


def tried(stage: Stage, operation: str, way: str) -> dict[str, Any]:
    """One trial: verdict, error, milliseconds and message, as `environment.operator_tests.OperatorTest` has them."""
    forms = stage.backend.forms
    try:
        trial = TRIALS[operation](stage)
        found = trial.call()
        stage.backend.synchronize()
        error = trial.error(found)
    except DeviceError as failure:  # the process has lost the device
        return {"verdict": "crashed", "message": first_line(failure)}
    except RuntimeError as failure:
        return {
            "verdict": "no memory" if is_out_of_memory(failure) else "refused",
            "message": first_line(failure),
        }
    if operation in forms.names():
        if refusal := forms.set_aside().get(operation, {}).get(way):
            return {
                "verdict": "refused",
                "message": refusal.removeprefix("failed in the middle of the run: "),
            }
        if way not in forms.used(operation):
            return {"verdict": "not called"}
    if not error <= trial.limit:
        message = "NaN or infinity" if not math.isfinite(error) else ""
        return {"verdict": "wrong", "error": error if math.isfinite(error) else None, "message": message}
    return {"verdict": "right", "error": error, "milliseconds": _milliseconds(trial.call, stage.backend)}


def _milliseconds(call: Callable[[], object], backend: Backend) -> float:
    """Median time of up to five calls behind the one that was checked."""
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


def _set_aside(backend: Backend, aside: Mapping[str, Iterable[str]]) -> None:
    for operation, ways in aside.items():
        for way in ways:
            backend.forms.use_slower(operation, "not what is tried", way)


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
    _tell(device=backend.device_name(), dtype=str(dtype).removeprefix("torch."))
    if not request["operation"]:
        _tell(operations=listed(backend))
        return
    for rows in request["rows"]:
        backend.forms.forget()
        _set_aside(backend, request["aside"])
        stage = Stage(backend, device, dtype, Sizes(**request["sizes"]), rows)
        result = tried(stage, request["operation"], request["way"])
        _tell(rows=rows, **result)
        if result["verdict"] == "crashed":
            return


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

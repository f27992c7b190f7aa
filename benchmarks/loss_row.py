"""One row of the loss table in a process of its own: `python loss_row.py REQUEST.json RESULT.json`.

Loads the float model as the row's tool does, quantizes it, counts what reaches the products, and judges it beside
the kit's float model by the kit's own formula. Tools leave gigabytes, threads and changed classes behind.
"""

import gc
import importlib
import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from telechat_kit.files import write_json
from telechat_kit.precision.positions import compare_states, log_probabilities
from telechat_kit.token_samples import Block

#: Largest difference of a log-probability between the tool's float model and the kit's that rounding explains
FLOAT_TOLERANCE = 2e-3
INT8_LEVELS, COUNTED = 256, 64


@dataclass(frozen=True)
class Network:
    """A model as the judge sees it: states `[n, T, H]` of `n` sequences of ids, and the head that reads them."""

    states: Callable[[Tensor], Tensor]
    head: nn.Module


@dataclass(frozen=True)
class Levels:
    """How many values there are at most in a token's row and in a row of the weight, over `linears` linears."""

    linears: int
    input: int
    weight: int


@dataclass(frozen=True)
class Quantized:
    """What a tool made, loaded where it must be. `levels` only where no product of torch can tell them."""

    network: Callable[[], Network]
    levels: Levels | None = None


class Tool(Protocol):
    """A module of this folder that runs one tool."""

    PACKAGES: tuple[str, ...]

    def load(self, folder: Path) -> Any:
        """The float model as the tool wants it."""

    def network(self, model: Any) -> Network:
        """That model as the judge sees it."""

    def quantize(self, model: Any, samples: Sequence[Sequence[int]], **arguments: Any) -> Quantized:
        """Calibrated on `samples`."""


@dataclass(frozen=True)
class Request:
    """`reference` holds the kit's float states of the first sample and of every kind, and its head."""

    tool: str
    arguments: dict[str, Any]
    folder: str
    reference: str
    samples: list[list[int]]
    kinds: dict[str, list[list[int]]]


@dataclass(frozen=True)
class Row:
    """`by_sequence` by kind: the mean of each sequence in the order of `positions.FIGURES`."""

    by_sequence: dict[str, list[list[float]]]
    cpu_seconds: float
    seconds: float
    peak_bytes: int
    had_bytes: int
    levels: Levels
    float_difference: float
    versions: dict[str, str]


def run(request: Request) -> Row:
    """Quantize and judge.

    Raises:
        ValueError: the tool's float model is another one, or what it made is not int8.
    """
    tool: Tool = importlib.import_module(request.tool)  # type: ignore[assignment]
    model = tool.load(Path(request.folder))
    difference = float_difference(tool.network(model), request)
    had, start, cpu = forgotten_peak(), time.perf_counter(), cpu_seconds()
    quantized = tool.quantize(model, request.samples, **request.arguments)
    spent, seconds, peak = cpu_seconds() - cpu, time.perf_counter() - start, peak_bytes()
    network = quantized.network()
    levels = quantized.levels or counted(network, request.samples[0])
    if max(levels.input, levels.weight) > INT8_LEVELS:
        raise ValueError(f"not int8 on both sides: {levels}")
    return Row(
        by_sequence=judged(network, request),
        cpu_seconds=spent,
        seconds=seconds,
        peak_bytes=peak,
        had_bytes=had,
        levels=levels,
        float_difference=difference,
        versions={name: importlib.metadata.version(name) for name in ("torch", *tool.PACKAGES)},
    )


def cpu_seconds() -> float:
    """Of all threads of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_bytes() -> int:
    """Largest resident memory of this process since `forgotten_peak`."""
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forgotten_peak() -> int:
    """Begin the peak anew (Linux): what the float check took does not count. What the process holds now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


@torch.inference_mode()
def float_difference(network: Network, request: Request) -> float:
    """Largest difference of a log-probability from the kit's float model, over the first sample."""
    reference = load_file(request.reference)
    own = log_probabilities(network.head, network.states(torch.tensor(request.samples[:1]))[0, :-1])
    kit = log_probabilities(_head(reference), reference["sample"][0])
    if (found := float((own - kit).abs().max())) > FLOAT_TOLERANCE:
        raise ValueError(f"the float model is not the kit's: log-probabilities differ by {found:.2g}")
    return found


def _head(reference: dict[str, Tensor]) -> nn.Module:
    weight = reference["head"]
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = nn.Parameter(weight, requires_grad=False)
    return head


@torch.inference_mode()
def judged(network: Network, request: Request) -> dict[str, list[list[float]]]:
    """The means of each sequence of each kind."""
    reference = load_file(request.reference)
    head, found = _head(reference), {}
    for kind, sequences in request.kinds.items():
        # all at once: tools that round weights at every call do so once
        states = network.states(torch.tensor(sequences))[:, :-1]
        found[kind] = [
            compare_states(Block(0, len(ids), tuple(ids)), kept, head, own, network.head)
            .values.mean(axis=1)
            .tolist()
            for ids, kept, own in zip(sequences, reference[kind], states, strict=True)
        ]
    return found


def counted(network: Network, ids: Sequence[int]) -> Levels:
    """The distinct values that reach torch's product, in some rows of either side: 256 at most where it is int8."""
    found: list[tuple[int, int]] = []
    with _watched_linears(found), torch.inference_mode():
        network.states(torch.tensor([ids]))
    return Levels(len(found), max(x for x, _ in found), max(w for _, w in found))


@contextmanager
def _watched_linears(found: list[tuple[int, int]]) -> Iterator[None]:
    plain = nn.functional.linear

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found.append((distinct(x), distinct(weight)))
        return plain(x, weight, bias)

    nn.functional.linear = watched  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.linear = plain  # type: ignore[assignment]


def distinct(rows: Tensor) -> int:
    """Largest number of distinct values in a row of `[..., n]`, over at most `COUNTED` rows."""
    flat = rows.detach().flatten(0, -2)
    ordered = flat[:: max(1, len(flat) // COUNTED)].sort(dim=-1).values
    return 1 + int((ordered[:, 1:] != ordered[:, :-1]).sum(-1).max())


if __name__ == "__main__":
    asked = Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    write_json(Path(sys.argv[2]), asdict(run(asked)))

"""Prefill and decode on the CPU: compiled kernels beside themselves without huge pages, and beside the torch path.

All take turns, with the share of each one's limit.

Each path has a process of its own, which waits while the other one is timed. On an otherwise idle machine:

    python benchmarks/engine.py models/smollm2-135m-telechat-w8a8 --threads 2
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import torch

from telechat_kit.backends import cpu
from telechat_kit.backends.cpu_kernels.library import OFF
from telechat_kit.inference.engine import EngineRun, engine_for
from telechat_kit.inference.generation import start_run
from telechat_kit.inference.loading import load_model
from telechat_kit.model.folder import is_w8a8
from telechat_kit.performance.roofline import model_size
from telechat_kit.statistics import median

KERNELS, COMMON, TORCH = "kernels", "kernels, common pages", "torch"
PATHS = {KERNELS: {}, COMMON: {}, TORCH: {OFF: "1"}}
#: Of `prctl`: a process and its children get no huge pages
PR_SET_THP_DISABLE = 41
#: Phases of a token that read weights or the cache; the others are overhead
PRODUCTS = ("linears", "attention", "head")


@dataclass
class Timing:
    """One prefill and the decode steps behind it. Seconds; bytes that a decode step reads."""

    context: int
    prefill: float
    per_token: float
    read_bytes: int
    ids: list[int]
    profile: dict[str, float] = field(default_factory=dict)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--contexts", default="100,1000,2000", show_default=True)
@click.option("--tokens", default=32, show_default=True, help="decode steps behind each prompt")
@click.option("--repeats", default=6, show_default=True)
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--worker", type=click.Choice(list(PATHS)), hidden=True)
def main(folder: Path, contexts: str, tokens: int, repeats: int, threads: int, worker: str | None) -> None:
    """Time the checkpoint in FOLDER, W8A8 or float."""
    torch.set_num_threads(threads)
    if worker == COMMON:
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    if worker:
        serve(folder, tokens)
        return
    bandwidth, _ = cpu.read_bandwidth()
    print(f"{cpu.device_name()}, reads {bandwidth / 1e9:.1f} GB/s, {cpu.operators()['int8_linear']}")
    timings = interleave(folder, [int(part) for part in contexts.split(",")], tokens, repeats, threads)
    for context in dict.fromkeys(timing.context for _, timing in timings):
        report(context, [(name, t) for name, t in timings if t.context == context], bandwidth)


def serve(folder: Path, tokens: int) -> None:
    """Answer each context length on stdin with a `Timing` on stdout."""
    model = load_model(folder, device="cpu")
    size = model_size("w8a8" if is_w8a8(folder) else "float32", model)
    engine_for(model)
    for line in sys.stdin:
        context = int(line)
        read = size.read_bytes_per_token + (context + tokens // 2) * size.cache_bytes_per_token
        print(json.dumps(asdict(timed(model, context, tokens, read))), flush=True)


@torch.inference_mode()
def timed(model: torch.nn.Module, context: int, tokens: int, read_bytes: int) -> Timing:
    """Prompts are ids spread over the vocabulary, the same for both paths."""
    prompt = [(7919 * i) % model.config.vocab_size for i in range(1, context + 1)]
    run = start_run(model, context + tokens)
    start = time.perf_counter()
    ids = [run.best(prompt)]
    middle = time.perf_counter()
    for _ in range(tokens):
        ids.append(run.best(ids[-1:]))
    per_token = (time.perf_counter() - middle) / tokens
    profile = run.profile() if isinstance(run, EngineRun) else {}
    parts = {name: seconds / tokens for name, seconds in profile.items()}
    return Timing(context, middle - start, per_token, read_bytes, ids, parts)


def interleave(
    folder: Path, contexts: list[int], tokens: int, repeats: int, threads: int
) -> list[tuple[str, Timing]]:
    """All timings with the name of their path; the first turn of each path warms up and is left out."""
    workers = {name: _worker(name, folder, tokens, threads) for name in PATHS}
    turns = [contexts[0], *contexts * repeats]
    found = [(name, _ask(worker, context)) for context in turns for name, worker in workers.items()]
    for worker in workers.values():
        worker.communicate()
    return found[len(PATHS) :]


def _worker(name: str, folder: Path, tokens: int, threads: int) -> subprocess.Popen[str]:
    options = [str(folder), "--worker", name, "--tokens", str(tokens), "--threads", str(threads)]
    environment = {**os.environ, **PATHS[name], "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, *options]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _ask(worker: subprocess.Popen[str], context: int) -> Timing:
    assert worker.stdin is not None and worker.stdout is not None
    print(context, file=worker.stdin, flush=True)
    return Timing(**json.loads(worker.stdout.readline()))


def report(context: int, timings: list[tuple[str, Timing]], bandwidth: float) -> None:
    """Medians of all paths, their ratios, the share of the bandwidth limit, and where a token's time goes."""
    own = {name: [timing for path, timing in timings if path == name] for name in PATHS}
    for name, turns in own.items():
        prefill = median([context / turn.prefill for turn in turns])
        decode = median([1 / turn.per_token for turn in turns])
        limit = bandwidth / turns[0].read_bytes
        print(
            f"context {context:5}  {name:22} prefill {prefill:.0f} tokens/s   decode {decode:.1f} tokens/s "
            f"= {decode.value / limit:4.0%} of the limit {limit:.0f} ({turns[0].read_bytes / 1e6:.0f} MB a token)"
        )
    for name in (COMMON, TORCH):
        pairs = list(zip(own[KERNELS], own[name], strict=True))
        prefill = median([other.prefill / kernels.prefill for kernels, other in pairs])
        decode = median([other.per_token / kernels.per_token for kernels, other in pairs])
        print(f"context {context:5}  over {name}: prefill {prefill:.2f}   decode {decode:.2f}")
    ids = {tuple(timing.ids) for _, timing in timings}
    print(
        f"context {context:5}  ids {'equal' if len(ids) == 1 else 'differ: rounding moves int8 activations'}"
    )
    print_profile([timing for timing in own[KERNELS] if timing.profile])


def print_profile(timings: list[Timing]) -> None:
    """Where a token's time goes, and how much of it is neither linears, head nor attention."""
    if not timings:
        return
    total = statistics.median(timing.per_token for timing in timings)
    phases = {
        name: statistics.median(timing.profile[name] for timing in timings) for name in timings[0].profile
    }
    phases["outside the kernel"] = max(0.0, total - sum(phases.values()))
    for phase, seconds in phases.items():
        print(f"    {phase:24} {1e3 * seconds:7.3f} ms a token")
    rest = sum(seconds for phase, seconds in phases.items() if phase not in PRODUCTS)
    print(
        f"    {'overhead':24} {1e3 * rest:7.3f} ms a token, {rest / total:.0%}: all but {', '.join(PRODUCTS)}"
    )


if __name__ == "__main__":
    main()

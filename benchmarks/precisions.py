"""Float32, bfloat16 and W8A8 in one engine, beside transformers' own loop on float32: what int8 brings, what the engine.

All take turns, round by round, and ratios are taken within a round. On an otherwise idle machine:

    python benchmarks/precisions.py models/smollm2-135m-telechat models/smollm2-135m-telechat-w8a8
    python benchmarks/precisions.py ... --caches        # with keys and values in half precision too
    python benchmarks/precisions.py ... --contexts 10,100,500,1000,2000 --tokens 10,100,500,1000,2000 --rounds 1
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import click
import torch

from telechat_kit.backends import cpu
from telechat_kit.backends.cores import CoreClock
from telechat_kit.inference.engine import engine_for
from telechat_kit.inference.generation import generate, generate_by_transformers, generate_copies
from telechat_kit.inference.loading import load_model
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.performance.roofline import ModelSize, model_size
from telechat_kit.progress import track
from telechat_kit.statistics import median

TRANSFORMERS = "float32, transformers"
#: Each is compared with the one named beside it
RATIOS = (
    ("w8a8", "float32"),
    ("w8a8", "bfloat16"),
    ("bfloat16", "float32"),
    ("float32", TRANSFORMERS),
    ("w8a8, float16 cache", "w8a8"),
    ("w8a8, bfloat16 cache", "w8a8"),
    ("float32, float16 cache", "float32"),
)


@dataclass(frozen=True)
class Speed:
    """One run: seconds of the prompt, and of each further one of the `tokens` of all rows."""

    way: str
    batch: int
    context: int
    tokens: int
    prefill: float
    step: float

    @property
    def total(self) -> float:
        """Seconds of the whole case."""
        return self.prefill + (self.tokens - 1) * self.step


@click.command()
@click.argument("float_folder", type=click.Path(path_type=Path))
@click.argument("w8a8_folder", type=click.Path(path_type=Path))
@click.option("--contexts", default="100,1000,2000", show_default=True)
@click.option("--batches", default="1", show_default=True, help="transformers' loop runs batch 1 only")
@click.option("--tokens", default="32", show_default=True, help="behind each prompt; several make a grid")
@click.option("--rounds", default=6, show_default=True)
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--caches", is_flag=True, help="also with keys and values in float16 and bfloat16")
@click.option("--keep", type=click.Path(path_type=Path), help="write all runs there, one JSON line each")
def main(
    float_folder: Path,
    w8a8_folder: Path,
    contexts: str,
    batches: str,
    tokens: str,
    rounds: int,
    threads: int,
    caches: bool,
    keep: Path | None,
) -> None:
    """Time the float checkpoint FLOAT_FOLDER and its W8A8 form."""
    torch.set_num_threads(threads)
    floats = load_model(float_folder, "cpu")
    models = {
        "w8a8": load_model(w8a8_folder, "cpu"),
        "bfloat16": load_model(float_folder, "cpu", torch.bfloat16),
        "float32": floats,
        TRANSFORMERS: floats,
    }
    if caches:
        for way, folder in (("w8a8", w8a8_folder), ("float32", float_folder)):
            models[f"{way}, float16 cache"] = load_model(folder, "cpu", cache_dtype="float16")
        models["w8a8, bfloat16 cache"] = load_model(w8a8_folder, "cpu", cache_dtype="bfloat16")
    assert all(engine_for(model) for model in models.values()), "no compiled kernels here"
    sizes = {name: model_size(name, model, name != TRANSFORMERS) for name, model in models.items()}
    cases = list(product(*([int(part) for part in each.split(",")] for each in (batches, contexts, tokens))))
    runs = [(name, *case) for case in cases for name in models if case[0] == 1 or name != TRANSFORMERS]
    for name, *case in runs:
        if case[1:] == list(cases[0][1:]):
            timed(name, models[name], *case)  # warms up
    clock, bandwidths = CoreClock.now(), [cpu.read_bandwidth()[0]]
    turns, found = track([run for _ in range(rounds) for run in runs], "timed runs"), []
    for number, (name, *case) in enumerate(turns):
        if number % len(models) == 0:
            bandwidths.append(cpu.read_bandwidth()[0])
        found.append(timed(name, models[name], *case))
    bandwidth = median(bandwidths).value
    print(
        f"{cpu.device_name()}, {cpu.operators()['int8_linear']}, reads {bandwidth / 1e9:.1f} GB/s in the median of "
        f"{len(bandwidths)} probes among the runs, {min(bandwidths) / 1e9:.1f} to {max(bandwidths) / 1e9:.1f}",
        end="; ",
    )
    print(f"others took {clock.busy_since()}")
    for case in cases:
        own = [speed for speed in found if (speed.batch, speed.context, speed.tokens) == case]
        report(own, sizes, bandwidth)
    if len(cases) > 1:
        over_all(found)
    if keep is not None:
        keep.write_text("".join(json.dumps(asdict(speed)) + "\n" for speed in found))


def timed(name: str, model: TelechatForCausalLM, batch: int, context: int, tokens: int) -> Speed:
    """Prompts are ids spread over the vocabulary, the same for all."""
    prompt = [(7919 * i) % model.config.vocab_size for i in range(1, context + 1)]
    if name == TRANSFORMERS:
        run = generate_by_transformers(model, prompt, tokens)
    elif batch == 1:
        run = generate(model, prompt, tokens)
    else:
        run = generate_copies(model, prompt, batch, tokens)
    assert run.time_per_output_token is not None
    time.sleep(0.05)  # what ran before has put its threads to sleep
    return Speed(name, batch, context, tokens, run.time_to_first_token, run.time_per_output_token)


def report(speeds: list[Speed], sizes: dict[str, ModelSize], bandwidth: float) -> None:
    """Medians of each way, its share of the memory's limit, and the ratios within the rounds."""
    batch, context, tokens = speeds[0].batch, speeds[0].context, speeds[0].tokens
    own, positions = by_way(speeds), context + tokens / 2
    for name, rows in ((name, rows) for name, rows in own.items() if rows):
        prefill = median([batch * context / row.prefill for row in rows])
        decode = median([batch / row.step for row in rows])
        read = sizes[name].read_bytes_per_token + batch * positions * sizes[name].cache_bytes_per_token
        limit = batch * bandwidth / read
        print(
            f"batch {batch:2} context {context:5} + {tokens:<4}  {name:24} prefill {f'{prefill:.0f}':26} "
            f"decode {f'{decode:.0f}':24} = {decode.value / limit:4.0%} of {limit:.0f} ({read / 1e6:.0f} MB a step), "
            f"whole {median([batch * tokens / row.total for row in rows]):.1f}"
        )
    for name, base, pairs in compared(own):
        prefill, decode = (
            median([getattr(b, part) / getattr(a, part) for a, b in pairs]) for part in ("prefill", "step")
        )
        print(f"    {name} / {base}: prefill {prefill:.2f}, decode {decode:.2f}")


def over_all(speeds: list[Speed]) -> None:
    """Ratios of the whole cases over all of them: the median, its interval, the least and the most."""
    for name, base, pairs in compared(by_way(speeds)):
        ratios = [b.total / a.total for a, b in pairs]
        print(
            f"all {len(ratios)} runs, {name} / {base}: {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
        )


def by_way(speeds: list[Speed]) -> dict[str, list[Speed]]:
    """The runs of each way, in the order in which they were made."""
    return {
        name: [speed for speed in speeds if speed.way == name]
        for name in dict.fromkeys(s.way for s in speeds)
    }


def compared(own: dict[str, list[Speed]]) -> Iterator[tuple[str, str, list[tuple[Speed, Speed]]]]:
    """What is compared with what, and their runs of the same case and round."""
    for name, base in RATIOS:
        theirs = {(s.batch, s.context, s.tokens) for s in own.get(base, [])}
        mine = [s for s in own.get(name, []) if (s.batch, s.context, s.tokens) in theirs]
        if mine:
            yield name, base, list(zip(mine, own[base], strict=True))


if __name__ == "__main__":
    main()

"""What turning the input of down_proj (R4) costs in the engine: the same weights with and without it, in turns.

Without it the ids are wrong; only the time is of interest. On an otherwise idle machine, of a W8A8 folder that was made
with `ingredients: online`:

    python benchmarks/online_rotation.py models/smollm2-135m-telechat-w8a8
"""

import time
from pathlib import Path

import click
import torch

from telechat_kit import load_model
from telechat_kit.inference.engine import Engine
from telechat_kit.statistics import median


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--contexts", default="100,1000", show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Decode steps behind each prompt.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
def main(folder: Path, contexts: str, tokens: int, rounds: int, threads: int) -> None:
    """Time prompts and tokens of the W8A8 checkpoint in FOLDER, turned and not."""
    torch.set_num_threads(threads)
    model = load_model(folder, device="cpu")
    if not model.config.online_rotation:
        raise click.UsageError(
            f"{folder} was made without online_rotation. Quantize with ingredients: online."
        )
    turned = Engine(model)
    model.config.online_rotation = False
    plain = Engine(model)
    print(
        "| context | prompt, turned over plain | token, turned over plain | more a token |\n|---|---|---|---|"
    )
    for context in map(int, contexts.split(",")):
        pairs = [(timed(turned, context, tokens), timed(plain, context, tokens)) for _ in range(rounds + 1)][
            1:
        ]
        prompt, token = (median([one[i] / other[i] for one, other in pairs]) for i in (0, 1))
        more = median([1e3 * (one[1] - other[1]) for one, other in pairs])
        print(f"| {context} | {prompt} | {token} | {more} ms |", flush=True)


def timed(engine: Engine, context: int, tokens: int) -> tuple[float, float]:
    """Seconds of a prompt of `context` ids spread over the vocabulary, and of a token behind it."""
    run = engine.run(context + tokens)
    start = time.perf_counter()
    token = run.best([(7919 * i) % engine.config.vocab_size for i in range(1, context + 1)])
    middle = time.perf_counter()
    for _ in range(tokens):
        token = run.best([token])
    return middle - start, (time.perf_counter() - middle) / tokens


if __name__ == "__main__":
    main()

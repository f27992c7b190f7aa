"""The head of the vocabulary: what cheaper forms of it lose, and what the exact screen of the engine gains.

The head is kept in float and is the largest single read of a token. In bfloat16 or in int8 it is read faster and other
ids come out. The engine's int8 copy only tells which rows can hold the largest logit; those are computed in float, so
the ids are those of the whole head.

    python benchmarks/head.py models/smollm2-135m-telechat models/smollm2-135m-telechat-w8a8
"""

import statistics
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from telechat_kit.inference.engine import Engine
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import evaluation_blocks
from telechat_kit.quantization.int8.packing import fake_quantize_weight
from telechat_kit.statistics import bootstrap

#: Prompt and tokens behind it of a timed turn; most of a token's bytes are weights
PROMPT, STEPS = 100, 64


@click.command()
@click.argument("model_path", type=click.Path(path_type=Path))
@click.argument("quant_path", type=click.Path(path_type=Path))
@click.option(
    "--sequences", default=16, show_default=True, help="Of 512 tokens each, not of the calibration set."
)
@click.option("--turns", default=10, show_default=True)
@torch.inference_mode()
def main(model_path: Path, quant_path: Path, sequences: int, turns: int) -> None:
    """Loss of each form of the head beside the float one, then decode with and without the screen, in turns."""
    pair = Pair(model_path, quant_path, "cpu")
    blocks = evaluation_blocks(pair, "pydoc_data.topics", 512, sequences, 0)
    model = pair.models["w8a8"]
    head = model.lm_head.weight.detach()
    forms = {"bfloat16": head.bfloat16().float(), "int8, weight only": fake_quantize_weight(head)}
    hidden = [model.transformer(torch.tensor([block.ids])).last_hidden_state[0] for block in blocks]
    print("| head | KL, nats per token [95 %] | other top-1 |\n|---|---|---|")
    for name, weight in forms.items():
        losses = np.array([_losses(states, head, weight) for states in hidden])
        kl, other = bootstrap(losses, lambda means: means[..., 0]), losses[:, 1].mean()
        print(f"| {name} | {kl:.6f} | {other:.2%} |")
    prompt = list(blocks[0].ids[:PROMPT])
    engines = {"screened": Engine(model), "float head": Engine(model, screened_head=False)}
    found = [{name: _decode(engine, prompt) for name, engine in engines.items()} for _ in range(turns + 1)][
        1:
    ]
    ratio = statistics.median(turn["float head"][0] / turn["screened"][0] for turn in found)
    for name in engines:
        print(f"{name}: {1 / statistics.median(turn[name][0] for turn in found):.1f} tokens/s")
    equal = all(turn["screened"][1] == turn["float head"][1] for turn in found)
    print(f"ratio {ratio:.2f}, ids equal: {equal}")


def _losses(states: Tensor, head: Tensor, form: Tensor) -> tuple[float, float]:
    """Mean KL over the `states [T, H]` of a sequence, and the share whose most probable token is another one."""
    exact, other = (functional.log_softmax(states @ weight.T, dim=-1) for weight in (head, form))
    kl = functional.kl_div(other, exact, log_target=True, reduction="batchmean")
    return float(kl), float((exact.argmax(-1) != other.argmax(-1)).float().mean())


def _decode(engine: Engine, prompt: list[int]) -> tuple[float, list[int]]:
    """Seconds of each token behind the first, and the ids."""
    run = engine.run(len(prompt) + STEPS)
    ids = [run.best(prompt)]
    start = time.perf_counter()
    for _ in range(STEPS):
        ids.append(run.best(ids[-1:]))
    return (time.perf_counter() - start) / STEPS, ids


if __name__ == "__main__":
    main()

"""A TeleChat of 1.1 billion random weights: decode in W8A8 and float32, in turns, against the memory.

16 blocks, 2048 wide, 32 heads, 5460 inside, vocabulary 160256. The weights are made in memory (8 GB), and both models
share the embedding. Says whether W8A8 reaches 60 % of the read bandwidth measured in the same run and three times
float32. On an otherwise idle machine:

    python benchmarks/shape_1b.py --threads 2
"""

import statistics
import sys
import time

import click
import torch
from torch import nn

from telechat_kit.backends import cpu
from telechat_kit.inference.generation import start_run
from telechat_kit.inference.loading import prepare
from telechat_kit.model import TelechatConfig
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.w8a8 import linear_names
from telechat_kit.performance.roofline import model_size

SHAPE = {"vocab_size": 160256, "hidden_size": 2048, "n_layer": 16, "n_head": 32, "ffn_hidden_size": 5460}
LEAST_SHARE, LEAST_SPEED_UP = 0.6, 3.0
#: Range of the activations that the random int8 linears are scaled for
INPUT_SCALE = 0.03


@click.command()
@click.option("--context", default=100, show_default=True)
@click.option("--tokens", default=24, show_default=True, help="decode steps of a turn")
@click.option("--repeats", default=6, show_default=True)
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
def main(context: int, tokens: int, repeats: int, threads: int) -> None:
    """Print both speeds, the share of the bandwidth and the speed-up; exit 1 where one of them is too low."""
    torch.set_num_threads(threads)
    models = {"float32": float_model()}
    models["w8a8"] = w8a8_model(models["float32"])
    seconds: dict[str, list[float]] = {name: [] for name in models}
    bandwidths = []
    for repeat in range(repeats + 1):
        bandwidths.append(cpu.read_bandwidth()[0])
        for name, model in models.items():
            found = decode_seconds(model, context, tokens)
            if repeat:  # the first turn warms up
                seconds[name].append(found)
    bandwidth = max(bandwidths)
    print(f"{cpu.device_name()}, reads {bandwidth / 1e9:.1f} GB/s, {cpu.operators()['int8_linear']}")
    shares = {
        name: report(name, seconds[name], model, context + tokens / 2, bandwidth)
        for name, model in models.items()
    }
    speed_up = statistics.median(a / b for a, b in zip(seconds["float32"], seconds["w8a8"], strict=True))
    met = shares["w8a8"] >= LEAST_SHARE and speed_up >= LEAST_SPEED_UP
    print(f"W8A8 is {speed_up:.2f} times as fast as float32 (wanted: {LEAST_SPEED_UP})")
    print(f"W8A8 reaches {shares['w8a8']:.0%} of the bandwidth (wanted: {LEAST_SHARE:.0%})")
    sys.exit(not met)


def float_model() -> TelechatForCausalLM:
    """Random weights in float32; norms are ones."""
    with torch.device("meta"):
        model = TelechatForCausalLM(TelechatConfig(**SHAPE, training_seqlen=4096))
    generator = torch.Generator().manual_seed(0)
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_f" in name:
            parameter.data.fill_(1)
        else:
            parameter.data.normal_(0, 0.02, generator=generator)
    return tied(model, model.transformer.word_embeddings.weight)


def w8a8_model(source: TelechatForCausalLM) -> TelechatForCausalLM:
    """Random int8 linears in the shape of `source`; embedding, head and norms are those of `source`."""
    with torch.device("meta"):
        model = TelechatForCausalLM(source.config)
    generator, linears = torch.Generator().manual_seed(0), linear_names(model)
    for name in linears:
        model.set_submodule(name, random_linear(*model.get_submodule(name).weight.shape, generator))
    for name, parameter in source.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if owner not in linears:
            setattr(model.get_submodule(owner), leaf, parameter)
    prepare(tied(model, source.transformer.word_embeddings.weight))
    return model


def random_linear(out: int, size: int, generator: torch.Generator) -> W8A8Linear:
    weight = torch.randint(-127, 128, (out, size), dtype=torch.int8, generator=generator)
    return W8A8Linear(
        {
            "weight": weight,
            "input_scale": torch.tensor([INPUT_SCALE]),
            "input_offset": torch.zeros(1),
            "quant_bias": torch.zeros(out, dtype=torch.int32),
            "deq_scale": torch.full((out,), INPUT_SCALE * 2e-4),
        }
    )


def tied(model: TelechatForCausalLM, embedding: nn.Parameter) -> TelechatForCausalLM:
    """`model` with `embedding` as its head, ready to run."""
    model.lm_head.weight = embedding
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def decode_seconds(model: TelechatForCausalLM, context: int, tokens: int) -> float:
    """Mean seconds of a token behind a prompt of `context` ids spread over the vocabulary."""
    prompt = [(7919 * i) % SHAPE["vocab_size"] for i in range(1, context + 1)]
    run = start_run(model, context + tokens)
    last = run.best(prompt)
    start = time.perf_counter()
    for _ in range(tokens):
        last = run.best([last])
    return (time.perf_counter() - start) / tokens


def report(
    name: str, seconds: list[float], model: TelechatForCausalLM, context: float, bandwidth: float
) -> float:
    """Print the speed of a model; give the share of the bandwidth that it reads with."""
    size = model_size(name, model)
    read = size.read_bytes_per_token + context * size.cache_bytes_per_token
    token = statistics.median(seconds)
    share = read / token / bandwidth
    print(f"{name:8} {1 / token:6.1f} tokens/s, {read / 1e6:5.0f} MB a token, {share:.0%} of the bandwidth")
    return share


if __name__ == "__main__":
    main()

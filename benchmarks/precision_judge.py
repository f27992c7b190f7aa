"""The figures of `03_precision` against judges of their own: plain numpy on dumped logits, known laws, lm_eval.

    python benchmarks/precision_judge.py logits models/smollm2-135m-telechat models/smollm2-135m-telechat-w8a8
    python benchmarks/precision_judge.py coverage
    python benchmarks/precision_judge.py harness models/smollm2-135m-telechat models/smollm2-135m-telechat-w8a8

`harness` needs `pip install telechat-kit[tasks]`. It reads the same tokens with lm-evaluation-harness, the float
model only, in a process of its own: time and peak memory of both stand side by side.
"""

import importlib
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from telechat_kit import load_model, load_tokenizer
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import evaluation_blocks, measure_divergence
from telechat_kit.statistics import bootstrap

TEXT, TOKENS, SEQUENCES = "pydoc_data.topics", 512, 16
FOLDER = click.Path(exists=True, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Judge the precision figures."""


@main.command()
@click.argument("model_path", type=FOLDER)
@click.argument("quant_path", type=FOLDER)
def logits(model_path: Path, quant_path: Path) -> None:
    """Recompute every figure from the logits of both models, in float64."""
    pair = Pair(model_path.resolve(), quant_path.resolve())
    blocks = evaluation_blocks(pair, TEXT, TOKENS, SEQUENCES, 0)
    found = measure_divergence(pair, blocks)
    own = _from_logits(pair, [block.ids for block in blocks])
    kit = {
        "perplexity, float": found.perplexity_float.value,
        "perplexity, W8A8": found.perplexity_w8a8.value,
        "KL mean": found.kl_mean.value,
        "KL 99 %": found.kl_quantiles["99"].value,
        "KL largest": found.kl_max,
        "same top-1": found.top1_agreement.value,
        "same top-5": found.top5_agreement.value,
        "probability, mean change": found.probability_change.mean.value,
        "probability, RMS change": found.probability_change.rms.value,
    }
    worst = 0.0
    for name, value in kit.items():
        difference = abs(value / own[name] - 1)
        worst = max(worst, difference)
        print(f"{name:26} kit {value:.8g}   judge {own[name]:.8g}   relative {difference:.1e}")
    print(f"largest relative difference {worst:.1e}")


def _from_logits(pair: Pair, sequences: list[tuple[int, ...]]) -> dict[str, float]:
    """The formulas of llama-perplexity's --kl-divergence, written out."""
    nll: dict[str, list[np.ndarray]] = {"float": [], "w8a8": []}
    kl, first, five, change = [], [], [], []
    for ids in sequences:
        logs = {}
        for name, model in pair.models.items():
            with torch.inference_mode():
                raw = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].numpy().astype(np.float64)
            shifted = raw - raw.max(axis=1, keepdims=True)
            logs[name] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        p, q, target = logs["float"], logs["w8a8"], np.array(ids[1:])
        at = np.arange(len(target))
        for name, log in logs.items():
            nll[name].append(-log[at, target])
        kl.append((np.exp(p) * (p - q)).sum(axis=1))
        best = [np.argsort(-log, axis=1, kind="stable")[:, :5] for log in (p, q)]
        first.append(best[0][:, 0] == best[1][:, 0])
        five.append([len(set(a) & set(b)) / 5 for a, b in zip(*best, strict=True)])
        change.append(np.exp(q[at, target]) - np.exp(p[at, target]))
    divergence, delta = np.concatenate(kl), np.concatenate(change)
    return {
        "perplexity, float": float(np.exp(np.concatenate(nll["float"]).mean())),
        "perplexity, W8A8": float(np.exp(np.concatenate(nll["w8a8"]).mean())),
        "KL mean": float(divergence.mean()),
        "KL 99 %": float(np.quantile(divergence, 0.99)),
        "KL largest": float(divergence.max()),
        "same top-1": float(np.concatenate(first).mean()),
        "same top-5": float(np.concatenate(five).mean()),
        "probability, mean change": float(delta.mean()),
        "probability, RMS change": float(np.sqrt((delta**2).mean())),
    }


@main.command()
def coverage() -> None:
    """How often the 95 % interval of 16 sequences holds a known truth, over 500 draws of each law."""

    def normal(rng: np.random.Generator) -> np.ndarray:
        return rng.normal(3.0, 1.0, (SEQUENCES, 1))

    def skewed(rng: np.random.Generator) -> np.ndarray:
        return rng.gamma(2.0, 0.5, (SEQUENCES, 1))

    def ratio(rng: np.random.Generator) -> np.ndarray:
        base = rng.normal(2.7, 0.3, (SEQUENCES, 1))
        return np.hstack([base, base + rng.normal(0.01, 0.02, (SEQUENCES, 1))])

    laws: list[tuple[str, Callable[..., np.ndarray], Callable[..., np.ndarray], float]] = [
        ("mean of a normal law", normal, lambda m: m[..., 0], 3.0),
        ("mean of a gamma law (KL)", skewed, lambda m: m[..., 0], 1.0),
        ("ratio of perplexities", ratio, lambda m: np.exp(m[..., 1] - m[..., 0]), float(np.exp(0.01))),
    ]
    for name, sample, figure, truth in laws:
        rng = np.random.default_rng(1)
        intervals = [bootstrap(sample(rng), figure, seed=draw) for draw in range(500)]
        hits = sum(interval.low <= truth <= interval.high for interval in intervals)
        print(f"{name:26} {hits / 500:.1%}")


@main.command()
@click.argument("model_path", type=FOLDER)
@click.argument("quant_path", type=FOLDER)
def harness(model_path: Path, quant_path: Path) -> None:
    """Time and peak memory of the kit's metrics, and of lm_eval's perplexity, on the same tokens."""
    paths = model_path.resolve(), quant_path.resolve()
    context = multiprocessing.get_context("spawn")
    for name, work in {"telechat-kit, float and W8A8": _kit, "lm_eval, float": _lm_eval}.items():
        with context.Pool(1) as pool:
            seconds, peak, perplexity = pool.apply(_measured, (work, paths))
        print(
            f"{name:30} {seconds:6.1f} s   peak {peak / 2**30:.2f} GiB   perplexity of float {perplexity:.4f}"
        )


def _measured(
    work: Callable[[tuple[Path, Path]], tuple[float, float]], paths: tuple[Path, Path]
) -> tuple[float, int, float]:
    """Seconds of the evaluation alone, peak bytes of the process, perplexity."""
    seconds, perplexity = work(paths)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, perplexity


def _kit(paths: tuple[Path, Path]) -> tuple[float, float]:
    pair = Pair(*paths)
    blocks = evaluation_blocks(pair, TEXT, TOKENS, SEQUENCES, 0)
    assert pair.models
    start = time.perf_counter()
    found = measure_divergence(pair, blocks)
    return time.perf_counter() - start, found.perplexity_float.value


def _lm_eval(paths: tuple[Path, Path]) -> tuple[float, float]:
    wrapper = importlib.import_module("lm_eval.models.huggingface").HFLM
    pair = Pair(*paths)
    blocks = evaluation_blocks(pair, TEXT, TOKENS, SEQUENCES, 0)
    tokenizer: Any = load_tokenizer(paths[0])
    model = wrapper(
        pretrained=load_model(paths[0], "cpu"), tokenizer=tokenizer, batch_size=1, max_length=TOKENS
    )
    requests = [(("", ""), list(block.ids[:1]), list(block.ids[1:])) for block in blocks]
    start = time.perf_counter()
    found = model._loglikelihood_tokens(requests, disable_tqdm=True)
    seconds = time.perf_counter() - start
    total = sum(len(block.ids) - 1 for block in blocks)
    return seconds, float(np.exp(-sum(value for value, _ in found) / total))


if __name__ == "__main__":
    main()

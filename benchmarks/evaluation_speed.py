"""Positions per second of the precision evaluation, beside lm-evaluation-harness and llama.cpp on the same texts.

The kit's evaluation reads every sequence with both models and compares whole distributions; its reading of one model
alone (perplexity) stands beside it. The harness scores the float model in transformers (`HFLM`); llama.cpp decodes the
same weights in Q8_0 with the logits of every position, and the logarithms are taken here, as its perplexity tool does.
All take turns, round by round, and ratios are taken within a round. On an otherwise idle machine, behind `make bench`:

    python benchmarks/evaluation_speed.py                                   # some 5 minutes on two cores
    python benchmarks/evaluation_speed.py --sequences 2 --rounds 1          # a first look
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np

from telechat_kit.files import project_root, resolve
from telechat_kit.statistics import median

Sequences = list[list[int]]
#: Seconds, and the perplexity: engines that compute one model agree in it
Timed = tuple[float, float]
BOTH, ALONE = "kit, float and W8A8 compared", "kit, float alone"
W8A8, HARNESS, LLAMA = "kit, W8A8 alone", "lm-evaluation-harness, float32", "llama.cpp, Q8_0"


@dataclass(frozen=True)
class Folders:
    """Where each way finds its weights."""

    floats: Path
    w8a8: Path
    peers: Path


def kit_pair(folders: Folders, sequences: Sequences) -> Callable[[], float]:
    """All figures of `03_precision` on one text: both models, KL, agreement, probability changes, intervals."""
    from telechat_kit.inference.model_pair import Pair  # noqa: PLC0415  (each way imports its own)
    from telechat_kit.precision import measure_divergence  # noqa: PLC0415
    from telechat_kit.token_samples import Block  # noqa: PLC0415

    pair = Pair(folders.floats, folders.w8a8, "cpu")
    assert pair.models
    blocks = [Block(0, len(ids), tuple(ids)) for ids in sequences]
    return lambda: measure_divergence(pair, blocks).perplexity_float.value


def kit_alone(folder: Path, sequences: Sequences) -> Callable[[], float]:
    """The perplexity of one model through the engine."""
    import torch  # noqa: PLC0415

    from telechat_kit import load_model  # noqa: PLC0415
    from telechat_kit.inference.whole_sequences import hidden_states  # noqa: PLC0415
    from telechat_kit.precision.positions import log_probabilities  # noqa: PLC0415

    model = load_model(folder, "cpu")

    @torch.inference_mode()
    def perplexity() -> float:
        losses = []
        for ids in sequences:
            states = hidden_states(model, [ids])[0][:-1]
            targets = torch.tensor(ids[1:])[:, None]
            for part, wanted in zip(states.split(128), targets.split(128), strict=True):
                losses.append(-log_probabilities(model.lm_head, part).gather(1, wanted))
        return float(torch.cat(losses).double().mean().exp())

    return perplexity


def harness(folders: Folders, sequences: Sequences) -> Callable[[], float]:
    """lm-evaluation-harness on the Llama folder of transformers."""
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    folder = folders.peers / "llama"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    longest = max(map(len, sequences))
    wrapper: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=longest, device="cpu")
    requests = [(("", ""), ids[:1], ids[1:]) for ids in sequences]
    count = sum(len(ids) - 1 for ids in sequences)

    def perplexity() -> float:
        found = wrapper._loglikelihood_tokens(requests, disable_tqdm=True)
        return float(np.exp(-sum(value for value, _ in found) / count))

    return perplexity


def llama(folders: Folders, sequences: Sequences, threads: int) -> Callable[[], float]:
    """llama.cpp with the logits of every position."""
    import torch  # noqa: PLC0415
    from llama_cpp import Llama  # noqa: PLC0415

    torch.set_num_threads(threads)
    longest = max(map(len, sequences))
    count = {"n_threads": threads, "n_threads_batch": threads}
    model = Llama(
        str(folders.peers / "q8_0.gguf"),
        n_ctx=longest,
        n_batch=longest,
        logits_all=True,
        flash_attn=True,
        verbose=False,
        **count,
    )

    def perplexity() -> float:
        losses = []
        for ids in sequences:
            model.reset()
            model.eval(ids)
            logits = torch.from_numpy(model.scores[: len(ids) - 1])
            losses.append(-logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]))
        return float(torch.cat(losses).double().mean().exp())

    return perplexity


#: In which environment of build/ each way runs; None: the kit's own
WAYS: dict[str, str | None] = {BOTH: None, ALONE: None, W8A8: None, HARNESS: "clients", LLAMA: "peers"}


def prepared(way: str, folders: Folders, sequences: Sequences, threads: int) -> Callable[[], float]:
    """What `way` does in a turn; loads its model."""
    if way == BOTH:
        return kit_pair(folders, sequences)
    if way in (ALONE, W8A8):
        return kit_alone(folders.floats if way == ALONE else folders.w8a8, sequences)
    return harness(folders, sequences) if way == HARNESS else llama(folders, sequences, threads)


def serve(way: str, folders: Folders, sequences: Sequences, threads: int) -> None:
    """Answer each line on stdin with seconds and perplexity on stdout."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a client prints goes to stderr
    turn = prepared(way, folders, sequences, threads)
    print("ready", file=replies, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        perplexity = turn()
        print(json.dumps([time.perf_counter() - start, perplexity]), file=replies, flush=True)
    os._exit(0)  # some engines abort when Python takes them down


@click.command()
@click.option("--float-folder", default="models/smollm2-135m-telechat", show_default=True)
@click.option("--w8a8-folder", default="models/smollm2-135m-telechat-w8a8", show_default=True)
@click.option("--weights", default="models/peers", show_default=True, help="Folder of the peers' weights.")
@click.option("--sequences", default=4, show_default=True, help="Of 512 tokens each.")
@click.option("--rounds", default=6, show_default=True, help="From 6 on the intervals cover 95 %.")
@click.option("--threads", default=2, show_default=True)
@click.option("--serve", "way", hidden=True)
def main(
    float_folder: str,
    w8a8_folder: str,
    weights: str,
    sequences: int,
    rounds: int,
    threads: int,
    way: str | None,
) -> None:
    """Time all ways in turns; print positions per second, perplexity, and the ratio to the kit's float alone."""
    folders = Folders(resolve(float_folder), resolve(w8a8_folder), resolve(weights))
    texts = read_texts(folders, sequences)
    if way is not None:
        serve(way, folders, texts, threads)
        return
    workers = {name: started(name, sys.argv[1:], threads) for name in WAYS}
    workers = {name: worker for name, worker in workers.items() if worker is not None}
    for worker in workers.values():
        ask(worker)  # warms up
    found: dict[str, list[Timed]] = {name: [] for name in workers}
    for number in range(rounds):
        names = list(workers)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(0.5)
            found[name].append(ask(workers[name]))
    report(found, sum(len(ids) - 1 for ids in texts))


def read_texts(folders: Folders, count: int) -> Sequences:
    """The first pieces of 512 tokens of the documentation text, the same for all."""
    from telechat_kit import load_tokenizer  # noqa: PLC0415
    from telechat_kit.texts import load_text  # noqa: PLC0415

    lines = "\n".join(load_text("pydoc_data.topics").lines)
    ids = load_tokenizer(folders.floats)(lines, add_special_tokens=False, verbose=False)["input_ids"]
    return [list(ids[start : start + 512]) for start in range(0, 512 * count, 512)]


def started(way: str, options: list[str], threads: int) -> "subprocess.Popen[str] | None":
    """The process of `way`, ready; None, and why on stderr, where it cannot be."""
    environment = WAYS[way]
    python = (
        project_root() / "build" / environment / "bin" / "python" if environment else Path(sys.executable)
    )
    log = project_root() / "build" / "evaluation-speed.log"
    if not python.exists():
        click.echo(f"left out: {way}: no {python}; make bench installs it", err=True)
        return None
    worker = subprocess.Popen(
        [str(python), __file__, *options, "--serve", way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log.open("a", encoding="utf-8"),
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
    )
    assert worker.stdout is not None
    if worker.stdout.readline().strip() == "ready":
        return worker
    click.echo(f"left out: {way}: it could not be loaded, see {log}", err=True)
    return None


def ask(worker: "subprocess.Popen[str]") -> Timed:
    """One turn."""
    assert worker.stdin is not None and worker.stdout is not None
    print("turn", file=worker.stdin, flush=True)
    seconds, perplexity = json.loads(worker.stdout.readline())
    return cast(Timed, (seconds, perplexity))


def report(found: dict[str, list[Timed]], positions: int) -> None:
    """A row for each way; the ratio says how many times as fast the kit reads its float model alone."""
    print("| way | positions/s | kit, float alone, over it | perplexity |\n|---|---|---|---|")
    for name, turns in found.items():
        speed = median([positions / seconds for seconds, _ in turns])
        ratio = median([own / base for (own, _), (base, _) in zip(turns, found[ALONE], strict=True)])
        print(f"| {name} | {speed:.0f} | {ratio:.2f} | {turns[0][1]:.3f} |")


if __name__ == "__main__":
    main()

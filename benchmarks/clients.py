"""The kit's folders in real clients: vLLM on a CPU, transformers with compressed-tensors, lm-evaluation-harness.

    make clients        # installs them into an environment of their own first
    build/clients/bin/python benchmarks/clients.py --sequences 2 --prompts 1 --tokens 4 --no-harness    # a first look

Greedy ids of the float export under Llama's names beside the kit's; the divergence of the W8A8 export in each client
from the kit's int8 model, on text that took no part in calibration; figures of a small local task of the harness on
both folders, by `telechat-kit lm-eval` and by the harness's own command, and on the exports.

Each reply is kept in build/clients-kept with a log beside it, so a run that stopped goes on with what is missing. A
client that cannot run a folder is named at the end, with its own last words, and the others are asked all the same.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from safetensors.torch import load_file
from torch import Tensor

from telechat_kit import export, load_tokenizer
from telechat_kit.files import project_root, resolve, sha256, write_json
from telechat_kit.inference.model_pair import Pair, evaluation_blocks
from telechat_kit.installed import needed_versions
from telechat_kit.precision import Evaluation
from telechat_kit.provenance import code_hash, combined_hash, machine
from telechat_kit.rows import read_rows
from telechat_kit.statistics import Estimate, mean_over_sequences
from telechat_kit.token_samples import chat_ids

SCHEMA = "telechat-kit/clients/2"
RESULT = "build/clients.json"
KEPT = "build/clients-kept"
Answer = dict[str, Tensor]
#: What `make clients` installs; older ones of vLLM, say, name its worker's calls otherwise
INSTALLED = "environment/clients.txt"


@dataclass(frozen=True)
class Loss:
    """Divergence of a client's W8A8 from another's: KL (that || client), nats per token, and equal likeliest tokens."""

    client: str
    of: str  # whose distributions are held to be right
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


@dataclass
class Replies:
    """Asks clients, keeps what they say, and goes on where one fails."""

    folder: Path
    failures: dict[str, str] = field(default_factory=dict)

    def get(self, name: str, facts: Sequence[str], ask: Callable[[Path, Path], None]) -> Path | None:
        """The file of the reply `name`, from an earlier run if nothing of `facts` has changed; None if it fails.

        Args:
            ask: writes the reply to its first path, and what the client prints to its second.
        """
        stem = f"{name.replace(' ', '-').replace(',', '')}-{combined_hash(facts)[:12]}"
        path, log = self.folder / stem, self.folder / f"{stem}.log"
        if path.exists():
            click.echo(f"{name}: kept from an earlier run", err=True)
            return path
        click.echo(f"{name} ... (log: {log})", err=True)
        begun, partial = time.perf_counter(), path.with_name(f"{stem}.part")
        try:
            ask(partial, log)
        except subprocess.CalledProcessError as error:
            self.failures[name] = last_line(log) or str(error)
            click.echo(f"{name}: failed: {self.failures[name]}", err=True)
            return None
        partial.rename(path)
        click.echo(f"{name}: {time.perf_counter() - begun:.0f} s", err=True)
        return path


@click.command()
@click.option(
    "--float-folder", default="models/smollm2-135m-telechat", show_default=True, help="The float folder."
)
@click.option(
    "--w8a8-folder", default="models/smollm2-135m-telechat-w8a8", show_default=True, help="Its W8A8 form."
)
@click.option("--prompts", default=16, show_default=True, help="Prompts for the greedy ids.")
@click.option("--tokens", default=32, show_default=True, help="Greedy ids for each of them.")
@click.option("--sequences", default=16, show_default=True, help="Windows of text for the divergence.")
@click.option("--length", default=512, show_default=True, help="Tokens of a window.")
@click.option("--harness/--no-harness", default=True, help="Whether to run lm-evaluation-harness too.")
def main(
    float_folder: str, w8a8_folder: str, prompts: int, tokens: int, sequences: int, length: int, harness: bool
) -> None:
    """Export both folders, ask every client, and write build/clients.json."""
    found = versions()
    own = {"float": resolve(float_folder), "w8a8": resolve(w8a8_folder)}
    llama = exports(own)
    replies = Replies(resolve(KEPT))
    replies.folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"schema": SCHEMA, "machine": machine(), "versions": found}
    windows = held_out(own, sequences, length)
    asked = asked_of_all(own["float"], windows)[:prompts]
    equal = equal_ids(replies, of_clients(own["float"], llama["float"]), asked, tokens)
    losses = divergence(replies, of_clients(own["w8a8"], llama["w8a8"]), windows)
    figures = accuracy(replies, own, llama) if harness else {}
    record |= {
        "equal_ids": [asdict(each) for each in equal],
        "divergence": [asdict(each) for each in losses],
        "accuracy": figures,
        "failures": replies.failures,
    }
    write_json(resolve(RESULT), record)
    click.echo(table(equal, losses, figures))
    if replies.failures:
        told = "\n".join(f"  {name}: {said}" for name, said in replies.failures.items())
        raise click.ClickException(f"failed, see the logs in {KEPT}:\n{told}")


def asked_of_all(folder: Path, windows: list[list[int]]) -> list[list[int]]:
    """Prompts for the greedy ids: the questions of the demo profile, then beginnings of texts."""
    tokenizer = load_tokenizer(folder)
    questions = read_rows(resolve("params/data/questions.jsonl"), "input")
    return [chat_ids(tokenizer, row["input"]) for row in questions] + [window[:48] for window in windows]


def needed() -> dict[str, SpecifierSet]:
    """Versions of the clients that can be used: those that the kit itself asks for, else no older one than installed."""
    lines = resolve(INSTALLED).read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {each.name: SpecifierSet(str(each.specifier).replace("==", ">=")) for each in pinned}
    return {name: needed_versions(name, "tasks") or found[name] for name in ("torch", "transformers", *found)}


def versions() -> dict[str, str]:
    """Of the clients, as installed here.

    Raises:
        click.ClickException: one is missing or too old; names the command that installs it.
    """
    found = {}
    for name, fitting in needed().items():
        remedy = "Install the clients anew with: rm -r build/clients; make clients"
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise click.ClickException(f"{name} is not installed. {remedy}") from error
        if not fitting.contains(found[name], prereleases=True):
            raise click.ClickException(f"{name} {found[name]} is installed, {fitting} is needed. {remedy}")
    return found


def exports(own: dict[str, Path]) -> dict[str, Path]:
    """Both folders under Llama's names."""
    llama = {"float": resolve("build/clients-float"), "w8a8": resolve("build/clients-w8a8")}
    export(own["float"], llama["float"], "float", names="llama", overwrite=True)
    export(own["w8a8"], llama["w8a8"], "compressed-tensors", names="llama", overwrite=True)
    return llama


def of_clients(own: Path, llama: Path) -> dict[str, Path]:
    """Which folder each client reads."""
    return {"kit": own, "transformers": llama, "vLLM": llama}


def last_line(log: Path) -> str:
    """What a client said last, mostly its error."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if "Error" in line.split(":")[0]]
    return (errors or said or [""])[-1][:500]


def facts_of(folder: Path) -> list[str]:
    """What a reply depends on: the files of the folder, the versions of the clients, the kit's code."""
    hashes = [f"{path.name} {sha256(path)}" for path in sorted(folder.iterdir()) if path.is_file()]
    return [*hashes, json.dumps(versions()), code_hash()]


def held_out(own: dict[str, Path], sequences: int, length: int) -> list[list[int]]:
    """Windows of the text of the demo profile that calibration has not seen."""
    pair = Pair(own["float"], own["w8a8"], "cpu", "one")
    blocks = evaluation_blocks(pair, "pydoc_data.topics", length, sequences, Evaluation().seed)
    return [block.ids for block in blocks]


def reply_of(
    replies: Replies,
    client: str,
    folder: Path,
    prompts: list[list[int]],
    tokens: int,
    windows: list[list[int]],
) -> Answer | None:
    """What a client says, in a process of its own: ids, states and the head; None if it fails."""
    asked = json.dumps({"folder": str(folder), "prompts": prompts, "tokens": tokens, "windows": windows})
    own = Path(__file__)
    facts = [asked, *facts_of(folder), *(sha256(own.with_name(name)) for name in CLIENT_CODE)]

    def ask(result: Path, log: Path) -> None:
        request = result.with_suffix(".request.json")
        request.write_text(asked, encoding="utf-8")
        run([sys.executable, str(own.with_name(CLIENT_CODE[0])), client, str(request), str(result)], log)
        request.unlink()

    path = replies.get(f"{client}, {folder.name}, {'states' if windows else 'ids'}", facts, ask)
    return path and load_file(path)


CLIENT_CODE = ("client_runs.py", "vllm_states.py")


def run(command: list[str], log: Path) -> None:
    """Run a client from the root of the project, without a network, into its log."""
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(
            command, stdout=file, stderr=file, check=True, cwd=project_root(), env={**os.environ, **offline}
        )


def equal_ids(
    replies: Replies, folders: dict[str, Path], prompts: list[list[int]], tokens: int
) -> list[Equal]:
    """Greedy ids of every client against the kit's."""
    found = {name: reply_of(replies, name, folder, prompts, tokens, []) for name, folder in folders.items()}
    ids = {name: reply["ids"] for name, reply in found.items() if reply}
    return [
        Equal(name, own.numel(), int((own == ids["kit"]).sum())) for name, own in ids.items() if "kit" in ids
    ]


def divergence(replies: Replies, folders: dict[str, Path], windows: list[list[int]]) -> list[Loss]:
    """How far the distributions of two clients lie apart, for every two of them."""
    found = {name: reply_of(replies, name, folder, [], 1, windows) for name, folder in folders.items()}
    following = torch.tensor(windows)[:, 1:]
    pairs = [("kit", "kit"), *combinations(folders, 2)]
    return [
        loss(client, other, found[client], found[other], following)
        for other, client in pairs
        if found[client] and found[other]
    ]


def loss(client: str, of: str, reply: Answer, other: Answer, following: Tensor) -> Loss:
    """`following [windows, length - 1]`: the ids that come behind each position but the last."""
    rows = []
    for theirs, ours, ids in zip(reply["states"], other["states"], following, strict=True):
        q, p = log_probabilities(theirs[:-1], reply["head"]), log_probabilities(ours[:-1], other["head"])
        kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
        same = (p.argmax(-1) == q.argmax(-1)).float()
        rows.append([float(kl.mean()), float(same.mean()), float(q.gather(1, ids[:, None]).mean())])
    means = np.array(rows)
    kl = mean_over_sequences(means[:, :1]).clip(low=0.0)
    return Loss(client, of, following.numel(), kl, float(means[:, 1].mean()), float(means[:, 2].mean()))


def log_probabilities(states: Tensor, head: Tensor) -> Tensor:
    """`[positions, vocab]` of `states [positions, hidden]`."""
    return torch.log_softmax(states @ head.T, dim=-1)


def accuracy(replies: Replies, own: dict[str, Path], llama: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Figures of the local task by the kit's command and by the harness's own, which also takes the exports."""
    kit, harness = [sys.executable, "-m", "telechat_kit", "lm-eval"], [sys.executable, "-m", "lm_eval"]
    trusted = ",trust_remote_code=True"
    runs = {f"telechat-kit lm-eval, {kind}": (kit, folder, "") for kind, folder in own.items()}
    runs |= {f"lm_eval, {kind}": (harness, folder, trusted) for kind, folder in own.items()}
    runs |= {f"lm_eval, {kind} under Llama's names": (harness, folder, "") for kind, folder in llama.items()}
    found = {name: harness_figures(replies, name, *asked) for name, asked in runs.items()}
    return {name: figures for name, figures in found.items() if figures}


def harness_figures(
    replies: Replies, name: str, command: list[str], folder: Path, options: str
) -> dict[str, float] | None:
    """The figures of one run of lm-evaluation-harness, with further `options` of its model; None if it fails."""
    arguments = [
        "--model", "hf", "--model_args", f"pretrained={folder},dtype=float32{options}", "--tasks", "kit_choices",
        "--include_path", "benchmarks/tasks", "--device", "cpu", "--batch_size", "8",
    ]  # fmt: skip
    task = [sha256(path) for path in sorted(project_root().glob("benchmarks/tasks/*.yaml"))]

    def ask(result: Path, log: Path) -> None:
        place = result.with_suffix(".harness")
        run([*command, *arguments, "--output_path", str(place)], log)
        (path,) = place.rglob("results_*.json")
        path.rename(result)

    path = replies.get(name, [*command, *arguments, *task, *facts_of(folder)], ask)
    if path is None:
        return None
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]["kit_choices"]
    return {key: value for key, value in results.items() if isinstance(value, float)}


def table(equal: Sequence[Equal], losses: Sequence[Loss], figures: dict[str, dict[str, float]]) -> str:
    """The record as lines of text."""
    lines = ["float export, greedy ids equal to the kit's:"]
    lines += [f"  {each.client:<13} {each.equal} of {each.ids}" for each in equal]
    lines.append(
        "W8A8 export, KL (nats per token), equal likeliest tokens, mean log-probability of the text:"
    )
    for each in losses:
        pair = f"{each.client} from {each.of}"
        figures_of = f"{each.agreement:.4f}   {each.mean_log_probability:.4f}   {each.positions} positions"
        lines.append(f"  {pair:<25} {each.kl}   {figures_of}")
    lines += [f"{name}: {found}" for name, found in figures.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

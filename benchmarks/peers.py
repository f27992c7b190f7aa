"""The kit's W8A8 beside other engines: same weights, prompts, token counts, threads, in turns on one machine.

Each engine has a process of its own that waits, without using the processor, while another one is timed. Rounds go
around all engines and contexts, every round starting with another engine, and ratios are taken within a round: a
drift of the machine's speed meets all alike. An engine that cannot be loaded is named and left out.

    make bench        # installs the engines into an environment of their own first
    build/peers/bin/python benchmarks/peers.py --rounds 1 --contexts 100 --tokens 8     # a first look
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from peer_engines import KIT, PEERS, REFERENCE, Peer, Reply, Request

from telechat_kit.files import resolve, write_json, write_text
from telechat_kit.inference.conditions import conditions
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.progress import track
from telechat_kit.provenance import Conditions
from telechat_kit.statistics import Estimate, median
from telechat_kit.texts import load_text
from telechat_kit.token_samples import chat_ids

SCHEMA = "telechat-kit/peers/1"
#: What shows that the engines compute one model: next ids after so many windows of the text, and one continuation
WINDOWS, WINDOW_TOKENS, CONTINUED = 16, 64, 32
QUESTION = "What is the capital of France, and what is it known for?"
#: Threads of an engine may spin for a while after its turn; seconds until the next turn
PAUSE = 0.5


@dataclass(frozen=True)
class Timing:
    """One timed turn of an engine. Seconds; `decode_seconds` are those of all tokens behind the first."""

    engine: str
    round: int
    context: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Figures:
    """An engine at one context: medians over the rounds in tokens/s, and the kit's speed over its own by round."""

    engine: str
    context: int
    prefill: Estimate
    decode: Estimate
    prefill_ratio: Estimate
    decode_ratio: Estimate


@dataclass(frozen=True)
class Agreement:
    """How far an engine follows float32: next ids equal after `windows` texts, leading ids equal of a continuation."""

    engine: str
    windows: int
    equal_next_ids: int
    continued: int
    equal_leading_ids: int
    text: str


@dataclass(frozen=True)
class PeersRecord:
    """What one run measured, and under which conditions."""

    schema: str
    conditions: Conditions
    tokens: int
    rounds: int
    versions: dict[str, dict[str, str]]
    skipped: dict[str, str]
    agreement: list[Agreement]
    figures: list[Figures]
    timings: list[Timing]
    load_before: tuple[float, float, float]
    load_after: tuple[float, float, float]
    seconds: float


class Worker:
    """The process of one engine; `RuntimeError` where it cannot be loaded."""

    def __init__(self, peer: Peer, path: Path, threads: int) -> None:
        self.name, self.errors = peer.name, tempfile.TemporaryFile("w+")  # noqa: SIM115
        script = Path(__file__).with_name("peer_engines.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), peer.name, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
        self.versions: dict[str, str] = json.loads(self._line())

    def ask(self, prompt: list[int], tokens: int) -> Reply:
        assert self.process.stdin is not None
        print(json.dumps(asdict(Request(prompt, tokens))), file=self.process.stdin, flush=True)
        return Reply(**json.loads(self._line()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            status = self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"status {status}: {last_line(self.errors.read())}")
        return line


@click.command()
@click.option("--quant-path", default="models/smollm2-135m-telechat-w8a8", show_default=True)
@click.option("--weights", default="models/peers", show_default=True, help="Folder of the converted weights.")
@click.option("--out", default="results/peers", show_default=True, help="Folder of peers.json and peers.md.")
@click.option("--contexts", default="100,1000,2000", show_default=True)
@click.option("--tokens", default=32, show_default=True, help="Tokens decoded behind each prompt.")
@click.option("--rounds", default=6, show_default=True, help="From 6 on the intervals cover 95 %.")
@click.option("--threads", default=2, show_default=True)
@click.option("--only", multiple=True, help="Only engines whose name contains this.")
def main(
    quant_path: str,
    weights: str,
    out: str,
    contexts: str,
    tokens: int,
    rounds: int,
    threads: int,
    only: tuple[str, ...],
) -> None:
    """Time the demo model in every engine; write peers.json and peers.md."""
    started, load = time.perf_counter(), os.getloadavg()
    folder = resolve(quant_path)
    chosen = [p for p in PEERS if not only or p.name == KIT or any(part in p.name for part in only)]
    workers, skipped = start(chosen, folder, resolve(weights), threads)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("\n".join(load_text("pydoc_data.topics").lines), add_special_tokens=False)["input_ids"]
    agreement = compare(workers, ids, chat_ids(tokenizer, QUESTION), tokenizer)
    lengths = [int(part) for part in contexts.split(",")]
    timings = list(interleave(workers, ids, lengths, tokens, rounds))
    torch.set_num_threads(threads)
    record = PeersRecord(
        schema=SCHEMA,
        conditions=conditions(torch.device("cpu"), w8a8=folder),
        tokens=tokens,
        rounds=rounds,
        versions={worker.name: worker.versions for worker in workers},
        skipped=skipped,
        agreement=agreement,
        figures=[figures(timings, worker.name, c, tokens) for c in lengths for worker in workers],
        timings=timings,
        load_before=load,
        load_after=os.getloadavg(),
        seconds=time.perf_counter() - started,
    )
    for worker in workers:
        worker.close()
    write_json(resolve(out) / "peers.json", asdict(record))
    print(write_text(resolve(out) / "peers.md", markdown(record)).read_text(encoding="utf-8"))


def start(
    peers: list[Peer], quant_path: Path, weights: Path, threads: int
) -> tuple[list[Worker], dict[str, str]]:
    """Engines that are there, and why the others are not. Without the kit's own there is nothing to compare."""
    workers, skipped = [], {}
    for peer in track(peers, "converting weights, loading engines"):
        try:
            path = quant_path if peer.form is None else converted(peer.form, weights)
            workers.append(Worker(peer, path, threads))
        except (OSError, RuntimeError) as error:
            if peer.name == KIT:
                raise click.ClickException(
                    f"{quant_path} cannot be loaded: {error}. Make it with: make report"
                ) from error
            skipped[peer.name] = str(error)
    return workers, skipped


def converted(form: str, weights: Path) -> Path:
    """The demo model in that form, made if it is not there."""
    script = Path(__file__).with_name("peer_weights.py")
    made = subprocess.run(
        [sys.executable, str(script), form, str(weights)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise RuntimeError(f"its weights cannot be made: {last_line(made.stderr)}")
    return Path(last_line(made.stdout))


def last_line(text: str) -> str:
    """The last line that is not empty: of an error the one that says what is wrong."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def compare(workers: list[Worker], ids: list[int], question: list[int], tokenizer: object) -> list[Agreement]:
    """Next ids after windows of the text, and the continuation of a question: each engine against float32."""
    starts = range(0, WINDOWS * WINDOW_TOKENS, WINDOW_TOKENS)
    windows = [ids[start : start + WINDOW_TOKENS] for start in starts]
    following = {w.name: [w.ask(window, 0).ids[0] for window in windows] for w in workers}
    continued = {w.name: w.ask(question, CONTINUED - 1).ids for w in workers}
    reference = REFERENCE if REFERENCE in following else KIT
    return [
        Agreement(
            engine=name,
            windows=WINDOWS,
            equal_next_ids=sum(a == b for a, b in zip(following[name], following[reference], strict=True)),
            continued=CONTINUED,
            equal_leading_ids=equal_start(continued[name], continued[reference]),
            text=tokenizer.decode(continued[name]),
        )
        for name in following
    ]


def equal_start(first: list[int], second: list[int]) -> int:
    """Number of leading ids that are equal."""
    pairs = enumerate(zip(first, second, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(first))


def interleave(
    workers: list[Worker], ids: list[int], contexts: list[int], tokens: int, rounds: int
) -> Iterator[Timing]:
    """All turns; before them each engine once through the longest context, not timed."""
    for worker in workers:
        worker.ask(ids[: max(contexts)], tokens)
    turns = [
        (number, context, worker)
        for number in range(rounds)
        for context in contexts
        for worker in (workers[number % len(workers) :] + workers[: number % len(workers)])
    ]
    for number, context, worker in track(turns, "timed turns"):
        time.sleep(PAUSE)
        reply = worker.ask(ids[:context], tokens)
        if len(reply.ids) != tokens + 1:
            raise click.ClickException(
                f"{worker.name} gave {len(reply.ids)} ids of {tokens + 1}: no fair timing."
            )
        yield Timing(worker.name, number, context, reply.prefill_seconds, reply.decode_seconds)


def figures(timings: list[Timing], engine: str, context: int, tokens: int) -> Figures:
    """Medians of one engine at one context, and of the ratios to the kit's turn in the same round."""
    own = [t for t in timings if (t.engine, t.context) == (engine, context)]
    kit = [t for t in timings if (t.engine, t.context) == (KIT, context)]
    pairs = list(zip(own, kit, strict=True))
    return Figures(
        engine,
        context,
        prefill=median([context / t.prefill_seconds for t in own]),
        decode=median([tokens / t.decode_seconds for t in own]),
        prefill_ratio=median([a.prefill_seconds / b.prefill_seconds for a, b in pairs]),
        decode_ratio=median([a.decode_seconds / b.decode_seconds for a, b in pairs]),
    )


def markdown(record: PeersRecord) -> str:
    """The record as a page: figures, agreement, conditions."""
    found, judge = record.conditions, REFERENCE if REFERENCE in record.versions else KIT
    lines = [
        f"# Engines on the demo model, {found.device_name}, {found.started}",
        "",
        f"Median of {record.rounds} interleaved rounds and its interval (coverage "
        f"{record.figures[0].decode.coverage:.0%}), tokens/s; decode of {record.tokens} tokens behind the context. "
        "Ratio: speed of the kit over that of the engine, within each round; above 1 the kit is faster.",
        "",
        "| context | engine | prefill | decode | ratio, prefill | ratio, decode |",
        "|---|---|---|---|---|---|",
        *(
            f"| {f.context} | {f.engine} | {_interval(f.prefill, 0)} | {_interval(f.decode, 1)} | "
            f"{_interval(f.prefill_ratio, 2)} | {_interval(f.decode_ratio, 2)} |"
            for f in record.figures
        ),
        "",
        f"| engine | next ids as in {judge} | continuation as in {judge} | versions |",
        "|---|---|---|---|",
        *(
            f"| {a.engine} | {a.equal_next_ids} of {a.windows} | first {a.equal_leading_ids} of {a.continued} | "
            f"{', '.join(f'{name} {number}' for name, number in record.versions[a.engine].items())} |"
            for a in record.agreement
        ),
        "",
        *(f"- left out: {name} ({reason})" for name, reason in record.skipped.items()),
        f"- {found.threads} threads, {found.system}; load of the machine before and after: "
        f"{record.load_before[0]:.2f}, {record.load_after[0]:.2f}; {record.seconds:.0f} s in all",
    ]
    return "\n".join(lines) + "\n"


def _interval(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


if __name__ == "__main__":
    main()

"""The kit's W8A8 beside other engines: same weights, prompts, token counts, threads, in turns on one machine.

Each engine has a process of its own that waits, without using the processor, while another one is timed. Rounds go
around all engines, batches and contexts, every round starting with another engine, and ratios are taken within a
round: a drift of the machine's speed meets all alike. An engine that cannot be loaded is named and left out.

    make bench        # installs the engines into environments of their own first
    build/peers/bin/python benchmarks/peers.py --rounds 1 --batch-rounds 1 --batches 1,4 --contexts 100 --batch-contexts 100 --tokens 8
"""

import contextlib
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
from peer_engines import HALF_KIT, KIT, PEERS, REFERENCE, Peer, Reply, Request

from telechat_kit.files import project_root, resolve, write_json, write_text
from telechat_kit.inference.conditions import conditions
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.progress import track
from telechat_kit.provenance import Conditions
from telechat_kit.statistics import Estimate, median
from telechat_kit.texts import load_text
from telechat_kit.token_samples import chat_ids

SCHEMA = "telechat-kit/peers/3"
#: What shows that the engines compute one model: next ids after so many windows of the text, and one continuation
WINDOWS, WINDOW_TOKENS, CONTINUED = 16, 64, 32
QUESTION = "What is the capital of France, and what is it known for?"
#: glibc asks for huge pages for whatever an engine allocates; the kit does so for its weights by itself
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
#: Threads of an engine may spin for a while after its turn; seconds until the next turn
PAUSE = 0.5


@dataclass(frozen=True)
class Case:
    """So many prompts of so many tokens at once."""

    batch: int
    context: int


@dataclass(frozen=True)
class Timing:
    """One timed turn of an engine. Seconds; `decode_seconds` are those of all tokens behind the first ones."""

    engine: str
    round: int
    batch: int
    context: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Figures:
    """An engine in one case: medians over the rounds in tokens/s of all rows, and the kit's speed over its own by round."""

    engine: str
    batch: int
    context: int
    rounds: int
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
    beside: str
    versions: dict[str, dict[str, str]]
    settings: dict[str, dict[str, str]]
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
        self.name, self.batches = peer.name, peer.batches
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        script = Path(__file__).with_name("peer_engines.py")
        self.process = subprocess.Popen(
            [str(python_of(peer)), str(script), peer.name, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **HUGE_PAGES, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
        loaded = json.loads(self._line())
        self.versions: dict[str, str] = loaded["versions"]
        self.settings: dict[str, str] = loaded["settings"]

    def ask(self, prompts: list[list[int]], tokens: int) -> Reply:
        assert self.process.stdin is not None
        print(json.dumps(asdict(Request(prompts, tokens))), file=self.process.stdin, flush=True)
        reply = Reply(**json.loads(self._line()))
        if [len(row) for row in reply.ids] != [tokens + 1] * len(prompts):
            raise click.ClickException(f"{self.name} gave other than {tokens + 1} ids a row: no fair timing.")
        return reply

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            status = self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"status {status}: {last_line(self.errors.read())}")
        return line


def python_of(peer: Peer) -> Path:
    """The interpreter of the environment that holds the engine."""
    python = project_root() / "build" / peer.environment / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"build/{peer.environment} is not there: make bench installs it")
    return python


def numbers(text: str) -> list[int]:
    """The whole numbers of an option."""
    return [int(part) for part in text.split(",") if part]


@click.command()
@click.option("--quant-path", default="models/smollm2-135m-telechat-w8a8", show_default=True)
@click.option("--weights", default="models/peers", show_default=True, help="Folder of the converted weights.")
@click.option("--out", default="build", show_default=True, help="Folder of peers.json and peers.md.")
@click.option("--contexts", default="100,1000,2000", show_default=True, help="At batch 1.")
@click.option("--batches", default="1,4,8,16,32", show_default=True)
@click.option("--batch-contexts", default="100,1000", show_default=True, help="At batches above 1.")
@click.option("--tokens", default=32, show_default=True, help="Tokens decoded behind each prompt.")
@click.option("--rounds", default=6, show_default=True, help="At batch 1; from 6 on intervals cover 95 %.")
@click.option("--batch-rounds", default=3, show_default=True, help="At batches above 1.")
@click.option("--threads", default=2, show_default=True)
@click.option("--only", multiple=True, help="Only engines whose name contains this.")
@click.option("--beside", default=HALF_KIT, show_default=True, help="The form of the kit that ratios are of.")
def main(
    quant_path: str,
    weights: str,
    out: str,
    contexts: str,
    batches: str,
    batch_contexts: str,
    tokens: int,
    rounds: int,
    batch_rounds: int,
    threads: int,
    only: tuple[str, ...],
    beside: str,
) -> None:
    """Time the demo model in every engine; write peers.json and peers.md."""
    started, load = time.perf_counter(), os.getloadavg()
    folder = resolve(quant_path)
    chosen = [p for p in PEERS if not only or p.name in (KIT, beside) or any(part in p.name for part in only)]
    workers, skipped = start(chosen, folder, resolve(weights), threads)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("\n".join(load_text("pydoc_data.topics").lines), add_special_tokens=False)["input_ids"]
    agreement = compare(workers, ids, chat_ids(tokenizer, QUESTION), tokenizer)
    cases = {
        Case(batch, context): rounds if batch == 1 else batch_rounds
        for batch in numbers(batches)
        for context in numbers(contexts if batch == 1 else batch_contexts)
    }
    timings = list(interleave(workers, ids, cases, tokens, skipped))
    torch.set_num_threads(threads)
    record = PeersRecord(
        schema=SCHEMA,
        conditions=conditions(torch.device("cpu"), w8a8=folder),
        tokens=tokens,
        beside=beside,
        versions={worker.name: worker.versions for worker in workers},
        settings={worker.name: worker.settings for worker in workers},
        skipped=skipped,
        agreement=agreement,
        figures=[
            figures(timings, worker.name, beside, case, tokens)
            for case in cases
            for worker in taking(workers, case)
            if any((t.engine, t.batch, t.context) == (worker.name, case.batch, case.context) for t in timings)
        ],
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
            path = quant_path if peer.form is None else converted(peer.form, weights, quant_path)
            workers.append(Worker(peer, path, threads))
        except (OSError, RuntimeError) as error:
            if peer.name == KIT:
                raise click.ClickException(
                    f"{quant_path} cannot be loaded: {error}. Make it with: make report"
                ) from error
            skipped[peer.name] = str(error)
    return workers, skipped


def converted(form: str, weights: Path, quant_path: Path) -> Path:
    """The demo model in that form, made if it is not there; the kit's own W8A8 weights in that of others."""
    script = Path(__file__).with_name("peer_weights.py")
    made = subprocess.run(
        [sys.executable, str(script), form, str(weights), str(quant_path)],
        capture_output=True,
        text=True,
        check=False,
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
    following = {w.name: [w.ask([window], 0).ids[0][0] for window in windows] for w in workers}
    continued = {w.name: w.ask([question], CONTINUED - 1).ids[0] for w in workers}
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


def taking(workers: list[Worker], case: Case) -> list[Worker]:
    """The engines that are timed in this case."""
    return [worker for worker in workers if case.batch == 1 or worker.batches]


def interleave(
    workers: list[Worker], ids: list[int], cases: dict[Case, int], tokens: int, skipped: dict[str, str]
) -> Iterator[Timing]:
    """All turns of `cases`, each so many rounds; before them each engine takes each batch once, not timed.

    An engine that ends in a case, which `skipped` then names, is left out from there on.
    """
    ended: set[str] = set()
    turns = [
        (number, case, worker)
        for number in range(-1, max(cases.values()))
        for case, rounds in cases.items()
        if number < rounds and (number >= 0 or case.context == min(c.context for c in cases))
        for worker in rotated(taking(workers, case), number)
    ]
    for number, case, worker in track(turns, "timed turns"):
        if worker.name in ended:
            continue
        time.sleep(PAUSE)
        try:
            reply = worker.ask(prompts_of(ids, case), tokens)
        except (RuntimeError, BrokenPipeError) as error:
            if worker.name == KIT:
                raise
            ended.add(worker.name)
            skipped[f"{worker.name} from {case} on"] = str(error)
            continue
        if number >= 0:
            yield Timing(
                worker.name, number, case.batch, case.context, reply.prefill_seconds, reply.decode_seconds
            )


def rotated(workers: list[Worker], number: int) -> list[Worker]:
    """Every round begins with another engine."""
    first = number % len(workers)
    return workers[first:] + workers[:first]


def prompts_of(ids: list[int], case: Case) -> list[list[int]]:
    """A piece of the text for each row, all different: none can be read for another."""
    if case.batch * case.context > len(ids):
        raise click.ClickException(f"the text has {len(ids)} tokens, too few for {case}.")
    return [ids[row * case.context : (row + 1) * case.context] for row in range(case.batch)]


def figures(timings: list[Timing], engine: str, beside: str, case: Case, tokens: int) -> Figures:
    """Medians of one engine in one case, and of the ratios to the turn of `beside` in the same round."""
    there = [t for t in timings if (t.batch, t.context) == (case.batch, case.context)]
    own, kit = [t for t in there if t.engine == engine], {t.round: t for t in there if t.engine == beside}
    pairs = [(timing, kit[timing.round]) for timing in own]
    return Figures(
        engine,
        case.batch,
        case.context,
        len(own),
        prefill=median([case.batch * case.context / t.prefill_seconds for t in own]),
        decode=median([case.batch * tokens / t.decode_seconds for t in own]),
        prefill_ratio=median([a.prefill_seconds / b.prefill_seconds for a, b in pairs]),
        decode_ratio=median([a.decode_seconds / b.decode_seconds for a, b in pairs]),
    )


def markdown(record: PeersRecord) -> str:
    """The record as a page: figures, agreement, conditions."""
    found, judge = record.conditions, REFERENCE if REFERENCE in record.versions else KIT
    lines = [
        f"# Engines on the demo model, {found.device_name}, {found.started}",
        "",
        "Median of the interleaved rounds and its interval, tokens/s of all rows; decode of "
        f"{record.tokens} tokens behind the context. Ratio: speed of {record.beside} over that of the engine, within "
        "each round; above 1 the kit is faster.",
        "",
        "| batch | context | rounds, coverage | engine | prefill | decode | ratio, prefill | ratio, decode |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {f.batch} | {f.context} | {f.rounds}, {f.decode.coverage:.0%} | {f.engine} | "
            f"{f.prefill:.0f} | {f.decode:.1f} | "
            f"{f.prefill_ratio:.2f} | {f.decode_ratio:.2f} |"
            for f in record.figures
        ),
        "",
        f"| engine | next ids as in {judge} | continuation as in {judge} | versions | settings |",
        "|---|---|---|---|---|",
        *(
            f"| {a.engine} | {a.equal_next_ids} of {a.windows} | first {a.equal_leading_ids} of {a.continued} | "
            f"{listed(record.versions[a.engine])} | {listed(record.settings[a.engine])} |"
            for a in record.agreement
        ),
        "",
        *(f"- left out: {name} ({reason})" for name, reason in record.skipped.items()),
        f"- {found.threads} threads, {found.system}, {listed(HUGE_PAGES)}; load of the machine before and after: "
        f"{record.load_before[0]:.2f}, {record.load_after[0]:.2f}; {record.seconds:.0f} s in all",
    ]
    return "\n".join(lines) + "\n"


def listed(named: dict[str, str]) -> str:
    """Names and values in one cell."""
    return ", ".join(f"{name} {value}" for name, value in named.items())


if __name__ == "__main__":
    main()

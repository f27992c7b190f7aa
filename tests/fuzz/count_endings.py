"""Count how changed documents end, for the kit on the path: `python tests/fuzz/count_endings.py CORPUS FIRST LAST [TARGET...]`.

Cases `FIRST .. LAST` of every target, the same for every version of the kit. The corpus is made once, by the kit that
is on the path. Each target runs in a process of its own, so that a crash or a reader that no signal stops is counted too.
What is printed are JSON lines; `python tests/fuzz/count_endings.py table BEFORE AFTER` sets two of them side by side.
"""

import collections
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from corpus import write_texts
from endings import (
    BAD,
    HANG,
    HASHED,
    MOST_SECONDS,
    OTHER,
    REFUSED,
    SAME,
    SILENT,
    TRACEBACK,
    judge,
    understood,
)
from mutations import drawn
from targets import TARGETS, Corpus, Target

#: Seconds without a word from a reader after which its process is ended
_PATIENCE = 3 * MOST_SECONDS
_FORMATS = {"numpy": "numpy", "ascend": "ascendV1", "compressed": "compressed-tensors"}


def corpus(folder: Path) -> Corpus:
    """The corpus in `folder`, made by the kit's own command line if it is not there."""
    if not (folder / "complete").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        places = {
            "run_folder": "run",
            "checkpoint_path": "floats",
            "model_path": "floats",
            "quant_path": "w8a8",
        }
        given = [word for key, name in places.items() for word in ("-p", key, str(folder / name))]
        _kit("run", "params/tiny.yaml", *given)
        for name, form in _FORMATS.items():
            _kit(
                "export",
                str(folder / "w8a8"),
                str(folder / name),
                "--format",
                form,
                "--model-path",
                str(folder / "floats"),
            )
        write_texts(folder / "texts")
        (folder / "complete").touch()
    return Corpus(**{name: folder / name for name in Corpus.__dataclass_fields__})


def _kit(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "telechat_kit", *words], check=True)


def _work(target: Target, made: Corpus, expected: str, first: int, last: int, results: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for seed in range(first, last):
        changes = drawn(f"{target.name} {seed}")
        name = target.files[seed % len(target.files)]
        ending = judge(target, made, expected, name, changes)
        results.send((seed, ending.kind, ending.told))


def count(target: Target, made: Corpus, first: int, last: int) -> "collections.Counter[str]":
    """How the cases of one target end; the bad ones are printed, one JSON line each."""
    counts: collections.Counter[str] = collections.Counter()
    expected = understood(target, made)  # here, so that no process spends its patience on imports
    context = multiprocessing.get_context("fork")
    while first < last:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(target, made, expected, first, last, theirs))
        worker.start()
        theirs.close()
        try:
            while ours.poll(_PATIENCE):
                seed, kind, told = ours.recv()
                counts[kind] += 1
                first = seed + 1
                if kind in BAD:
                    print(
                        json.dumps({"target": target.name, "seed": seed, "kind": kind, "told": told}),
                        flush=True,
                    )
        except EOFError:
            pass
        if worker.is_alive():
            worker.kill()
        worker.join()
        if first < last:  # the process ended, or said nothing for long
            kind = "hang" if worker.exitcode == -9 else "crash"
            counts[kind] += 1
            print(
                json.dumps(
                    {"target": target.name, "seed": first, "kind": kind, "told": str(worker.exitcode)}
                ),
                flush=True,
            )
            first += 1
    return counts


def main() -> None:
    """Count, and print a line for each target at the end."""
    if sys.argv[1] == "table":
        print(table(Path(sys.argv[2]), Path(sys.argv[3])))
        return
    folder, first, last, *names = sys.argv[1:]
    made = corpus(Path(folder))
    for target in TARGETS:
        if names and target.name not in names:
            continue
        try:
            counts = dict(count(target, made, int(first), int(last)))
        except ImportError:  # an older kit has no such reader
            counts = {}
        print(json.dumps({"target": target.name, "counts": counts}), flush=True)


def table(before: Path, after: Path) -> str:
    """Two counts of the same cases as a table in Markdown: a row a target, before -> after in each column."""
    kinds = (TRACEBACK, HANG, "crash", SILENT, HASHED, REFUSED, SAME, OTHER)
    counts = [_counts(before), _counts(after)]
    rows = [("target", "cases", *kinds), ("---",) * (2 + len(kinds))]
    for name in counts[1]:
        own = [each.get(name, {}) for each in counts]
        rows.append((name, str(sum(own[1].values())), *(_pair(own, kind) for kind in kinds)))
    sums = [sum(map(collections.Counter, each.values()), collections.Counter[str]()) for each in counts]
    rows.append(("all", str(sums[1].total()), *(_pair(sums, kind) for kind in kinds)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _pair(counts: Sequence[Mapping[str, int]], kind: str) -> str:
    return " -> ".join(str(each.get(kind, 0)) if each else "none" for each in counts)


def _counts(log: Path) -> dict[str, dict[str, int]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return {line["target"]: line["counts"] for line in lines if "counts" in line}


if __name__ == "__main__":
    main()

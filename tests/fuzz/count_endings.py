"""Count how changed documents end, for the kit on the path: `python tests/fuzz/count_endings.py CORPUS FIRST LAST [TARGET...]`.

Cases `FIRST .. LAST` of every target, the same for every version of the kit. The corpus is made once, by the kit that
is on the path. Each target runs in a process of its own, so that a crash or a reader that no signal stops is counted too.
"""

import collections
import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from corpus import write_texts
from endings import BAD, MOST_SECONDS, judge, understood
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


def _work(target: Target, made: Corpus, first: int, last: int, results: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    expected = understood(target, made)
    for seed in range(first, last):
        changes = drawn(f"{target.name} {seed}")
        name = target.files[seed % len(target.files)]
        ending = judge(target, made, expected, name, changes)
        results.send((seed, ending.kind, ending.told))


def count(target: Target, made: Corpus, first: int, last: int) -> "collections.Counter[str]":
    """How the cases of one target end; the bad ones are printed, one JSON line each."""
    counts: collections.Counter[str] = collections.Counter()
    context = multiprocessing.get_context("fork")
    while first < last:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(target, made, first, last, theirs))
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
    folder, first, last, *names = sys.argv[1:]
    made, total = corpus(Path(folder)), collections.Counter[str]()
    for target in TARGETS:
        if names and target.name not in names:
            continue
        counts = count(target, made, int(first), int(last))
        total += counts
        print(f"# {target.name}: {dict(counts)}", flush=True)
    print(f"# all: {total.total()} cases, {dict(total)}")


if __name__ == "__main__":
    main()

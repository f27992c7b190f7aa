"""Verify a run: is what it was made from still the same, and do its figures come out again?"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isclose
from pathlib import Path

import yaml

from telechat_kit.comparison.changes import Figure, figures
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import DataError, KitError
from telechat_kit.files import resolve
from telechat_kit.model.hashes import settings_hash, tokenizer_hash, weights_hash
from telechat_kit.provenance import code_hash, code_version, file_hash, machine
from telechat_kit.rows import read_rows
from telechat_kit.runs.execution import run_profile
from telechat_kit.runs.plan import Selection, find_step
from telechat_kit.runs.profile import load_profile, notebook_path
from telechat_kit.texts import load_text

SAME, CHANGED, LOST, NOTE = "same", "changed", "not readable", "differs"
REPRODUCED, WITHIN, NOT, UNDECIDED = "reproduced", "within its interval", "not reproduced", "no interval"
#: What decides the answers of a checkpoint, as conditions name it
_HASHES = {"weights": weights_hash, "tokenizer": tokenizer_hash, "settings": settings_hash}
#: Sums in another order, by another number of threads say, move a figure by less than this
RELATIVE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Origin:
    """One thing that a run was made from. A `differs` is said and does not fail: another version of the code, say."""

    name: str
    recorded: str
    found: str
    verdict: str


@dataclass(frozen=True)
class Verdict:
    """One figure, as recorded and as it came out again."""

    name: str
    recorded: Figure
    repeated: Figure
    verdict: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `good`: nothing that a figure rests on changed, and no untimed figure came out otherwise."""

    name: str
    origins: list[Origin]
    verdicts: list[Verdict]
    same_machine: bool

    @property
    def good(self) -> bool:
        broken = [origin for origin in self.origins if origin.verdict in (CHANGED, LOST)]
        return not broken and not any(v.verdict == NOT and not v.recorded.timed for v in self.verdicts)


def verify(place: str | Path, steps: Sequence[str] = (), repeat: bool = True) -> Verification:
    """Check what the run at `place` was made from, and repeat it, in whole or only `steps`.

    Args:
        place: a run folder, or a report.html alone.
        steps: names of steps to repeat; none: all that the run has.
        repeat: without it only the hashes are checked.

    Raises:
        DataError: no run there, or one that does not tell its parameters.

    Example:
        >>> verification = verify("results/tiny", repeat=False)
        >>> verification.good
        True
    """
    run = read_run_data(place)
    origins, verdicts = list(check_origins(run)), []
    if repeat:
        repeated = repeat_run(run, steps)
        origins, verdicts = made_again(origins, run, repeated), judge(run, repeated)
    here = {step.get("parts", {}).get("the machine") for step in run.state.get("steps", [])} - {None}
    return Verification(run.name, origins, verdicts, here == {machine()})


def check_origins(run: RunData) -> Iterator[Origin]:
    """Weights, tokenizers, texts, questions, code, notebooks and the files of the run, against what it recorded."""
    yield from _checkpoints(run)
    yield from _texts(run)
    yield from _code(run)
    for step in run.state.get("steps", []):
        for name, recorded in (step.get("left") or {}).items():
            if run.folder is not None:
                yield _origin(f"file {name}", recorded, partial(file_hash, run.folder / name))


def _checkpoints(run: RunData) -> Iterator[Origin]:
    folders = {}
    if run.setup is not None:
        folders["float"] = (run.setup.checkpoint_path, run.setup.conditions.hashes)
    if run.quantize is not None:
        folders["w8a8"] = (run.quantize.quant_path, run.quantize.conditions.hashes)
    for name, (folder, hashes) in folders.items():
        for kind, compute in _HASHES.items():
            recorded = hashes.get(f"{name}_{kind}")
            if recorded:
                yield _origin(f"{name} {kind}", recorded, partial(_of_folder, compute, resolve(folder)))


def _of_folder(compute: Callable[[Path], str], folder: Path) -> str:
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist")
    return compute(folder)


def _texts(run: RunData) -> Iterator[Origin]:
    used = run.quantize.recipe if run.quantize else None
    if used is not None:
        yield _origin(
            "calibration text",
            used.calibration_sha256,
            lambda: load_text(run.parameters.get("calibration_path") or used.calibration_source).sha256,
        )
    if run.precision is not None:
        text = run.precision
        yield _origin(
            "evaluation text",
            text.text_sha256,
            lambda: load_text(run.parameters.get("text_path") or text.text_source).sha256,
        )
        path = run.parameters.get("jsonl_path")
        if path and text.answers:
            asked = str([answer.input for answer in text.answers])
            yield _origin("questions", asked, lambda: _questions(path, len(text.answers)))


def _questions(path: str, count: int) -> str:
    return str([row["input"] for row in read_rows(resolve(path), "input")[:count]])


def made_again(origins: Sequence[Origin], run: RunData, repeated: RunData) -> list[Origin]:
    """Quantized weights that are not here any more, judged by those that the repetition made."""
    if run.quantize is None or repeated.quantize is None:
        return list(origins)
    before, now = run.quantize.conditions.hashes, repeated.quantize.conditions.hashes
    again = {}
    for kind in _HASHES:
        name, key = f"w8a8 {kind}", f"w8a8_{kind}"
        if key in before:
            again[name] = _origin(f"{name}, made again", before[key], partial(str, now.get(key)))
    return [again.get(origin.name, origin) if origin.verdict == LOST else origin for origin in origins]


def _code(run: RunData) -> Iterator[Origin]:
    steps = run.state.get("steps", [])
    recorded = {step.get("parts", {}).get("the kit's code") for step in steps} - {None}
    for value in sorted(recorded):
        yield _origin("the kit's code", value, code_hash, other=NOTE)
    if not recorded and run.setup is not None:
        yield _origin("the kit's code", run.setup.conditions.code, code_version, other=NOTE)
    for step in steps:
        value = step.get("parts", {}).get("the notebook")
        if value:
            name = step["name"]
            yield _origin(f"notebook {name}", value, partial(file_hash, notebook_path(name)), other=NOTE)


def _origin(name: str, recorded: str, compute: Callable[[], str], other: str = CHANGED) -> Origin:
    try:
        found = compute()
    except (KitError, OSError) as error:
        return Origin(name, _short(recorded), str(error), LOST)
    return Origin(name, _short(recorded), _short(found), SAME if found == recorded else other)


def _short(value: str) -> str:
    return value if len(value) <= 16 else f"{value[:16]}…"


def repeat_run(run: RunData, steps: Sequence[str] = ()) -> RunData:
    """Run the steps again into a folder that is removed afterwards.

    With 02_quantize among them the quantized weights are made anew; otherwise those of the run are used.
    """
    if not run.parameters:
        raise DataError(
            f"{run.name} does not tell its parameters, so it cannot be repeated. Use --hashes-only."
        )
    made = [step["name"] for step in run.state.get("steps", []) if step.get("status") == "completed"]
    chosen = [find_step(name).name for name in steps] or made
    with tempfile.TemporaryDirectory(prefix="telechat-verify-") as folder:
        values = run.parameters | {"run_folder": f"{folder}/run"}
        if "02_quantize" in chosen:
            values["quant_path"] = f"{folder}/w8a8"
        profile = Path(folder) / f"{Path(run.name).stem}.yaml"
        profile.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        only = tuple(name for name in chosen if name != "05_report")
        outcome = run_profile(load_profile(profile), Selection(only=only))
        if outcome.stopped is not None:
            failure = outcome.stopped.failure
            raise DataError(
                f"the repetition stopped at {outcome.stopped.name}: {failure.message if failure else ''}"
            )
        return read_run_data(f"{folder}/run")


def judge(recorded: RunData, repeated: RunData) -> list[Verdict]:
    """Every figure that both have, with what to say of it."""
    before, now = figures(recorded), figures(repeated)
    return [
        Verdict(name, before[name], now[name], _say(before[name], now[name]))
        for name in before
        if name in now
    ]


def _say(recorded: Figure, repeated: Figure) -> str:
    a, b = recorded.estimate, repeated.estimate
    if isclose(a.value, b.value, rel_tol=RELATIVE_TOLERANCE):
        return REPRODUCED
    if recorded.exact:
        return UNDECIDED if recorded.timed else NOT
    return WITHIN if a.low <= b.value <= a.high else NOT

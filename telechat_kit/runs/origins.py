"""What a run was made from and what it left, against what lies here: weights, tokenizers, texts, code, files."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from telechat_kit.comparison.findings import (
    CHANGED,
    LOST,
    NOTE,
    SAME,
    Finding,
    compared,
    unchecked,
)
from telechat_kit.comparison.run_data import RunData
from telechat_kit.environment.checkpoint_checks import model_parts, weights_bytes
from telechat_kit.errors import CheckpointError, DataError, KitError
from telechat_kit.files import read_json, resolve
from telechat_kit.messages import Message, marked
from telechat_kit.model.folder import origin
from telechat_kit.model.hashes import settings_hash, tokenizer_hash, weights_hash
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.precision.answers import answer_rows
from telechat_kit.provenance import code_hash, code_version, file_hash
from telechat_kit.quantization.formats.w8a8_folder import RECIPE
from telechat_kit.rows import read_rows
from telechat_kit.runs.profile import notebook_path
from telechat_kit.texts import evaluation_texts, load_text

PART, WEIGHTS, ANSWERS = marked("made from"), marked("weights"), marked("answers")
#: What decides the answers of a checkpoint, as conditions name it
_NAMES = {
    ("float", "weights"): marked("float weights"),
    ("float", "tokenizer"): marked("float tokenizer"),
    ("float", "settings"): marked("float settings"),
    ("w8a8", "weights"): marked("w8a8 weights"),
    ("w8a8", "tokenizer"): marked("w8a8 tokenizer"),
    ("w8a8", "settings"): marked("w8a8 settings"),
}
_HASHES = {"weights": weights_hash, "tokenizer": tokenizer_hash, "settings": settings_hash}


def check_origins(run: RunData) -> Iterator[Finding]:
    """Weights, tokenizers, texts, questions, code and notebooks, against what the run recorded."""
    yield from _checkpoints(run)
    yield from _texts(run)
    yield from _code(run)


def _checkpoints(run: RunData) -> Iterator[Finding]:
    folders = {}
    if run.setup is not None:
        folders["float"] = (run.setup.checkpoint_path, run.setup.conditions.hashes)
    if run.quantize is not None:
        folders["w8a8"] = (run.quantize.quant_path, run.quantize.conditions.hashes)
    for name, (folder, hashes) in folders.items():
        for kind, compute in _HASHES.items():
            recorded = hashes.get(f"{name}_{kind}")
            if recorded:
                yield _origin(_NAMES[name, kind], recorded, partial(_of_folder, compute, resolve(folder)))


def _of_folder(compute: Callable[[Path], str], folder: Path) -> str:
    if not folder.is_dir():
        raise DataError("{folder} does not exist", folder=folder)
    return compute(folder)


def _texts(run: RunData) -> Iterator[Finding]:
    used = run.quantize.recipe if run.quantize else None
    if used is not None:
        yield _origin(
            marked("calibration text"),
            used.calibration_sha256,
            lambda: load_text(run.parameters.get("calibration_path") or used.calibration_source).sha256,
        )
    if run.precision is None:
        return
    text = run.precision
    yield _origin(
        marked("evaluation text"),
        text.text_sha256,
        lambda: load_text(run.parameters.get("text_path") or text.text_source).sha256,
    )
    for loss in text.kinds:
        yield _origin(
            Message("text {kind}", kind=loss.kind),
            loss.sha256,
            partial(lambda kind: evaluation_texts(text.kinds_source)[kind].sha256, loss.kind),
        )
    path = run.parameters.get("jsonl_path")
    if path and text.answers:
        asked = str([answer.input for answer in text.answers])
        yield _origin(marked("questions"), asked, lambda: _questions(path, len(text.answers)))


def _questions(path: str, count: int) -> str:
    return str([row["input"] for row in read_rows(resolve(path), "input")[:count]])


def made_again(origins: Sequence[Finding], run: RunData, repeated: RunData) -> list[Finding]:
    """Quantized weights that are not here any more, judged by those that the repetition made."""
    if run.quantize is None or repeated.quantize is None:
        return list(origins)
    before, now = run.quantize.conditions.hashes, repeated.quantize.conditions.hashes
    again = {}
    for kind in _HASHES:
        name, key = _NAMES["w8a8", kind], f"w8a8_{kind}"
        if key in before:
            again[name] = _origin(
                Message("{name}, made again", name=name), before[key], partial(str, now.get(key))
            )
    return [again.get(origin.name, origin) if origin.verdict == LOST else origin for origin in origins]


def recorded_code(run: RunData) -> list[str]:
    """Hashes of the kit's code that the steps of a run were made by; empty for a run by hand."""
    steps = run.state.get("steps", [])
    return sorted({step.get("parts", {}).get("the kit's code") for step in steps} - {None})


def _code(run: RunData) -> Iterator[Finding]:
    recorded = recorded_code(run)
    for value in recorded:
        yield _origin(marked("the kit's code"), value, code_hash, other=NOTE)
    if not recorded and run.setup is not None:
        yield _origin(marked("the kit's code"), run.setup.conditions.code, code_version, other=NOTE)
    for step in run.state.get("steps", []):
        value = step.get("parts", {}).get("the notebook")
        if value:
            name = step["name"]
            yield _origin(
                Message("notebook {name}", name=name),
                value,
                partial(file_hash, notebook_path(name)),
                other=NOTE,
            )


def _origin(name: str, recorded: str, compute: Callable[[], str], other: str = CHANGED) -> Finding:
    try:
        found = compute()
    except CheckpointError as error:  # it is there, and not whole
        return Finding(name, _short(recorded), str(error), CHANGED, PART)
    except (KitError, OSError, KeyError) as error:
        return Finding(name, _short(recorded), str(error), LOST, PART)
    return Finding(name, _short(recorded), _short(found), SAME if found == recorded else other, PART)


def _short(value: str) -> str:
    return value if len(value) <= 16 else f"{value[:16]}…"


def check_weights_told(run: RunData) -> Iterator[Finding]:
    """What the records say of the checkpoints, against the folders: sizes, parts, recipe, texts of the ids."""
    for check in (_float_told, _quantized_told, _answers_told):
        try:
            yield from check(run)
        except CheckpointError as error:
            yield unchecked(WEIGHTS, marked("what records say of the weights"), str(error))


def _float_told(run: RunData) -> Iterator[Finding]:
    if run.setup is None:
        return
    folder = resolve(run.setup.checkpoint_path)
    if not folder.is_dir():
        yield unchecked(
            WEIGHTS,
            marked("setup.json against the checkpoint"),
            Message("{checkpoint_path} is not here", checkpoint_path=run.setup.checkpoint_path),
        )
        return
    yield from compared(WEIGHTS, "setup.checkpoint_bytes", run.setup.checkpoint_bytes, weights_bytes(folder))
    yield from compared(WEIGHTS, "setup.parts", run.setup.parts, model_parts(folder))
    yield from compared(WEIGHTS, "setup.origin", run.setup.origin, origin(folder))


def _quantized_told(run: RunData) -> Iterator[Finding]:
    if run.quantize is None:
        return
    record, folder = run.quantize, resolve(run.quantize.quant_path)
    source = resolve(record.checkpoint_path)
    if source.is_dir():
        yield from compared(WEIGHTS, "quantize.float_bytes", record.float_bytes, weights_bytes(source))
    path = folder / RECIPE
    if record.given is not None or not path.is_file():
        reason = Message(
            "{quant_path} holds no {recipe} of this kit", quant_path=record.quant_path, recipe=RECIPE
        )
        yield unchecked(WEIGHTS, marked("quantize.json against the weights' own"), reason)
        return
    yield from compared(WEIGHTS, "quantize.w8a8_bytes", record.w8a8_bytes, weights_bytes(folder))
    own = read_json(path)
    for name in ("recipe", "linears", "float_linears"):
        if isinstance(own, dict) and name in own:
            yield from compared(WEIGHTS, f"quantize.{name}", getattr(record, name), own[name])


def _answers_told(run: RunData) -> Iterator[Finding]:
    """Texts of the answers, from their ids by the tokenizer."""
    answers = run.precision.answers if run.precision else []
    if not answers or run.precision is None:
        return
    folder = resolve(run.precision.model_path)
    try:
        tokenizer = load_tokenizer(folder)
    except KitError as error:
        yield unchecked(ANSWERS, marked("texts of the answers against their ids"), str(error))
        return
    for index, answer in enumerate(answers):
        for name, ids, text in (
            ("float", answer.float_ids, answer.float_answer),
            ("w8a8", answer.w8a8_ids, answer.w8a8_answer),
        ):
            if ids:
                again = tokenizer.decode(ids, skip_special_tokens=True).strip()
                yield from compared(ANSWERS, f"precision.answers[{index}].{name}_answer", text, again)


def check_answer_files(run: RunData) -> Iterator[Finding]:
    """`answers.jsonl` and the guide's lines of each model, against the record."""
    if run.folder is None or run.precision is None:
        return
    for name, rows in answer_rows(run.precision.answers).items():
        path = run.folder / name
        if path.is_file():
            yield from compared(ANSWERS, name, read_rows(path, "input") if path.stat().st_size else [], rows)
        else:
            yield unchecked(ANSWERS, name, marked("there is none"))

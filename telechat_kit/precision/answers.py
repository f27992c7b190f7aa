"""Answers of both models to question lines, greedy, side by side; a run that is broken off keeps its lines."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.files import resolve, write_jsonl, writing
from telechat_kit.inference.generation import generate, generate_batch, stop_ids
from telechat_kit.inference.model_pair import Pair
from telechat_kit.messages import Message, marked
from telechat_kit.model.hashes import tokenizer_hash, weights_hash
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.precision.similarity import similarity
from telechat_kit.progress import track
from telechat_kit.provenance import code_hash, combined_hash
from telechat_kit.rows import read_numbered_rows
from telechat_kit.strict_json import parse
from telechat_kit.token_samples import chat_ids, common_prefix


@dataclass(frozen=True)
class Answer:
    """Both answers to one line, greedy, and where they part: after `common_tokens` equal tokens."""

    input: str
    float_answer: str
    w8a8_answer: str
    common_tokens: int
    float_tokens: int
    w8a8_tokens: int
    similarity: float  # of the characters, 0 to 1
    float_differs: str | None = None  # text of the first token that differs; None: equal, or ended
    w8a8_differs: str | None = None
    float_ids: list[int] = field(default_factory=list)
    w8a8_ids: list[int] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether both are the same to the last token."""
        return self.float_differs is None and self.w8a8_differs is None


@dataclass(frozen=True)
class _Asked:
    """The questions of a file as prompts, and how they are answered."""

    questions: list[str]
    prompts: list[list[int]]
    max_new_tokens: int
    repetition_penalty: float
    work_folder: Path | None
    batch: int


def answer_lines(
    pair: Pair,
    jsonl_path: str | Path,
    max_new_tokens: int,
    repetition_penalty: float,
    limit: int | None = None,
    work_folder: str | Path | None = None,
    batch: int = 1,
) -> list[Answer]:
    """Greedy answers of both models to the `{"input": ...}` lines of a file, at most `limit` of them.

    `batch` lines are answered at a time. With a `work_folder` every finished answer is written there at once, and a
    broken-off run goes on behind the last one. `write_answers` ends that.

    Raises:
        DataError: the file is missing, a line is malformed, or a question does not fit the context: found before
            any answer is made, so those of an earlier run stay.
        ParameterError: the batch or the limit is smaller than 1.
    """
    if batch < 1:
        raise ParameterError("answer_batch is {batch}: at least 1 line is answered at a time.", batch=batch)
    if limit is not None and limit < 1:
        raise ParameterError(
            "answers is {limit}: at least 1 line is answered. Give None for all.", limit=limit
        )
    path = resolve(jsonl_path)
    rows = dict(list(read_numbered_rows(path).items())[:limit])
    questions = [str(row["input"]) for row in rows.values()]
    prompts = [
        chat_ids(pair.tokenizer, question, Message("{path}, line {number}", path=path, number=number))
        for number, question in zip(rows, questions, strict=True)
    ]
    _check_lengths(pair, path, questions, prompts, max_new_tokens)
    folder = None if work_folder is None else resolve(work_folder)
    asked = _Asked(questions, prompts, max_new_tokens, repetition_penalty, folder, batch)
    ids = {name: _answer_all(pair, name, asked) for name in pair.folders}
    return [_side_by_side(pair, *row) for row in zip(questions, ids["float"], ids["w8a8"], strict=True)]


def _check_lengths(
    pair: Pair, path: Path, questions: Sequence[str], prompts: Sequence[list[int]], new: int
) -> None:
    context = min(config.training_seqlen for config in pair.configs.values())
    for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True), start=1):
        if len(prompt) + new > context:
            raise DataError(
                '{path}, question {number}: "{question}" has {count} tokens; with {new} new ones it exceeds the '
                "context of {context}. Shorten the line or lower max_new_tokens.",
                path=path,
                number=number,
                question=question[:60],
                count=len(prompt),
                new=new,
                context=context,
            )


def _answer_all(pair: Pair, name: str, asked: _Asked) -> list[list[int]]:
    """New ids of one model for every prompt, those of an interrupted run of the same work taken over."""
    journal = None if asked.work_folder is None else part_file(asked.work_folder, name)
    key = "" if journal is None else _work_key(pair, name, asked)
    done = [] if journal is None else _read_journal(journal, key, asked.questions)
    if len(done) == len(asked.questions):
        return done
    with pair.model(name) as model:
        starts = range(len(done), len(asked.prompts), asked.batch)
        total = -(-len(asked.prompts) // asked.batch)
        for start in track(starts, Message("answers of {name}", name=name), total, total - len(starts)):
            for ids in _answer(model, asked, asked.prompts[start : start + asked.batch]):
                done.append(ids)
                if journal is not None:
                    row = {"key": key, "input": asked.questions[len(done) - 1], "token_ids": ids}
                    _append(journal, row)
    return done


def _answer(model: TelechatForCausalLM, asked: _Asked, prompts: Sequence[list[int]]) -> list[list[int]]:
    """New ids for `prompts`; one by itself goes the fastest way."""
    new, penalty, stops = asked.max_new_tokens, asked.repetition_penalty, stop_ids(model)
    if len(prompts) == 1:
        return [generate(model, prompts[0], new, repetition_penalty=penalty, stop_ids=stops).token_ids]
    return generate_batch(model, prompts, new, repetition_penalty=penalty, stop_ids=stops)


def part_file(folder: Path, name: str) -> Path:
    """Where the answers of one model stand while they are made."""
    return folder / f".answers-{name}.jsonl.part"


def _work_key(pair: Pair, name: str, asked: _Asked) -> str:
    """What must be equal for finished answers to be kept."""
    folder = pair.folders[name]
    rule = (
        f"{asked.max_new_tokens} {asked.repetition_penalty} {asked.batch} {pair.device} {torch.__version__}"
    )
    return combined_hash([weights_hash(folder), tokenizer_hash(pair.float_folder), rule, code_hash()])


def _read_journal(path: Path, key: str, questions: Sequence[str]) -> list[list[int]]:
    """The answers in `path` that belong to this work, up to the first line that does not; the rest is dropped.

    A full disk or a power cut ends the file anywhere, inside a character too.
    """
    if not path.is_file():
        return []
    rows = []
    for line, question in zip(path.read_bytes().split(b"\n"), questions, strict=False):
        row = _journal_row(line, path)
        if row is None or row["key"] != key or row["input"] != question:
            break
        rows.append(row)
    write_jsonl(path, rows)
    return [row["token_ids"] for row in rows]


def _journal_row(line: bytes, path: Path) -> dict[str, Any] | None:
    """An answer of the journal; None if the line is none."""
    try:
        row = parse(line, str(path), marked("Remove it."))
    except DataError:
        return None
    if not isinstance(row, dict) or not {"key", "input", "token_ids"} <= set(row):
        return None
    ids = row["token_ids"]
    return row if isinstance(ids, list) and all(type(token) is int for token in ids) else None


def _append(path: Path, row: dict[str, Any]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _side_by_side(pair: Pair, question: str, first: list[int], second: list[int]) -> Answer:
    texts = [pair.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in (first, second)]
    common = common_prefix(first, second)
    parted = common < max(len(first), len(second))
    differs = [pair.tokenizer.decode(ids[common : common + 1]) for ids in (first, second)]
    return Answer(
        input=question,
        float_answer=texts[0],
        w8a8_answer=texts[1],
        common_tokens=common,
        float_tokens=len(first),
        w8a8_tokens=len(second),
        similarity=similarity(texts[0], texts[1]),
        float_differs=differs[0] if parted else None,
        w8a8_differs=differs[1] if parted else None,
        float_ids=first,
        w8a8_ids=second,
    )


def write_answers(run_folder: str | Path, answers: Sequence[Answer]) -> list[Path]:
    """`answers.jsonl` with both answers, and the guide's `{"input", "infer"}` lines, one file for each model.

    Example:
        >>> [path.name for path in write_answers("results/tiny", measured.answers)]
        ['answers.jsonl', 'infer_float.jsonl', 'infer_w8a8.jsonl']
    """
    folder = resolve(run_folder)
    paths = [write_jsonl(folder / name, lines) for name, lines in answer_rows(answers).items()]
    for name in ("float", "w8a8"):
        part_file(folder, name).unlink(missing_ok=True)
    return paths


def answer_rows(answers: Sequence[Answer]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each file of answers."""
    return {
        "answers.jsonl": [asdict(answer) for answer in answers],
        "infer_float.jsonl": [{"input": a.input, "infer": a.float_answer} for a in answers],
        "infer_w8a8.jsonl": [{"input": a.input, "infer": a.w8a8_answer} for a in answers],
    }

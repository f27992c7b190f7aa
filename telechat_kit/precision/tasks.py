"""Multiple-choice accuracy of both models through lm-evaluation-harness, from files on this machine.

The harness is an optional extra: `pip install telechat-kit[tasks]`. Nothing is fetched.
"""

import csv
import importlib.util
import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat_kit.errors import DataError, KitError
from telechat_kit.files import resolve, write_jsonl
from telechat_kit.inference.model_pair import Pair
from telechat_kit.inference.whole_sequences import hidden_states
from telechat_kit.installed import require_version
from telechat_kit.messages import marked
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.precision.divergence import language_of
from telechat_kit.rows import read_numbered_rows
from telechat_kit.statistics import Estimate, paired_difference, share
from telechat_kit.strict_json import read_bytes
from telechat_kit.temporary import temporary_folder
from telechat_kit.variables import set_meanwhile

LETTERS = "ABCD"
#: What stands before a question, as the papers of C-Eval, CMMLU and MMLU have it
PROMPTS = {
    "Chinese": "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n题目：{question}\n{choices}\n答案是：",
    "English": "The following is a multiple choice question (with answer) about {subject}.\n\n{question}\n{choices}\nAnswer:",
}
#: Columns of the published files, in small or capital letters; MMLU's have no header, but this order
_COLUMNS = ("question", "a", "b", "c", "d", "answer")
#: Where the published archives keep questions; not every split of every archive has the answers
_SPLITS = ("test", "val", "dev")


@dataclass(frozen=True)
class Question:
    """One question with four choices; `answer` is A, B, C or D."""

    subject: str
    question: str
    choices: tuple[str, str, str, str]
    answer: str


@dataclass(frozen=True)
class TaskResult:
    """Accuracy on one group of questions, float and W8A8, and the paired difference (W8A8 less float)."""

    name: str
    questions: int
    accuracy_float: Estimate
    accuracy_w8a8: Estimate
    difference: Estimate
    same_choice: float  # share of the questions at which both choose the same letter
    harness: str


def require_harness() -> str:
    """The version of lm-evaluation-harness that is installed.

    Raises:
        KitError: it is not, or too old.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise KitError(
            'tasks_path needs lm-evaluation-harness: pip install "telechat-kit[tasks]", or leave tasks_path empty.'
        )
    return require_version("lm_eval", "tasks")


def load_questions(path: str | Path) -> list[Question]:
    """Questions of a `.jsonl` file (subject, question, choices, answer), or of a folder as C-Eval, CMMLU or MMLU ship.

    Raises:
        DataError: nothing is there, or a row is no question with four choices and an answer; file and line named.
    """
    path = resolve(path)
    if path.is_dir():
        return _read_folder(path)
    rows = read_numbered_rows(path, "question")
    return [_question(f"{path}, line {number}", row) for number, row in rows.items()]


def _question(where: str, row: dict[str, Any]) -> Question:
    choices, answer = row.get("choices"), str(row.get("answer", "")).strip().upper()
    if not isinstance(choices, list) or len(choices) != len(LETTERS) or answer not in tuple(LETTERS):
        raise DataError(
            '{where}: expected four "choices" and an "answer" A, B, C or D. Correct the line.', where=where
        )
    if not all(isinstance(choice, str | int | float) and str(choice).strip() for choice in choices):
        raise DataError("{where}: a choice is empty, or no text. Correct the line.", where=where)
    if not row["question"].strip():
        raise DataError("{where}: the question is empty. Correct the line.", where=where)
    texts = tuple(str(choice) for choice in choices)
    return Question(str(row.get("subject", "general")), row["question"], texts, answer)  # type: ignore[arg-type]


def _read_folder(folder: Path) -> list[Question]:
    splits = [files for name in (*_SPLITS, "") if (files := _csv_files(folder / name))]
    if not splits:
        raise DataError(
            "{folder} holds no .csv files, nor do {splits} below it. Give the folder of the unpacked C-Eval, "
            "CMMLU or MMLU, or a .jsonl file.",
            folder=folder,
            splits=" or ".join(_SPLITS),
        )
    answered = next((files for files in splits if _has_answers(files[0])), splits[0])
    return [question for path in answered for question in _read_csv(path)]


def _csv_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".csv" and path.is_file())


def _has_answers(path: Path) -> bool:
    """Whether a file is one of questions with answers: C-Eval's test split comes without."""
    rows = _rows(path)
    return bool(rows) and "answer" in (_header(rows[0][1]) or _COLUMNS)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of a CSV file with the numbers of the lines that they end in; blank ones left out."""
    content = read_bytes(path, marked("Copy the file again, or remove it."))
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        return [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "{path} is no CSV file in UTF-8: {error}. Convert it.", path=path, error=error
        ) from error


def _header(row: list[str]) -> list[str] | None:
    """Names of the columns in small letters, if the first row of a file gives them."""
    names = [cell.strip().lower() for cell in row]
    return names if {"question", "a", "b", "c", "d"} <= set(names) else None


def _read_csv(path: Path) -> Iterator[Question]:
    subject = re.sub("_(test|val|dev)$", "", path.stem).replace("_", " ")
    rows = _rows(path)
    header = _header(rows[0][1])
    if header and (missing := [name for name in _COLUMNS if name not in header]):
        raise DataError(
            '{path} has no column "{missing}". Give a split with questions and answers.',
            path=path,
            missing=missing[0],
        )
    if header and (twice := [name for name in _COLUMNS if header.count(name) > 1]):
        raise DataError(
            '{path}: two columns are called "{twice}". Remove one of them.', path=path, twice=twice[0]
        )
    if header and not rows[1:]:
        raise DataError(
            "{path} holds a header and no questions. Copy the file again, or remove it.", path=path
        )
    columns = [header.index(name) for name in _COLUMNS] if header else list(range(len(_COLUMNS)))
    width = len(header or _COLUMNS)
    for number, row in rows[1:] if header else rows:
        if len(row) != width:
            raise DataError(
                "{path}, line {number}: {count} columns, expected {width}.",
                path=path,
                number=number,
                count=len(row),
                width=width,
            )
        question, *choices, answer = (row[column] for column in columns)
        values = {"subject": subject, "question": question, "choices": choices, "answer": answer}
        yield _question(f"{path}, line {number}", values)


def measure_tasks(pair: Pair, questions: Sequence[Question]) -> list[TaskResult]:
    """Accuracy of both models by language and on all questions."""
    version = require_harness()
    chosen = {name: _choices(pair, name, questions) for name in pair.folders}
    languages = [language_of(question.question) for question in questions]
    groups = {name: [i for i, own in enumerate(languages) if own == name] for name in sorted(set(languages))}
    if len(groups) > 1:
        groups["all"] = list(range(len(questions)))
    return [
        _result(
            name,
            [questions[i] for i in rows],
            [chosen["float"][i] for i in rows],
            [chosen["w8a8"][i] for i in rows],
            version,
        )
        for name, rows in groups.items()
    ]


def _result(
    name: str, questions: Sequence[Question], first: list[int], second: list[int], version: str
) -> TaskResult:
    right = [[LETTERS[i] == q.answer for i, q in zip(row, questions, strict=True)] for row in (first, second)]
    return TaskResult(
        name=name,
        questions=len(questions),
        accuracy_float=share(sum(right[0]), len(questions)),
        accuracy_w8a8=share(sum(right[1]), len(questions)),
        difference=paired_difference(*right),
        same_choice=sum(a == b for a, b in zip(first, second, strict=True)) / len(questions),
        harness=f"lm_eval {version}",
    )


def _choices(pair: Pair, name: str, questions: Sequence[Question]) -> list[int]:
    """Number of the choice that one model finds the most likely, for each question."""
    with _offline(), temporary_folder() as folder, pair.model(name) as model:
        from lm_eval import simple_evaluate  # noqa: PLC0415  (an optional extra, slow to import)

        data = write_jsonl(folder / "questions.jsonl", [_row(question) for question in questions])
        found = simple_evaluate(
            model=_harness_model(model, pair.tokenizer),
            tasks=[_task(data, folder)],
            num_fewshot=0,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
    samples = sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"])
    return [_most_likely(sample["filtered_resps"]) for sample in samples]


def _harness_model(model: TelechatForCausalLM, tokenizer: Any) -> Any:
    """The model as the harness asks it: logits of whole sequences, which the engine reads where it can."""
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    class Reader(HFLM):
        """The harness's own model of transformers, but for the forward pass."""

        def _model_call(self, inps: Tensor, **_: Any) -> Tensor:
            return torch.stack([model.lm_head(states) for states in hidden_states(model, inps.tolist())])

    return Reader(pretrained=model, tokenizer=tokenizer, batch_size=1)


TASK = "telechat_kit_choices"


def _task(data: Path, cache: Path) -> dict[str, Any]:
    """The questions as a task of the harness: log-likelihood of each letter behind the prompt."""
    return {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(cache)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": list(LETTERS),
        "doc_to_target": "target",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _row(question: Question) -> dict[str, Any]:
    choices = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=True))
    prompt = PROMPTS[language_of(question.question)].format(
        subject=question.subject, question=question.question, choices=choices
    )
    return {"prompt": prompt, "target": LETTERS.index(question.answer), **asdict(question)}


def _most_likely(responses: Sequence[Any]) -> int:
    likelihoods = [float(response[0]) for response in responses]
    return likelihoods.index(max(likelihoods))


@contextmanager
def _offline() -> Iterator[None]:
    """The harness and the libraries below it reach for hubs unless told not to, and say much on their loggers."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with set_meanwhile(dict.fromkeys(names, "1")):
            yield
    finally:
        logging.disable(level)

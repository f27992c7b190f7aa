"""Multiple choice: questions from the files that C-Eval, CMMLU and MMLU ship, and both models' choices."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from telechat_kit.errors import DataError, KitError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import measure_tasks
from telechat_kit.precision.tasks import LETTERS, PROMPTS, Question, load_questions, require_harness

SHIPPED = "params/data/choices-zh-en.jsonl"

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is an optional extra"
)


def folder_of(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("val/high_school_physics_val.csv", "id,question,A,B,C,D,answer\n0,问题,一,二,三,四,C\n"),
        ("test/high_school_physics.csv", ",Question,A,B,C,D,Answer\n0,问题,一,二,三,四,C\n"),
        ("test/high_school_physics_test.csv", "问题,一,二,三,四,C\n"),
        ("high_school_physics_test.csv", "\ufeff问题,一,二,三,四,c\n"),
    ],
    ids=["C-Eval", "CMMLU", "MMLU", "MMLU, files alone"],
)
def test_the_published_folders_are_read(tmp_path: Path, name: str, content: str) -> None:
    (question,) = load_questions(folder_of(tmp_path, name, content))
    assert question == Question("high school physics", "问题", ("一", "二", "三", "四"), "C")


def test_the_shipped_questions_are_in_two_languages_and_their_answers_spread_evenly() -> None:
    questions = load_questions(SHIPPED)
    assert len(questions) == 48
    counts = {letter: sum(question.answer == letter for question in questions) for letter in LETTERS}
    assert set(counts.values()) == {12}
    for question in questions:
        assert len(set(question.choices)) == 4, question.question


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": "A"}, 'line 2: expected four "choices"'),
        ({"question": "q", "choices": list("abcd"), "answer": "E"}, 'line 2: expected four "choices"'),
        ({"question": "q", "choices": list("abcd"), "answer": ""}, 'line 2: expected four "choices"'),
        ({"choices": list("abcd"), "answer": "A"}, "line 2"),
        (
            {"question": "q", "choices": ["a", None, "c", "d"], "answer": "A"},
            "line 2: a choice is empty, or no text",
        ),
        (
            {"question": "q", "choices": ["a", " ", "c", "d"], "answer": "A"},
            "line 2: a choice is empty, or no text",
        ),
    ],
)
def test_a_malformed_question_is_named(tmp_path: Path, row: dict[str, object], problem: str) -> None:
    good = json.dumps({"question": "q", "choices": list("abcd"), "answer": "A"})
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{good}\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=problem):
        load_questions(path)


def test_a_folder_without_questions_and_a_row_with_too_few_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.csv files"):
        load_questions(tmp_path)
    with pytest.raises(DataError, match=r"x_test\.csv, line 2: 3 columns, expected 6"):
        load_questions(folder_of(tmp_path, "test/x_test.csv", "q,a,b,c,d,A\nq,a,b\n"))


CEVAL = {
    "dev/logic_dev.csv": "id,question,A,B,C,D,answer,explanation\n0,哪一个是颜色？,红,桌,椅,门,A,红是颜色\n",
    "test/logic_test.csv": "id,question,A,B,C,D\n0,哪种动物会飞？,猫,鸟,鱼,狗\n",
    "val/logic_val.csv": "id,question,A,B,C,D,answer\n0,下列说法不正确的是____,一,二,三,四,A\n",
}


def test_the_split_that_has_answers_is_taken(tmp_path: Path) -> None:
    for name, content in CEVAL.items():
        folder_of(tmp_path, name, content)
    assert [question.question for question in load_questions(tmp_path)] == ["下列说法不正确的是____"]
    (tmp_path / "val" / "logic_val.csv").unlink()
    assert [question.question for question in load_questions(tmp_path)] == ["哪一个是颜色？"]
    (tmp_path / "dev" / "logic_dev.csv").unlink()
    with pytest.raises(DataError, match=r'logic_test\.csv has no column "answer"'):
        load_questions(tmp_path)


def test_a_question_in_two_lines_and_choices_that_are_letters_stay_in_their_columns(tmp_path: Path) -> None:
    content = '"two\nlines",a,b,c,d,D\n"A or B?",A,B,C,D,A\n'
    first, second = load_questions(folder_of(tmp_path, "test/x_test.csv", content))
    assert first == Question("x", "two\nlines", ("a", "b", "c", "d"), "D")
    assert second.choices == ("A", "B", "C", "D")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"x\.csv is empty"),
        ("id,question,A,B,C,D,answer\n", r"x\.csv holds a header and no questions"),
        ("id,question,A,A,B,C,D,answer\n0,q,a,b,c,d,e,A\n", r'x\.csv: two columns are called "a"'),
        ("id,question,A,B,C,D,answer\n0,,a,b,c,d,A\n", r"x\.csv, line 2: the question is empty"),
        ("1,q,a,b,c,A,B\n", r"x\.csv, line 1: 7 columns, expected 6"),
        ("id,question,A,B,C,D,answer\n0,q,a,b,c,d\n", r"x\.csv, line 2: 6 columns, expected 7"),
    ],
)
def test_an_empty_file_and_shifted_columns_are_refused(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        load_questions(folder_of(tmp_path, "x.csv", content))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the harness is installed")
def test_without_the_harness_the_extra_is_named() -> None:
    with pytest.raises(KitError, match=r"pip install \"telechat-kit\[tasks\]\""):
        require_harness()


@needs_harness
def test_the_choice_is_the_letter_with_the_largest_likelihood(pair: Pair) -> None:
    questions = load_questions(SHIPPED)[20:28]
    found = {result.name: result for result in measure_tasks(pair, questions)}
    assert set(found) == {"Chinese", "English", "all"}
    assert [found[name].questions for name in ("Chinese", "English", "all")] == [4, 4, 8]
    right = {name: [chosen(pair, name, q) == q.answer for q in questions] for name in pair.models}
    assert found["all"].accuracy_float.value == sum(right["float"]) / 8
    assert found["all"].accuracy_w8a8.value == sum(right["w8a8"]) / 8
    difference = (sum(right["w8a8"]) - sum(right["float"])) / 8
    assert found["all"].difference.value == pytest.approx(difference)
    assert found["all"].difference.low <= difference <= found["all"].difference.high
    assert found["all"].harness.startswith("lm_eval ")


def chosen(pair: Pair, name: str, question: Question) -> str:
    """The letter by hand: the sum of the log-probabilities of the tokens of " A", " B" ... behind the prompt."""
    choices = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=True))
    language = "Chinese" if "\u4e00" <= question.question[0] <= "\u9fff" else "English"
    prompt = PROMPTS[language].format(subject=question.subject, question=question.question, choices=choices)

    def likelihood(letter: str) -> float:
        start = pair.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        whole = pair.tokenizer(f"{prompt} {letter}", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            rows = pair.models[name](torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(rows[i - 1, whole[i]]) for i in range(len(start), len(whole)))

    return max(LETTERS, key=likelihood)

"""Answers of both models: those of `generate`, side by side, kept line by line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.inference.generation import generate, generate_batch
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import Answer, answer_lines, write_answers
from telechat_kit.precision import answers as answers_module
from telechat_kit.precision.answers import part_file
from telechat_kit.token_samples import chat_ids


def test_answers_are_those_of_both_models(pair: Pair, questions: Path) -> None:
    answers = answer_lines(pair, questions, max_new_tokens=6, repetition_penalty=1.0)
    assert [answer.input for answer in answers] == ["天翼云是什么?", "b", "third"]
    for answer in answers:
        prompt = chat_ids(pair.tokenizer, answer.input)
        for name, text, count in [
            ("float", answer.float_answer, answer.float_tokens),
            ("w8a8", answer.w8a8_answer, answer.w8a8_tokens),
        ]:
            stop = pair.models[name].generation_config.eos_token_id
            ids = generate(pair.models[name], prompt, 6, stop_ids=(stop,)).token_ids
            assert pair.tokenizer.decode(ids, skip_special_tokens=True).strip() == text
            assert len(ids) == count


def test_equal_models_agree_to_the_end(tiny_folder: Path, questions: Path) -> None:
    same = Pair(tiny_folder, tiny_folder, "cpu")
    for answer in answer_lines(same, questions, max_new_tokens=5, repetition_penalty=1.1):
        assert answer.float_answer == answer.w8a8_answer
        assert answer.common_tokens == answer.float_tokens == answer.w8a8_tokens
        assert answer.similarity == 1.0


def test_the_common_prefix_ends_at_the_first_token_that_differs(pair: Pair, questions: Path) -> None:
    for answer in answer_lines(pair, questions, max_new_tokens=30, repetition_penalty=1.0):
        prompt = chat_ids(pair.tokenizer, answer.input)
        first, second = (generate(model, prompt, 30).token_ids for model in pair.models.values())
        n = answer.common_tokens
        assert first[:n] == second[:n]
        shortest = min(answer.float_tokens, answer.w8a8_tokens)
        assert n == shortest or first[n] != second[n]
        assert 0.0 <= answer.similarity <= 1.0


def test_an_answer_that_stops_early_has_its_whole_length_in_common(
    tiny_folder: Path, questions: Path
) -> None:
    same = Pair(tiny_folder, tiny_folder, "cpu")
    (answer,) = answer_lines(same, questions, 6, 1.3, limit=1)
    assert answer.common_tokens == 6
    prompt = chat_ids(same.tokenizer, answer.input)
    third = generate(same.models["float"], prompt, 6, repetition_penalty=1.3).token_ids[2]
    same.models["w8a8"].generation_config.eos_token_id = third
    (answer,) = answer_lines(same, questions, 6, 1.3, limit=1)
    assert (answer.common_tokens, answer.float_tokens, answer.w8a8_tokens) == (3, 6, 3)
    assert answer.similarity < 1.0


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_answers_in_batches_are_those_of_one_at_a_time(pair: Pair, questions: Path, penalty: float) -> None:
    alone = [a.float_ids for a in answer_lines(pair, questions, 12, penalty)]
    assert [a.float_ids for a in answer_lines(pair, questions, 12, penalty, batch=3)] == alone
    assert [a.float_ids for a in answer_lines(pair, questions, 12, penalty, batch=2)] == alone


def test_each_answer_of_a_batch_ends_at_its_own_stop_token(pair: Pair) -> None:
    model = pair.models["float"]
    prompts = [[7, 8, 9], [20, 30, 40, 50, 60], [11]]
    alone = [generate(model, prompt, 10).token_ids for prompt in prompts]
    stop = alone[1][4]
    expected = [generate(model, prompt, 10, stop_ids=(stop,)).token_ids for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 1
    assert generate_batch(model, prompts, 10, stop_ids=(stop,)) == expected


def test_a_batch_of_no_lines_is_refused(pair: Pair, questions: Path) -> None:
    with pytest.raises(ParameterError, match="answer_batch is 0"):
        answer_lines(pair, questions, 1, 1.0, batch=0)


def test_only_as_many_lines_are_answered_as_asked_for(pair: Pair, questions: Path) -> None:
    answers = answer_lines(pair, questions, 1, 1.0, limit=2)
    assert [answer.input for answer in answers] == ["天翼云是什么?", "b"]


def test_a_question_that_does_not_fit_the_context_is_named(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"input": "long " * 120}))
    with pytest.raises(
        DataError, match=r'"long long .*with 8 new ones it exceeds the context of 512. Shorten'
    ):
        answer_lines(pair, path, 8, 1.0)


def test_answers_are_written_side_by_side_and_in_the_form_of_the_guide(tmp_path: Path) -> None:
    answer = Answer("问?", "float\nanswer", "int8 答", 2, 5, 4, 0.5)
    paths = write_answers(tmp_path, [answer, answer])
    rows = {
        path.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in paths
    }
    assert rows["infer_float.jsonl"] == [{"input": "问?", "infer": "float\nanswer"}] * 2
    assert rows["infer_w8a8.jsonl"] == [{"input": "问?", "infer": "int8 答"}] * 2
    assert [Answer(**row) for row in rows["answers.jsonl"]] == [answer, answer]


def test_no_answer_is_made_if_a_later_line_does_not_fit(pair: Pair, tmp_path: Path) -> None:
    write_answers(tmp_path, [Answer("q", "one", "two", 0, 1, 1, 0.0)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps({"input": "short"}) + "\n" + json.dumps({"input": "long " * 120}) + "\n")
    with pytest.raises(DataError, match=r"lines\.jsonl, question 2"):
        answer_lines(pair, path, 8, 1.0, work_folder=tmp_path)
    path.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_broken_off_run_goes_on_behind_its_last_answer(
    pair: Pair, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer_lines(pair, questions, 5, 1.03)
    made: list[int] = []
    real = answers_module.generate

    def breaks_at_the_second(*arguments: object, **options: object) -> object:
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(answers_module, "generate", breaks_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        answer_lines(pair, questions, 5, 1.03, work_folder=tmp_path)
    assert len(part_file(tmp_path, "float").read_text(encoding="utf-8").splitlines()) == 1
    assert answer_lines(pair, questions, 5, 1.03, work_folder=tmp_path) == expected
    assert len(made) == 2 + 2 + 3  # what was answered before the break was not answered again
    write_answers(tmp_path, expected)
    assert not part_file(tmp_path, "float").exists()
    assert not part_file(tmp_path, "w8a8").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: line.index("天".encode()) + 1],
        lambda _line: b"[1]\n",
        lambda _line: b'{"key": 1}\n',
        lambda line: line.replace(b'"token_ids": [', b'"token_ids": ["x", '),
        lambda _line: b"\x00" * 40,
        lambda _line: b"[" * 100_000,
    ],
)
def test_a_journal_line_that_a_full_disk_left_is_made_anew(
    pair: Pair, questions: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    whole = answer_lines(pair, questions, 3, 1.0, work_folder=tmp_path)
    journal = part_file(tmp_path, "float")
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(damage(first) + b"".join(rest))
    assert answer_lines(pair, questions, 3, 1.0, work_folder=tmp_path) == whole
    assert journal.read_bytes().splitlines(keepends=True) == [first, *rest]


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("inf"), float("nan")])
def test_a_penalty_that_means_nothing_is_refused(pair: Pair, questions: Path, penalty: float) -> None:
    for batch in (1, 2):
        with pytest.raises(ParameterError, match="give a finite number above 0"):
            answer_lines(pair, questions, 3, penalty, batch=batch)


def test_no_line_at_all_is_refused(pair: Pair, questions: Path) -> None:
    with pytest.raises(ParameterError, match="answers is 0"):
        answer_lines(pair, questions, 3, 1.0, limit=0)


@pytest.mark.parametrize("change", ["cut off", "other settings", "other question"])
def test_answers_of_other_work_are_made_anew(
    pair: Pair, questions: Path, tmp_path: Path, change: str
) -> None:
    expected = answer_lines(pair, questions, 4, 1.0, work_folder=tmp_path)
    journal = part_file(tmp_path, "float")
    lines = journal.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[1])
    if change == "cut off":
        lines[1:] = [lines[1][:20]]
    else:
        row["key" if change == "other settings" else "input"] = "another"
        lines[1] = json.dumps({**row, "token_ids": [9, 9]})
    journal.write_text("\n".join(lines), encoding="utf-8")
    assert answer_lines(pair, questions, 4, 1.0, work_folder=tmp_path) == expected
    assert len(journal.read_text(encoding="utf-8").splitlines()) == 3


def test_the_first_tokens_that_differ_are_told(pair: Pair, questions: Path) -> None:
    for answer in answer_lines(pair, questions, 30, 1.0):
        n = answer.common_tokens
        assert answer.float_ids[:n] == answer.w8a8_ids[:n]
        if answer.float_ids == answer.w8a8_ids:
            assert (answer.float_differs, answer.w8a8_differs) == (None, None)
        else:
            assert answer.float_differs == pair.tokenizer.decode(answer.float_ids[n : n + 1])
            assert answer.w8a8_differs == pair.tokenizer.decode(answer.w8a8_ids[n : n + 1])

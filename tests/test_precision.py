"""Float against W8A8 on the tiny model: every figure recomputed by hand from dumped logits."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from telechat_kit.data import Block
from telechat_kit.errors import CheckpointError, DataError, ParameterError
from telechat_kit.generation import chat_ids, generate
from telechat_kit.precision import (
    CHUNK,
    SCHEMA,
    Answer,
    Pair,
    PrecisionRecord,
    answer_lines,
    evaluation_blocks,
    measure_divergence,
    measure_precision,
    write_answers,
)
from telechat_kit.records import read_record, write_record

TOPICS = "pydoc_data.topics"


@pytest.fixture(scope="module")
def pair(tiny_folder: Path, tiny_w8a8_folder: Path) -> Pair:
    return Pair(tiny_folder, tiny_w8a8_folder, "cpu")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = ['{"input": "天翼云是什么?"}', '{"input": "b", "other": 1}', '{"input": "third"}']
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def random_blocks(count: int, length: int) -> list[Block]:
    ids = np.random.default_rng(count).integers(6, 262, size=(count, length))
    return [Block(0, length, tuple(row.tolist())) for row in ids]


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def dumped(pair: Pair, block: Block, name: str) -> np.ndarray:
    """Log-probabilities in double precision `[T - 1, vocab]` from the logits of one forward pass."""
    with torch.inference_mode():
        logits = pair.models[name](torch.tensor([block.ids])).logits[0, :-1]
    return log_probabilities(logits.double().numpy())


def test_a_model_does_not_diverge_from_itself(tiny_folder: Path) -> None:
    found = measure_divergence(Pair(tiny_folder, tiny_folder, "cpu"), random_blocks(3, 20))
    for estimate, exact in [(found.kl_mean, 0.0), (found.perplexity_ratio, 1.0), (found.top1_agreement, 1.0)]:
        assert (estimate.low, estimate.value, estimate.high) == (exact, exact, exact)
    assert found.kl_max == 0.0
    assert set(found.kl_quantiles.values()) == {0.0}
    assert found.perplexity_float == found.perplexity_w8a8
    assert (found.sequences, found.tokens) == (3, 57)


def test_every_figure_is_that_of_the_dumped_logits(pair: Pair) -> None:
    blocks = random_blocks(3, 25)
    p, q = (np.stack([dumped(pair, block, name) for block in blocks]) for name in ("float", "w8a8"))
    targets = np.array([block.ids[1:] for block in blocks])[..., None]
    loss_p, loss_q = (-np.take_along_axis(each, targets, -1) for each in (p, q))
    kl = (np.exp(p) * (p - q)).sum(-1)

    found = measure_divergence(pair, blocks)
    assert found.perplexity_float.value == pytest.approx(np.exp(loss_p.mean()), rel=1e-4)
    assert found.perplexity_w8a8.value == pytest.approx(np.exp(loss_q.mean()), rel=1e-4)
    assert found.perplexity_ratio.value == pytest.approx(np.exp(loss_q.mean() - loss_p.mean()), rel=1e-4)
    assert found.kl_mean.value == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-4)
    assert found.top1_agreement.value == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    for share in ("50", "99.9"):
        assert found.kl_quantiles[share] == pytest.approx(np.quantile(kl, float(share) / 100), rel=1e-4)
    assert found.kl_mean.value > 1e-4  # the W8A8 model is really another one


def test_intervals_hold_their_figures(pair: Pair) -> None:
    found = measure_divergence(pair, random_blocks(6, 16))
    for estimate in (found.perplexity_float, found.perplexity_w8a8, found.kl_mean, found.top1_agreement):
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.coverage == 0.95


def test_blocks_longer_than_a_chunk_give_every_position(pair: Pair) -> None:
    (block,) = random_blocks(1, CHUNK + 9)
    found = measure_divergence(pair, [block])
    loss = -np.take_along_axis(dumped(pair, block, "float"), np.array(block.ids[1:])[:, None], -1)
    assert found.tokens == CHUNK + 8
    assert found.perplexity_float.value == pytest.approx(np.exp(loss.mean()), rel=1e-4)


def test_weights_that_overflow_are_named(tiny_folder: Path) -> None:
    pair = Pair(tiny_folder, tiny_folder, "cpu")
    with torch.no_grad():
        pair.models["w8a8"].transformer.h[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="logits are not finite at position 0"):
        measure_divergence(pair, random_blocks(1, 5))


def test_calibration_blocks_are_left_out_of_the_evaluation(pair: Pair) -> None:
    recipe = json.loads((pair.w8a8_folder / "quantize.json").read_text())["recipe"]
    seen = {position for low, high in recipe["calibration_blocks"] for position in range(low, high)}
    blocks = evaluation_blocks(pair, TOPICS, 64, 2000, seed=0)
    assert not seen & {position for block in blocks for position in range(block.start, block.stop)}
    everything = evaluation_blocks(Pair(pair.float_folder, pair.float_folder), TOPICS, 64, 2000, seed=0)
    assert [block.start for block in blocks] != [block.start for block in everything]


def test_only_blocks_of_the_calibrated_text_itself_are_left_out(
    pair: Pair, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pair.w8a8_folder, tmp_path / "w8a8"))
    details = json.loads((folder / "quantize.json").read_text())
    (tmp_path / "seen.txt").write_text("y" * 40)
    (tmp_path / "other.txt").write_text("z" * 40)
    digest = hashlib.sha256(b"y" * 40 + b"\n").hexdigest()
    details["recipe"].update(calibration_sha256=digest, calibration_blocks=[[0, 10], [15, 40]])
    (folder / "quantize.json").write_text(json.dumps(details))
    calibrated = Pair(tiny_folder, folder, "cpu")
    assert len(evaluation_blocks(calibrated, str(tmp_path / "other.txt"), 10, 4, seed=0)) == 4
    with pytest.raises(DataError, match=r"seen\.txt gives 0 free blocks"):
        evaluation_blocks(calibrated, str(tmp_path / "seen.txt"), 10, 1, seed=0)


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


def test_checkpoints_of_different_vocabularies_do_not_belong_together(
    tiny_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name] = tensors[name][:200].clone()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    for model_path, quant_path in [(tiny_folder, other), (other, tiny_folder), (other, other)]:
        with pytest.raises(CheckpointError, match=r"do not belong together. Give a pair of one model"):
            Pair(model_path, quant_path, "cpu")


def test_a_malformed_question_is_found_before_the_models_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"input": "a"}\n{"question": "b"}\n')
    with pytest.raises(DataError, match=r"questions\.jsonl, line 2"):
        measure_precision(tmp_path / "no model", tmp_path / "no model", path)


def test_the_record_says_what_was_measured_and_comes_back_equal(
    pair: Pair, questions: Path, tmp_path: Path
) -> None:
    record = measure_precision(
        pair.float_folder,
        pair.w8a8_folder,
        questions,
        sequences=3,
        tokens=16,
        max_new_tokens=3,
        seed=4,
        answers=1,
    )
    assert len(record.answers) == 1
    assert record.blocks == [(b.start, b.stop) for b in evaluation_blocks(pair, TOPICS, 16, 3, seed=4)]
    assert (record.divergence.sequences, record.divergence.tokens) == (3, 45)
    assert set(record.conditions.hashes) == {
        "float_weights",
        "float_tokenizer",
        "w8a8_weights",
        "w8a8_tokenizer",
    }
    write_record(tmp_path, record)
    assert read_record(tmp_path, PrecisionRecord, SCHEMA) == record


def test_sequences_of_one_token_are_refused(pair: Pair) -> None:
    with pytest.raises(ParameterError, match="at least 2 tokens"):
        evaluation_blocks(pair, TOPICS, 1, 4, 0)

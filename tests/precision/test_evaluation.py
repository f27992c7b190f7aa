"""All of `03_precision` in one call, and its record."""

from pathlib import Path

import pytest

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import (
    SCHEMA,
    Evaluation,
    PrecisionMeasurement,
    PrecisionRecord,
    evaluation_blocks,
    measure_precision,
)
from telechat_kit.records import read_record, write_record

TOPICS = "pydoc_data.topics"


def test_a_malformed_question_is_found_before_the_models_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"input": "a"}\n{"answer": "b"}\n')
    with pytest.raises(DataError, match=r"questions\.jsonl, line 2"):
        measure_precision(
            tmp_path / "no model",
            tmp_path / "no model",
            Evaluation(path, kinds_path="", source_sequences=0),
        )


def test_the_record_says_what_was_measured_and_comes_back_equal(
    pair: Pair, questions: Path, tmp_path: Path
) -> None:
    record = measure_precision(
        pair.float_folder,
        pair.w8a8_folder,
        Evaluation(
            questions,
            text_sequences=3,
            text_tokens=16,
            max_new_tokens=3,
            seed=4,
            answers=1,
            kinds_path="",
            source_sequences=0,
        ),
    )
    assert len(record.answers) == 1
    assert record.blocks == [(b.start, b.stop) for b in evaluation_blocks(pair, TOPICS, 16, 3, seed=4)]
    assert (record.divergence.sequences, record.divergence.tokens) == (3, 45)
    assert set(record.conditions.hashes) == {
        "float_weights",
        "float_tokenizer",
        "float_settings",
        "w8a8_weights",
        "w8a8_tokenizer",
        "w8a8_settings",
    }
    write_record(tmp_path, record)
    assert read_record(tmp_path, PrecisionRecord, SCHEMA) == record


def test_a_bundle_is_asked_for_by_the_name_of_a_model(pair: Pair, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r'bundle "int8" is unknown. Use float or w8a8'):
        measure_precision(
            pair.float_folder,
            pair.w8a8_folder,
            Evaluation(questions, kinds_path="", source_sequences=0),
            bundle="int8",
            run_folder=tmp_path,
        )


def test_a_measurement_says_which_parts_were_measured(tiny_folder: Path, tiny_w8a8_folder: Path) -> None:
    small = Evaluation(text_sequences=2, text_tokens=16, kinds_path="", source_sequences=0, answers=1)
    measurement = PrecisionMeasurement(tiny_folder, tiny_w8a8_folder, small, device="cpu")
    assert repr(measurement).startswith(
        "sources of the loss: nothing was asked for\nnot measured yet: text, "
    )
    first = measurement.read_text()
    assert first is measurement
    assert repr(measurement).startswith("text: mean KL ")
    assert "not measured yet: other kinds of text, languages, answers, tasks" in repr(measurement)

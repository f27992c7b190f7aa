"""What `03_precision` measures, in one call, and the record of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from telechat_kit.backends import split_devices
from telechat_kit.errors import ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.inference.model_pair import Pair, evaluation_blocks
from telechat_kit.precision.answers import Answer, answer_lines
from telechat_kit.precision.bundle import BUNDLE, save_bundle
from telechat_kit.precision.divergence import Divergence, Group, measure_divergence, measure_languages
from telechat_kit.precision.sources import Sources, measure_sources
from telechat_kit.precision.tasks import TaskResult, load_questions, measure_tasks, require_harness
from telechat_kit.provenance import Conditions
from telechat_kit.rows import read_rows
from telechat_kit.texts import Block, load_text

SCHEMA = "telechat-kit/precision/2"


@dataclass(frozen=True)
class PrecisionRecord:
    """What `03_precision` measured."""

    schema: str
    model_path: str
    quant_path: str
    text_source: str
    text_sha256: str
    blocks: list[tuple[int, int]]
    seed: int
    repetition_penalty: float
    max_new_tokens: int
    divergence: Divergence
    languages_source: str
    languages: list[Group]
    sources: Sources | None
    answers: list[Answer]
    tasks: list[TaskResult]
    conditions: Conditions


def measure_precision(
    model_path: str | Path,
    quant_path: str | Path,
    jsonl_path: str | Path,
    *,
    text: str = "pydoc_data.topics",
    sequences: int = 16,
    tokens: int = 512,
    seed: int = 0,
    max_new_tokens: int = 64,
    repetition_penalty: float = 1.03,
    answers: int | None = None,
    answer_batch: int = 1,
    languages: str = "",
    source_sequences: int = 0,
    tasks: str = "",
    bundle: str = "",
    memory: str = "auto",
    device: str = "auto",
    run_folder: str | Path | None = None,
) -> PrecisionRecord:
    """Compare the float folder `model_path` with the W8A8 folder `quant_path`.

    Args:
        jsonl_path: `{"input": ...}` lines; the first `answers` of them are answered (None: all).
        text: evaluation text; `sequences` blocks of `tokens` tokens are drawn from it by `seed`.
        answer_batch: lines answered at a time; above 1 choices may fall otherwise where two tokens are nearly tied.
        languages: a text in Chinese and English whose figures are told by language; "" for none.
        source_sequences: sequences on which the sources of the loss are looked for; 0 for none.
        tasks: multiple-choice questions for lm-evaluation-harness, a file or folder; "" for none.
        bundle: "float" or "w8a8": that model's bundle is written into `run_folder`; "" for none.
        memory: "both" models at once, "one" after the other, or "auto".
        run_folder: where answers are kept while they are made, and where the bundle goes.
    """
    read_rows(resolve(jsonl_path), "input")
    questions = load_questions(tasks) if tasks else []
    if questions:
        require_harness()
    _check_request(bundle, run_folder, source_sequences, device)
    pair = Pair(model_path, quant_path, device, memory)
    blocks = evaluation_blocks(pair, text, tokens, sequences, seed)
    answered = answer_lines(
        pair, jsonl_path, max_new_tokens, repetition_penalty, answers, run_folder, answer_batch
    )
    if bundle and run_folder is not None:
        _save_bundle(pair, blocks, Path(run_folder) / BUNDLE, bundle, text, answered)
    return PrecisionRecord(
        schema=SCHEMA,
        model_path=relative(pair.float_folder),
        quant_path=relative(pair.w8a8_folder),
        text_source=text,
        text_sha256=load_text(text).sha256,
        blocks=[(block.start, block.stop) for block in blocks],
        seed=seed,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        divergence=measure_divergence(pair, blocks),
        languages_source=languages,
        languages=measure_languages(pair, languages) if languages else [],
        sources=measure_sources(pair, blocks, source_sequences) if source_sequences else None,
        answers=answered,
        tasks=measure_tasks(pair, questions) if questions else [],
        conditions=pair.conditions(),
    )


def _check_request(bundle: str, run_folder: str | Path | None, source_sequences: int, device: str) -> None:
    """Refuse what cannot be measured before the minutes of work."""
    if bundle and (bundle not in ("float", "w8a8") or run_folder is None):
        raise ParameterError(
            f'bundle "{bundle}" is unknown. Use float or w8a8, with a run_folder, or nothing.'
        )
    if source_sequences and len(split_devices(device)) > 1:
        raise ParameterError(
            f"source_sequences is {source_sequences}, but the sources are looked for in linears that {device} share. "
            "Set source_sequences: 0, or use one device."
        )


def _save_bundle(
    pair: Pair, blocks: Sequence[Block], path: Path, precision: str, text: str, answers: Sequence[Answer]
) -> None:
    own = precision == "float"
    save_bundle(
        path,
        pair,
        blocks,
        precision=precision,
        text=text,
        questions=[answer.input for answer in answers],
        answers=[answer.float_ids if own else answer.w8a8_ids for answer in answers],
        answer_texts=[answer.float_answer if own else answer.w8a8_answer for answer in answers],
    )

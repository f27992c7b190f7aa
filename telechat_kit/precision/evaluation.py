"""What `03_precision` measures, in one call, and the record of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from telechat_kit.backends import split_devices
from telechat_kit.errors import ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.inference.model_pair import Pair, evaluation_blocks
from telechat_kit.messages import marked
from telechat_kit.precision.answers import Answer, answer_lines
from telechat_kit.precision.bundle import BUNDLE, save_bundle
from telechat_kit.precision.divergence import Divergence, Group, measure_divergence, measure_languages
from telechat_kit.precision.kinds import KindLoss, like_calibration, measure_kinds
from telechat_kit.precision.sources import Sources, measure_sources
from telechat_kit.precision.tasks import TaskResult, load_questions, measure_tasks, require_harness
from telechat_kit.progress import resumable
from telechat_kit.provenance import Conditions
from telechat_kit.records import require_types
from telechat_kit.rows import read_rows
from telechat_kit.texts import Block, evaluation_texts, load_text

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
    #: the texts by kind, as asked for, and what each costs; a record from before them has none
    kinds_source: str = ""
    kinds: list[KindLoss] = field(default_factory=list)
    #: which of `text_source` and the kinds are like what the weights were calibrated on; None: they do not tell
    like_calibration: list[str] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What both models read and are asked, by the names of the parameters of `03_precision`.

    Attributes:
        jsonl_path: {"input": ...} lines. Both models answer them, at most `answers` of them.
        text_path: text that is read: a text file, a .jsonl file or pydoc_data.topics.
        text_sequences: number of sequences drawn from the text.
        text_tokens: tokens in each sequence.
        kinds_path: texts of other kinds, judged one by one: kit, kit:sealed or files with commas; empty: none.
            "kit" are the kit's own texts in Chinese, English, code, chat and documentation that no calibration reads.
        kind_sequences: sequences of each kind, or as many as it has.
        kind_tokens: tokens in each sequence of a kind.
        languages_path: a text whose lines are told apart as Chinese or English; empty: none.
        source_sequences: sequences on which the sources of the loss are looked for; 0: none.
        tasks_path: multiple-choice questions: a .jsonl file, a folder of C-Eval, CMMLU or MMLU; empty: none.
        seed: draws calibration samples and evaluation sequences.
        max_new_tokens: longest answer in tokens.
        repetition_penalty: above 1 makes repeated tokens less likely.
        answer_batch: lines answered at a time: more is faster on NPU and GPU, 1 is exactly reproducible. Above 1
            choices may fall otherwise where two tokens are nearly tied.
        answers: lines of `jsonl_path` that are answered, the first ones; None: all.

    Example:
        >>> evaluation = Evaluation(text_sequences=4, text_tokens=32, kinds_path="", source_sequences=0, answers=1)
        >>> evaluation.repetition_penalty
        1.03
    """

    jsonl_path: str | Path = "params/data/questions.jsonl"
    text_path: str = "pydoc_data.topics"
    text_sequences: int = 16
    text_tokens: int = 512
    kinds_path: str = "kit"
    kind_sequences: int = 8
    kind_tokens: int = 256
    languages_path: str = ""
    source_sequences: int = 8
    tasks_path: str = ""
    seed: int = 0
    max_new_tokens: int = 64
    repetition_penalty: float = 1.03
    answer_batch: int = 1
    answers: int | None = None

    def __post_init__(self) -> None:
        require_types(self)


@resumable(
    marked(
        "The answers that are done stand in the run folder: run the cell again, and it goes on from there; the texts are read anew."
    )
)
def measure_precision(
    model_path: str | Path,
    quant_path: str | Path,
    evaluation: Evaluation = Evaluation(),
    *,
    memory: str = "auto",
    bundle: str = "",
    device: str = "auto",
    run_folder: str | Path | None = None,
) -> PrecisionRecord:
    """Compare the float folder `model_path` with the W8A8 folder `quant_path`.

    Args:
        evaluation: the texts, questions and tasks.
        memory: "both" models at once, "one" after the other, or "auto".
        bundle: "float" or "w8a8": that model's bundle is written into `run_folder`; "" for none.
        device: that both models run on.
        run_folder: where answers are kept while they are made, and where the bundle goes.

    Raises:
        CheckpointError, DataError, ParameterError, DeviceError: each names the cause and the remedy.

    Example:
        >>> measured = measure_precision(
        ...     "models/tiny", "models/tiny-w8a8", evaluation, bundle="w8a8", run_folder="results/tiny", device="cpu"
        ... )
        >>> measured.divergence.sequences, len(measured.answers)
        (4, 1)
    """
    read_rows(resolve(evaluation.jsonl_path), "input")
    questions = load_questions(evaluation.tasks_path) if evaluation.tasks_path else []
    if questions:
        require_harness()
    _check_request(bundle, run_folder, evaluation.source_sequences, device)
    if evaluation.kinds_path:
        evaluation_texts(evaluation.kinds_path)  # a wrong name is told before the minutes of work
    pair = Pair(model_path, quant_path, device, memory)
    blocks = evaluation_blocks(
        pair, evaluation.text_path, evaluation.text_tokens, evaluation.text_sequences, evaluation.seed
    )
    kinds = _kinds(pair, evaluation)
    answered = answer_lines(
        pair, evaluation.jsonl_path, evaluation.max_new_tokens, evaluation.repetition_penalty,
        evaluation.answers, run_folder, evaluation.answer_batch,
    )  # fmt: skip
    if bundle and run_folder is not None:
        _save_bundle(pair, blocks, Path(run_folder) / BUNDLE, bundle, evaluation.text_path, answered)
    text = load_text(evaluation.text_path)
    hashes = {evaluation.text_path: text.sha256} | {kind.kind: kind.sha256 for kind in kinds}
    return PrecisionRecord(
        schema=SCHEMA,
        model_path=relative(pair.float_folder),
        quant_path=relative(pair.w8a8_folder),
        text_source=evaluation.text_path,
        text_sha256=text.sha256,
        blocks=[(block.start, block.stop) for block in blocks],
        seed=evaluation.seed,
        repetition_penalty=evaluation.repetition_penalty,
        max_new_tokens=evaluation.max_new_tokens,
        divergence=measure_divergence(pair, blocks),
        languages_source=evaluation.languages_path,
        languages=measure_languages(pair, evaluation.languages_path) if evaluation.languages_path else [],
        sources=measure_sources(pair, blocks, evaluation.source_sequences)
        if evaluation.source_sequences
        else None,
        answers=answered,
        tasks=measure_tasks(pair, questions) if questions else [],
        conditions=pair.conditions(),
        kinds_source=evaluation.kinds_path,
        kinds=kinds,
        like_calibration=like_calibration(hashes, pair.recipe) if pair.recipe else None,
    )


def _kinds(pair: Pair, evaluation: Evaluation) -> list[KindLoss]:
    if not evaluation.kinds_path:
        return []
    tokens, sequences = evaluation.kind_tokens, evaluation.kind_sequences
    return measure_kinds(pair, evaluation.kinds_path, tokens, sequences, evaluation.seed)


def _check_request(bundle: str, run_folder: str | Path | None, source_sequences: int, device: str) -> None:
    """Refuse what cannot be measured before the minutes of work."""
    if bundle and (bundle not in ("float", "w8a8") or run_folder is None):
        raise ParameterError(
            'bundle "{bundle}" is unknown. Use float or w8a8, with a run_folder, or nothing.', bundle=bundle
        )
    if source_sequences and len(split_devices(device)) > 1:
        raise ParameterError(
            "source_sequences is {source_sequences}, but the sources are looked for in linears that {device} "
            "share. Set source_sequences: 0, or use one device.",
            source_sequences=source_sequences,
            device=device,
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

"""What `03_precision` measures, part by part or in one call, and the record of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from telechat_kit.backends import split_devices
from telechat_kit.errors import ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.inference.model_pair import Pair, evaluation_blocks
from telechat_kit.messages import gettext as _
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
from telechat_kit.texts import evaluation_texts, load_text
from telechat_kit.token_samples import Block

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


#: Said when a part is interrupted that begins anew
_PARTS_KEPT = marked("The parts that were measured before are kept: run the cell again to measure this one.")


class PrecisionMeasurement:
    """The float folder `model_path` against the W8A8 folder `quant_path`, in parts that are measured one by one.

    Each part is kept; called again, its method measures it anew, and only it. `record` measures what is missing. Shown
    by a notebook it says what was measured so far.

    Args:
        evaluation: the texts, questions and tasks.
        memory: "both" models at once, "one" after the other, or "auto".
        bundle: "float" or "w8a8": that model's bundle is written into `run_folder`; "" for none.
        device: that both models run on.
        run_folder: where answers are kept while they are made, and where the bundle goes.

    Raises:
        CheckpointError, DataError, ParameterError, DeviceError: each names the cause and the remedy.

    Example:
        >>> precision = PrecisionMeasurement("models/tiny", "models/tiny-w8a8", evaluation, device="cpu")
        >>> precision.read_text().record().divergence.sequences
        4
    """

    def __init__(
        self,
        model_path: str | Path,
        quant_path: str | Path,
        evaluation: Evaluation = Evaluation(),
        *,
        memory: str = "auto",
        bundle: str = "",
        device: str = "auto",
        run_folder: str | Path | None = None,
    ) -> None:
        read_rows(resolve(evaluation.jsonl_path), "input")
        self._questions = load_questions(evaluation.tasks_path) if evaluation.tasks_path else []
        if self._questions:
            require_harness()
        _check_request(bundle, run_folder, evaluation.source_sequences, device)
        if evaluation.kinds_path:
            evaluation_texts(evaluation.kinds_path)  # a wrong name is told before the minutes of work
        self.evaluation, self._bundle, self._run_folder = evaluation, bundle, run_folder
        self._pair = Pair(model_path, quant_path, device, memory)
        self._blocks = evaluation_blocks(
            self._pair,
            evaluation.text_path,
            evaluation.text_tokens,
            evaluation.text_sequences,
            evaluation.seed,
        )
        self._divergence: Divergence | None = None
        self._kinds: list[KindLoss] | None = None
        self._languages: list[Group] | None = None
        self._sources: Sources | None = None
        self._answers: list[Answer] | None = None
        self._tasks: list[TaskResult] | None = None

    @resumable(_PARTS_KEPT)
    def read_text(self) -> "PrecisionMeasurement":
        """Let both models read `text_path`."""
        self._divergence = measure_divergence(self._pair, self._blocks)
        return self

    @resumable(_PARTS_KEPT)
    def read_kinds(self) -> "PrecisionMeasurement":
        """Let both models read the texts of other kinds, one by one; none where `kinds_path` is empty."""
        self._kinds = _kinds(self._pair, self.evaluation)
        return self

    @resumable(_PARTS_KEPT)
    def read_languages(self) -> "PrecisionMeasurement":
        """Let both models read the Chinese and the English lines of `languages_path`; nothing where it is empty."""
        path = self.evaluation.languages_path
        self._languages = measure_languages(self._pair, path) if path else []
        return self

    @resumable(_PARTS_KEPT)
    def find_sources(self) -> "PrecisionMeasurement":
        """Find where the loss comes from, linear by linear; nothing where `source_sequences` is 0."""
        count = self.evaluation.source_sequences
        self._sources = measure_sources(self._pair, self._blocks, count) if count else None
        return self

    @resumable(
        marked(
            "The answers that are done stand in the run folder: run the cell again, and it goes on from there."
        )
    )
    def answer_questions(self) -> "PrecisionMeasurement":
        """Let both models answer the lines of `jsonl_path`."""
        asked = self.evaluation
        self._answers = answer_lines(
            self._pair, asked.jsonl_path, asked.max_new_tokens, asked.repetition_penalty,
            asked.answers, self._run_folder, asked.answer_batch,
        )  # fmt: skip
        return self

    @resumable(_PARTS_KEPT)
    def answer_tasks(self) -> "PrecisionMeasurement":
        """Let both models choose among the answers of `tasks_path`; nothing where it is empty."""
        self._tasks = measure_tasks(self._pair, self._questions) if self._questions else []
        return self

    def record(self) -> PrecisionRecord:
        """All parts as one record; those that are missing are measured first."""
        if self._kinds is None:
            self.read_kinds()
        if self._answers is None:
            self.answer_questions()
        if self._divergence is None:
            self.read_text()
        if self._languages is None:
            self.read_languages()
        if self._sources is None:
            self.find_sources()
        if self._tasks is None:
            self.answer_tasks()
        return self._put_together()

    def _put_together(self) -> PrecisionRecord:
        divergence, answers, kinds = self._divergence, self._answers or [], self._kinds or []
        assert divergence is not None
        asked, pair, text = self.evaluation, self._pair, load_text(self.evaluation.text_path)
        if self._bundle and self._run_folder is not None:
            path = Path(self._run_folder) / BUNDLE
            _save_bundle(pair, self._blocks, path, self._bundle, asked.text_path, answers)
        hashes = {asked.text_path: text.sha256} | {kind.kind: kind.sha256 for kind in kinds}
        return PrecisionRecord(
            schema=SCHEMA,
            model_path=relative(pair.float_folder),
            quant_path=relative(pair.w8a8_folder),
            text_source=asked.text_path,
            text_sha256=text.sha256,
            blocks=[(block.start, block.stop) for block in self._blocks],
            seed=asked.seed,
            repetition_penalty=asked.repetition_penalty,
            max_new_tokens=asked.max_new_tokens,
            divergence=divergence,
            languages_source=asked.languages_path,
            languages=self._languages or [],
            sources=self._sources,
            answers=answers,
            tasks=self._tasks or [],
            conditions=pair.conditions(),
            kinds_source=asked.kinds_path,
            kinds=kinds,
            like_calibration=like_calibration(hashes, pair.recipe) if pair.recipe else None,
        )

    def __repr__(self) -> str:
        """A line for each part that was measured, and one for those that were not yet."""
        parts = {
            _("text"): self._divergence and _kl_said([self._divergence]),
            _("other kinds of text"): self._kinds and _kl_said([kind.figures for kind in self._kinds]),
            _("languages"): self._languages and _kl_said(self._languages),
            _("sources of the loss"): self._sources and _("found for each linear")
            if self.evaluation.source_sequences
            else "",
            _("answers"): self._answers and _("{count} made by both").format(count=len(self._answers)),
            _("tasks"): self._tasks and _("{count} done by both").format(count=len(self._tasks)),
        }
        nothing, not_yet = _("nothing was asked for"), _("not measured yet")
        lines = [f"{name}: {said or nothing}" for name, said in parts.items() if said is not None]
        waiting = [name for name, said in parts.items() if said is None]
        return "\n".join(lines + ([f"{not_yet}: {', '.join(waiting)}"] if waiting else []))


def _kl_said(texts: Sequence[Divergence | Group]) -> str:
    """The largest mean KL of some texts."""
    worst = max((text.kl_mean for text in texts), key=lambda kl: kl.value)
    if len(texts) == 1:
        return _("mean KL {kl} nats per token").format(kl=worst)
    return _("{count} texts, mean KL at the worst {kl} nats per token").format(count=len(texts), kl=worst)


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
    """All parts of a `PrecisionMeasurement`, which has the same arguments and errors, in one call.

    Example:
        >>> measured = measure_precision(
        ...     "models/tiny", "models/tiny-w8a8", evaluation, bundle="w8a8", run_folder="results/tiny", device="cpu"
        ... )
        >>> measured.divergence.sequences, len(measured.answers)
        (4, 1)
    """
    return PrecisionMeasurement(
        model_path, quant_path, evaluation, memory=memory, bundle=bundle, device=device, run_folder=run_folder
    ).record()


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

"""Speed of float and W8A8 over a grid of prompt and answer lengths, with raw samples kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from telechat_kit.backends import backend_for
from telechat_kit.cases import Case, SkippedCase, duration, estimated_seconds, fitting, grid
from telechat_kit.data import load_text
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.files import relative
from telechat_kit.generation import Generation, generate
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.precision import Pair
from telechat_kit.progress import track
from telechat_kit.provenance import Conditions
from telechat_kit.roofline import ModelSize, Peaks, measure_peaks, model_size
from telechat_kit.samples import CaseResult, Sample, drift, sample_of, summarize, to_line

SCHEMA = "telechat-kit/performance/1"
#: The guide's grid: batch 1, every input length with every output length
GUIDE_LENGTHS = (10, 100, 500, 1000, 2000)
#: Tokens of the warm-up of each precision, from which the time of the whole grid is estimated
WARM_UP = 8


@dataclass(frozen=True)
class PublishedCase:
    """A row of the guide's table: tokens/s of TeleChat-7B int8, batch 1. `None` lengths: the mean of its 25 cases."""

    input_tokens: int | None
    output_tokens: int | None
    npu_310p: float
    gpu_a10: float


PUBLISHED = (
    PublishedCase(100, 100, 15, 21),
    PublishedCase(1000, 100, 13, 24),
    PublishedCase(2000, 100, 11, 19),
    PublishedCase(None, None, 13, 18),
)


@dataclass(frozen=True)
class IdCheck:
    """Ids that W8A8 generated behind a prompt while it was timed, beside those of transformers' `generate()`."""

    input_tokens: int
    compared: int
    #: leading ids that are equal
    equal: int
    #: whether all timed runs of the prompt gave the same ids, as far as each went
    runs_agree: bool


@dataclass(frozen=True)
class PerformanceRecord:
    """What `04_performance` measured."""

    schema: str
    model_path: str
    quant_path: str
    batch: int
    cases: list[CaseResult]
    sizes: list[ModelSize]
    read_bandwidth: float
    read_bandwidth_basis: str
    peak_memory_bytes: int
    published: list[PublishedCase]
    conditions: Conditions
    peaks: Peaks | None = None
    skipped: list[SkippedCase] = field(default_factory=list)
    id_checks: list[IdCheck] = field(default_factory=list)
    #: see `samples.drift`
    drift: float | None = None
    #: wall time of all timed runs, and what was expected of them before
    seconds: float | None = None
    estimated_seconds: float | None = None


def measure_performance(
    model_path: str | Path,
    quant_path: str | Path,
    samples_path: Path,
    *,
    input_lengths: Sequence[int] = GUIDE_LENGTHS,
    output_lengths: Sequence[int] = GUIDE_LENGTHS,
    repeats: int = 3,
    text: str = "pydoc_data.topics",
    check_tokens: int = 0,
    device: str = "auto",
) -> PerformanceRecord:
    """Time every case `repeats` times in float and W8A8, in turn, and keep each sample in `samples_path`.

    Prompts are the first tokens of `text`; stop tokens are ignored, so that a case generates exactly what it says.
    Cases that do not fit into memory are named and left out. Behind each prompt up to `check_tokens` ids of W8A8
    are compared with those of `generate()` of transformers on the same model.
    """
    if repeats < 1:
        raise ParameterError(f"repeats is {repeats}: every case must be timed at least once.")
    pair = Pair(model_path, quant_path, device)
    config = pair.configs["float"]
    cases = grid(input_lengths, output_lengths, config.training_seqlen)
    prompt = _prompt(pair, text, max(input_lengths))
    backend = backend_for(pair.device.type)
    dtype = pair.models["float"].get_input_embeddings().weight.dtype
    cases, skipped = fitting(cases, config, dtype.itemsize, backend.free_memory_bytes())
    expected = _announce(pair.models, cases, skipped, prompt, repeats)
    samples, answers = _collect(pair.models, cases, prompt, repeats, samples_path)
    peaks = measure_peaks(pair.device)
    sizes = [model_size(name, model) for name, model in pair.models.items()]
    return PerformanceRecord(
        schema=SCHEMA,
        model_path=relative(pair.float_folder),
        quant_path=relative(pair.w8a8_folder),
        batch=1,
        cases=summarize(samples, sizes, peaks),
        sizes=sizes,
        read_bandwidth=peaks.bandwidth,
        read_bandwidth_basis=peaks.bandwidth_basis,
        peak_memory_bytes=backend.peak_memory_bytes(),
        published=list(PUBLISHED),
        conditions=pair.conditions(),
        peaks=peaks,
        skipped=skipped,
        id_checks=check_ids(pair.models["w8a8"], prompt, answers, check_tokens),
        drift=drift(samples),
        seconds=sum(sample.seconds for sample in samples),
        estimated_seconds=expected,
    )


def _prompt(pair: Pair, source: str, length: int) -> list[int]:
    ids = pair.tokenizer("\n".join(load_text(source).lines), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    if len(ids) < length:
        raise DataError(
            f"{source} has {len(ids)} tokens, the longest case needs {length}. Give a longer text."
        )
    return list(ids[:length])


def _announce(
    models: Mapping[str, TelechatForCausalLM],
    cases: Sequence[Case],
    skipped: Sequence[SkippedCase],
    prompt: list[int],
    repeats: int,
) -> float:
    """Warm both models up; say what is left out and how many seconds the rest will take about, which is returned."""
    warm_up = {
        name: generate(models[name], prompt[: cases[0][0]], min(WARM_UP, cases[0][1])) for name in models
    }
    for case in skipped:
        print(f"left out: input {case.input_tokens}, output {case.output_tokens} tokens: {case.reason}")
    expected = estimated_seconds(cases, repeats, warm_up)
    print(f"{len(cases)} cases, {repeats} times in {len(models)} precisions: about {duration(expected)}")
    return expected


def _collect(
    models: Mapping[str, TelechatForCausalLM],
    cases: Sequence[Case],
    prompt: list[int],
    repeats: int,
    samples_path: Path,
) -> tuple[list[Sample], list[Generation]]:
    """All samples, and what W8A8 generated in their runs."""
    samples, answers, part = [], [], partial_samples(samples_path)
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as file:
        for sample, run in timed(models, cases, prompt, repeats):
            file.write(to_line(sample))
            file.flush()
            samples.append(sample)
            if sample.precision == "w8a8":
                answers.append(run)
    part.replace(samples_path)
    return samples, answers


def partial_samples(samples_path: Path) -> Path:
    """Where samples stand until all are there: a run that is broken off keeps them, and an earlier run's too."""
    return samples_path.with_name(f"{samples_path.name}.part")


def timed(
    models: Mapping[str, TelechatForCausalLM], cases: Sequence[Case], prompt: list[int], repeats: int
) -> Iterator[tuple[Sample, Generation]]:
    """Repeats outermost and the models in turn: a drift of the machine's speed meets all cases alike."""
    runs = [(r, i, o, name) for r in range(repeats) for i, o in cases for name in models]
    for repeat, inputs, outputs, name in track(runs, "timed runs"):
        run = generate(models[name], prompt[:inputs], outputs)
        yield sample_of(name, repeat, run), run


def check_ids(
    model: TelechatForCausalLM, prompt: list[int], answers: Sequence[Generation], tokens: int
) -> list[IdCheck]:
    """The longest answer behind each prompt length against `model.generate()`, up to `tokens` ids; none for 0."""
    if tokens < 1:
        return []
    longest: dict[int, list[int]] = {}
    for run in answers:
        ids = longest.setdefault(run.prompt_tokens, run.token_ids)
        longest[run.prompt_tokens] = max(ids, run.token_ids, key=len)
    checks = []
    for inputs, ids in longest.items():
        runs = [run.token_ids for run in answers if run.prompt_tokens == inputs]
        judge = _transformers_ids(model, prompt[:inputs], min(tokens, len(ids)))
        agree = all(run == ids[: len(run)] for run in runs)
        checks.append(IdCheck(inputs, len(judge), _equal_start(ids, judge), agree))
    return checks


def _transformers_ids(model: TelechatForCausalLM, prompt: list[int], count: int) -> list[int]:
    """`count` greedy ids of transformers' own loop; a stop id that no token has keeps it going."""
    ids = torch.tensor([prompt], device=model.device)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_length=len(prompt) + count,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=model.config.vocab_size,
        pad_token_id=0,
    )
    return found[0, len(prompt) :].tolist()


def _equal_start(first: list[int], second: list[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))

"""Speed of float and W8A8 over a grid of prompt and answer lengths, with raw samples kept."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from telechat_kit.backends import backend_for, split_devices
from telechat_kit.data import load_text
from telechat_kit.engine import engine_for
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.files import relative
from telechat_kit.generation import Generation, PreallocatedCache, generate
from telechat_kit.graph import require_graph
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.precision import Pair
from telechat_kit.progress import track
from telechat_kit.provenance import Conditions
from telechat_kit.statistics import Estimate, median

SCHEMA = "telechat-kit/performance/1"
#: The guide's grid: batch 1, every input length with every output length
GUIDE_LENGTHS = (10, 100, 500, 1000, 2000)


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
class Sample:
    """One timed run, as kept in samples.jsonl. Times in seconds."""

    precision: str  # "float" or "w8a8"
    input_tokens: int
    output_tokens: int
    repeat: int
    seconds: float
    time_to_first_token: float
    time_per_output_token: float | None

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated per second from the start of the prefill."""
        return self.output_tokens / self.seconds


@dataclass(frozen=True)
class CaseResult:
    """Medians of one case in one precision."""

    precision: str
    input_tokens: int
    output_tokens: int
    repeats: int
    tokens_per_second: Estimate
    time_to_first_token: Estimate
    time_per_output_token: Estimate | None
    limit_tokens_per_second: float


@dataclass(frozen=True)
class ModelSize:
    """Bytes that a decode step reads, whatever the context: all weights but the embedding rows not looked up.

    Those of one device, where several share the model: they read at the same time.
    """

    precision: str
    weight_bytes: int
    read_bytes_per_token: int
    cache_bytes_per_token: int


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
    #: float and W8A8 took turns; otherwise the card could not hold both, and one came after the other
    in_turn: bool = True
    #: "capture": single tokens went through a captured graph of the device
    graph: str = "none"


def grid(input_lengths: Sequence[int], output_lengths: Sequence[int], context: int) -> list[tuple[int, int]]:
    """All (input, output) cases, or a `ParameterError` that names the first impossible length."""
    cases = [(i, o) for i in input_lengths for o in output_lengths]
    for i, o in cases:
        if i < 1 or o < 1 or i + o > context:
            raise ParameterError(
                f"input {i} and output {o} tokens: each must be at least 1 and both together at most "
                f"{context}, the context of the model. Change input_lengths or output_lengths."
            )
    if not cases:
        raise ParameterError(
            "input_lengths and output_lengths give no case. Name at least one length in each."
        )
    return cases


def measure_performance(
    model_path: str | Path,
    quant_path: str | Path,
    samples_path: Path,
    *,
    input_lengths: Sequence[int] = GUIDE_LENGTHS,
    output_lengths: Sequence[int] = GUIDE_LENGTHS,
    repeats: int = 3,
    text: str = "pydoc_data.topics",
    memory: str = "auto",
    graph: str = "none",
    device: str = "auto",
) -> PerformanceRecord:
    """Time every case `repeats` times in float and W8A8, and keep each sample in `samples_path`.

    Both models take turns; with `memory` "one", or "auto" where both do not fit, the float one has all its turns
    before the other is loaded. Prompts are the first tokens of `text`; stop tokens are ignored, so that a case generates exactly what it says.
    """
    if repeats < 1:
        raise ParameterError(f"repeats is {repeats}: every case must be timed at least once.")
    require_graph(graph, shared=len(split_devices(device)) > 1)
    pair = Pair(model_path, quant_path, device, memory)
    cases = grid(input_lengths, output_lengths, pair.configs["float"].training_seqlen)
    prompt = _prompt(pair, text, max(input_lengths))
    samples, sizes = _collect(pair, cases, prompt, repeats, samples_path, graph)
    backend = backend_for(pair.device.type)
    bandwidth, basis = backend.read_bandwidth()
    return PerformanceRecord(
        schema=SCHEMA,
        model_path=relative(pair.float_folder),
        quant_path=relative(pair.w8a8_folder),
        batch=1,
        cases=summarize(samples, sizes, bandwidth),
        sizes=sizes,
        read_bandwidth=bandwidth,
        read_bandwidth_basis=basis,
        peak_memory_bytes=backend.peak_memory_bytes(),
        published=list(PUBLISHED),
        conditions=pair.conditions(),
        in_turn=pair.together,
        graph=graph,
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


def _collect(
    pair: Pair,
    cases: Sequence[tuple[int, int]],
    prompt: list[int],
    repeats: int,
    samples_path: Path,
    graph: str,
) -> tuple[list[Sample], list[ModelSize]]:
    samples, sizes, part = list[Sample](), list[ModelSize](), partial_samples(samples_path)
    part.parent.mkdir(parents=True, exist_ok=True)
    turns = [tuple(pair.folders)] if pair.together else [(name,) for name in pair.folders]
    with part.open("w", encoding="utf-8") as file:
        for names in turns:
            for sample in _timed(pair, names, cases, prompt, repeats, sizes, graph):
                file.write(json.dumps(asdict(sample)) + "\n")
                file.flush()
                samples.append(sample)
    part.replace(samples_path)
    return samples, sizes


def partial_samples(samples_path: Path) -> Path:
    """Where samples stand until all are there: a run that is broken off keeps them, and an earlier run's too."""
    return samples_path.with_name(f"{samples_path.name}.part")


def _timed(
    pair: Pair,
    names: Sequence[str],
    cases: Sequence[tuple[int, int]],
    prompt: list[int],
    repeats: int,
    sizes: list[ModelSize],
    graph: str,
) -> Iterator[Sample]:
    """Repeats outermost and the precisions in turn: a drift of the machine's speed meets all cases alike.

    The models are loaded here and freed at the end, their `sizes` noted.
    """
    with contextlib.ExitStack() as stack:
        models = {name: stack.enter_context(pair.model(name)) for name in names}
        sizes += [model_size(name, model) for name, model in models.items()]
        for model in models.values():
            generate(model, prompt[: cases[0][0]], min(8, cases[0][1]), graph=graph)  # warm-up, not counted
        runs = [(r, i, o, name) for r in range(repeats) for i, o in cases for name in names]
        for repeat, inputs, outputs, name in track(runs, "timed runs"):
            run = generate(models[name], prompt[:inputs], outputs, graph=graph)
            yield _sample(name, repeat, run)


def _sample(name: str, repeat: int, run: Generation) -> Sample:
    return Sample(
        precision=name,
        input_tokens=run.prompt_tokens,
        output_tokens=len(run.token_ids),
        repeat=repeat,
        seconds=run.seconds,
        time_to_first_token=run.time_to_first_token,
        time_per_output_token=run.time_per_output_token,
    )


def summarize(samples: Sequence[Sample], sizes: Sequence[ModelSize], bandwidth: float) -> list[CaseResult]:
    """Medians and intervals of every case and precision, in the order of the samples."""
    size = {entry.precision: entry for entry in sizes}
    groups: dict[tuple[str, int, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.precision, sample.input_tokens, sample.output_tokens), []).append(sample)
    return [_case(key, group, size[key[0]], bandwidth) for key, group in groups.items()]


def _case(
    key: tuple[str, int, int], group: Sequence[Sample], size: ModelSize, bandwidth: float
) -> CaseResult:
    name, inputs, outputs = key
    per_token = [s.time_per_output_token for s in group if s.time_per_output_token is not None]
    mean_context = inputs + outputs / 2
    return CaseResult(
        precision=name,
        input_tokens=inputs,
        output_tokens=outputs,
        repeats=len(group),
        tokens_per_second=median([s.tokens_per_second for s in group]),
        time_to_first_token=median([s.time_to_first_token for s in group]),
        time_per_output_token=median(per_token) if per_token else None,
        limit_tokens_per_second=bandwidth
        / (size.read_bytes_per_token + mean_context * size.cache_bytes_per_token),
    )


def model_size(name: str, model: TelechatForCausalLM) -> ModelSize:
    """Bytes of a model's tensors, those read for one token, and those its cache grows by for one token.

    The last two are what the engine reads, where it runs the model: equal heads once, the head by its int8 copy.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    total = sum(tensor.nbytes for tensor in tensors.values())
    if (engine := engine_for(model)) is not None:
        return ModelSize(name, total, engine.read_bytes_per_token, engine.cache_bytes_per_position)
    embedding = model.get_input_embeddings().weight
    looked_up = 0 if model.config.tie_word_embeddings else embedding.nbytes
    return ModelSize(name, total, total - looked_up, PreallocatedCache.of(model, 1, 1).slots.nbytes)


def read_samples(path: Path) -> list[Sample]:
    """The raw samples of a run, for statistics of one's own."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Sample(**row) for row in rows]

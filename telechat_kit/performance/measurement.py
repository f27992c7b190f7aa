"""Speed of float and W8A8 over a grid of prompt and answer lengths, with raw samples kept."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from telechat_kit.backends import backend_for, split_devices
from telechat_kit.backends.cores import Busy, CoreClock
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.inference.generation import COMPILED, Generation, engine_name
from telechat_kit.inference.graph import require_graph
from telechat_kit.inference.launches import Launches, count_launches, launch_seconds
from telechat_kit.inference.model_pair import Pair
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, ngettext, shown
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.performance.cases import Case, Grid, SkippedCase, duration, estimated_seconds, fitting
from telechat_kit.performance.energy import energy_reader
from telechat_kit.performance.id_checks import IdCheck, check_ids
from telechat_kit.performance.roofline import ModelSize, Peaks, higher, measure_peaks, model_size
from telechat_kit.performance.thread_scaling import (
    ThreadPlan,
    ThreadScaling,
    longest_seconds,
    plan_threads,
    scaling_case,
    summarize_threads,
)
from telechat_kit.performance.timed_runs import TRANSFORMERS, Timing, time_cases, timed_generation
from telechat_kit.performance.timed_samples import CaseResult, Journal, Sample, drift, summarize
from telechat_kit.progress import resumable
from telechat_kit.provenance import Conditions, code_hash, combined_hash
from telechat_kit.texts import load_text

SCHEMA = "telechat-kit/performance/1"
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
    PublishedCase(100, 100, 15.0, 21.0),
    PublishedCase(1000, 100, 13.0, 24.0),
    PublishedCase(2000, 100, 11.0, 19.0),
    PublishedCase(None, None, 13.0, 18.0),
)


@dataclass(frozen=True)
class PerformanceRecord:
    """What `04_performance` measured."""

    schema: str
    model_path: str
    quant_path: str
    #: the smallest that was timed: charts of the grid show it
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
    #: see `timed_samples.drift`
    drift: float | None = None
    #: wall time of all timed runs, and what was expected of them before
    seconds: float | None = None
    estimated_seconds: float | None = None
    #: float and W8A8 took turns; otherwise the device could not hold both, and one came after the other
    in_turn: bool = True
    #: timed runs taken over from an earlier run of the same work that was broken off
    resumed: int = 0
    #: "capture": single tokens went through a captured graph of the device
    graph: str = "none"
    #: what the engine kept keys and values in; "auto": float32
    cache_dtype: str = "auto"
    #: one case by the number of CPU threads; None: not asked for
    threads: ThreadScaling | None = None
    #: which counter the joules are of, or why there are none; empty: a record from before they were read
    energy_basis: str = ""
    #: what ran each precision, of one sequence; empty: a record from before it was named
    engines: dict[str, str] = field(default_factory=dict)
    #: the cases of batch 1 in transformers' own loop, float, where an engine of the kit's ran float
    transformers: list[CaseResult] = field(default_factory=list)
    #: what else ran on the machine meanwhile; None: a record from before it was read
    busy: Busy | None = None
    #: operators started for a prompt and for a token, by precision; empty on a CPU, and in records from before they were counted
    launches: list[Launches] = field(default_factory=list)
    #: time to start one of them, measured with small sums in a row; None where none is counted
    launch_seconds: float | None = None

    @property
    def grid_cases(self) -> list[CaseResult]:
        """The cases of the batch size that charts of the grid show."""
        return [case for case in self.cases if case.batch == self.batch]


@dataclass(frozen=True)
class _Work:
    """What all turns of a measurement share."""

    timing: Timing
    threads: ThreadPlan


@dataclass
class _Findings:
    """What the turns of a measurement leave."""

    samples: list[Sample] = field(default_factory=list)
    sizes: list[ModelSize] = field(default_factory=list)
    skipped: list[SkippedCase] = field(default_factory=list)
    id_checks: list[IdCheck] = field(default_factory=list)
    expected: float = 0.0
    #: the case that is timed by threads, and its samples
    scaling_case: Case | None = None
    by_threads: list[Sample] = field(default_factory=list)
    engines: dict[str, str] = field(default_factory=dict)
    launches: list[Launches] = field(default_factory=list)


@resumable(
    marked("The runs that are timed stand in the run folder: run the cell again, and it goes on from there.")
)
def measure_performance(
    model_path: str | Path,
    quant_path: str | Path,
    grid: Grid = Grid(),
    *,
    run_folder: str | Path,
    memory: str = "auto",
    graph: str = "none",
    cache_dtype: str = "auto",
    device: str = "auto",
) -> PerformanceRecord:
    """Time every case of `grid` in float and W8A8, and keep each sample in `samples.jsonl` of `run_folder`.

    Both models take turns, and where the compiled engine runs float, so does `generate()` of transformers on the
    float model, so that what int8 brings and what the engine brings stand apart. With `memory` "one", or "auto" where both do not fit, the float one has all its turns
    before the other is loaded. Prompts are the first tokens of the grid's text; stop tokens are ignored, so that a
    case generates exactly what it says, in each of the copies of the prompt that a batch holds. Cases that do not fit
    into memory are named and left out. Behind each prompt up to `check_tokens` ids of W8A8 are compared with those of
    `generate()` of transformers on the same model. What an interrupted run of the same work has timed is not timed
    again. One case (`thread_scaling.scaling_case`) is timed behind the grid with each of `thread_counts` CPU threads
    too; counts above what the process may use are named and left out.

    Args:
        grid: lengths, batch sizes, thread counts and repeats.
        run_folder: where the samples are kept.
        memory: "both" models at once, "one" after the other, or "auto".
        graph: "none", or "capture" for a graph of the device, as in `inference.generation`.
        cache_dtype: "auto", "bfloat16" or "float16": what the engine keeps keys and values of both models in, as in
            `load_model`. `generate()` of transformers keeps them as they are computed.
        device: that both models run on.

    Raises:
        CheckpointError, DataError, ParameterError, DeviceError: each names the cause and the remedy.

    Example:
        >>> timed = measure_performance("models/tiny", "models/tiny-w8a8", grid, run_folder="results/tiny")
        2 cases, 1 times in 2 precisions ... about ...
        >>> len(timed.cases)
        4
    """
    _check_request(grid, graph, device)
    threads = plan_threads(grid.thread_counts, device)
    pair = Pair(model_path, quant_path, device, memory, cache_dtype)
    cases = grid.cases(pair.configs["float"].training_seqlen)
    prompt = _prompt(pair, grid.text_path, max(grid.input_lengths))
    conditions = pair.conditions()
    journal = Journal(resolve(run_folder) / "samples.jsonl", _work_key(pair, conditions, graph, prompt))
    peaks = measure_peaks(pair.device)
    timing = Timing(prompt, grid.repeats, journal, graph, energy_reader(device))
    work, found, clock = _Work(timing, threads), _Findings(), CoreClock.now()
    for names in [tuple(pair.folders)] if pair.together else [(name,) for name in pair.folders]:
        with contextlib.ExitStack() as stack:
            models = {name: stack.enter_context(pair.model(name)) for name in names}
            cases = _take_turns(models, cases, work, found)
            counted = (
                count_launches(name, model, prompt[: min(grid.input_lengths)], graph)
                for name, model in models.items()
            )
            found.launches += [each for each in counted if each is not None]
            if "w8a8" in models:
                answers = journal.answers("w8a8")
                found.id_checks = check_ids(models["w8a8"], prompt, answers, grid.check_tokens)
    journal.publish()
    peaks = higher(peaks, measure_peaks(pair.device))
    record = _record(pair, min(grid.batch_sizes), conditions, peaks, work, found)
    return replace(record, busy=clock.busy_since())


def _record(
    pair: Pair, batch: int, conditions: Conditions, peaks: Peaks, work: _Work, found: _Findings
) -> PerformanceRecord:
    by_threads = found.scaling_case and summarize_threads(work.threads, found.scaling_case, found.by_threads)
    results = summarize(found.samples, found.sizes, peaks)
    return PerformanceRecord(
        schema=SCHEMA,
        model_path=relative(pair.float_folder),
        quant_path=relative(pair.w8a8_folder),
        batch=batch,
        cases=[result for result in results if result.precision != TRANSFORMERS],
        transformers=[result for result in results if result.precision == TRANSFORMERS],
        sizes=found.sizes,
        engines=found.engines,
        launches=found.launches,
        launch_seconds=launch_seconds(pair.device) if found.launches else None,
        read_bandwidth=peaks.bandwidth,
        read_bandwidth_basis=peaks.bandwidth_basis,
        peak_memory_bytes=backend_for(pair.device.type).peak_memory_bytes(),
        published=list(PUBLISHED),
        conditions=conditions,
        peaks=peaks,
        skipped=found.skipped,
        id_checks=found.id_checks,
        drift=drift(found.samples),
        seconds=sum(sample.seconds for sample in found.samples),
        estimated_seconds=found.expected,
        in_turn=pair.together,
        resumed=work.timing.journal.resumed,
        graph=work.timing.graph,
        cache_dtype=pair.cache_dtype,
        threads=by_threads,
        energy_basis=work.timing.energy.basis,
    )


def _check_request(grid: Grid, graph: str, device: str) -> None:
    """Refuse what cannot be timed before anything is loaded."""
    require_graph(graph, shared=len(split_devices(device)) > 1)
    if graph != "none" and max(grid.batch_sizes, default=1) > 1:
        raise ParameterError(
            'graph "{graph}" runs one sequence: set batch_sizes to [1], or graph to none.', graph=graph
        )
    if grid.repeats < 1:
        raise ParameterError(
            "repeats is {repeats}: every case must be timed at least once.", repeats=grid.repeats
        )


def _work_key(pair: Pair, conditions: Conditions, graph: str, prompt: list[int]) -> str:
    """What must be equal for timed runs to be kept."""
    made_by = (conditions.device_name, torch.__version__, code_hash())
    return combined_hash([*conditions.hashes.values(), *made_by, graph, pair.cache_dtype, str(prompt)])


def _prompt(pair: Pair, source: str, length: int) -> list[int]:
    ids = pair.tokenizer("\n".join(load_text(source).lines), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    if len(ids) < length:
        raise DataError(
            "{source} has {count} tokens, the longest case needs {length}. Give a longer text.",
            source=source,
            count=len(ids),
            length=length,
        )
    return list(ids[:length])


def _take_turns(
    models: Mapping[str, TelechatForCausalLM], cases: Sequence[Case], work: _Work, found: _Findings
) -> list[Case]:
    """Time `models`, which take turns, and note what is found; the cases that fit into memory.

    What is left out, and how many seconds the rest will take about, is said before.
    """
    timing, first = work.timing, next(iter(models.values()))
    float_bytes = first.get_input_embeddings().weight.dtype.itemsize
    free = backend_for(first.device.type).free_memory_bytes()
    fit, skipped = fitting(cases, first.config, float_bytes, free)
    found.engines |= {name: engine_name(model, timing.graph) for name, model in models.items()}
    ways = {**models, **_baseline(models, found.engines)}
    expected = _expected_seconds(fit, timing.repeats, _warm_up(ways, fit, timing))
    for case in skipped:
        left_out = (
            _("left out: batch {batch}, input {input}, output {output} tokens: {reason}")
            if case.batch > 1
            else _("left out: input {input}, output {output} tokens: {reason}")
        )
        print(
            left_out.format(
                batch=case.batch,
                input=case.input_tokens,
                output=case.output_tokens,
                reason=shown(case.reason),
            )
        )
    message = (
        ngettext(
            "{cases} case, {repeats} times in {precisions} precisions and by transformers' generate(): about {time}",
            "{cases} cases, {repeats} times in {precisions} precisions and by transformers' generate(): about {time}",
            len(fit),
        )
        if TRANSFORMERS in ways
        else ngettext(
            "{cases} case, {repeats} times in {precisions} precisions: about {time}",
            "{cases} cases, {repeats} times in {precisions} precisions: about {time}",
            len(fit),
        )
    )
    print(
        message.format(
            cases=len(fit), repeats=timing.repeats, precisions=len(models), time=duration(expected)
        )
    )
    found.skipped += skipped
    found.expected += expected
    found.samples += time_cases(
        ways, fit, timing, label=_("timed runs, about {time} in all").format(time=duration(expected))
    )
    found.scaling_case = found.scaling_case or scaling_case(fit)
    if work.threads.counts and found.scaling_case in fit:
        found.by_threads += _time_by_threads(models, found.scaling_case, work, found.samples)
    found.sizes += [model_size(name, model, in_engine=name != TRANSFORMERS) for name, model in ways.items()]
    return fit


def _expected_seconds(cases: Sequence[Case], repeats: int, warm_up: Mapping[str, Generation]) -> float:
    alone = [case for case in cases if case.batch == 1]
    return sum(
        estimated_seconds(alone if name == TRANSFORMERS else cases, repeats, {name: run})
        for name, run in warm_up.items()
    )


def _baseline(
    models: Mapping[str, TelechatForCausalLM], engines: Mapping[str, str]
) -> dict[str, TelechatForCausalLM]:
    """The float model once more, for transformers' own loop, where that is not what runs it anyway."""
    if "float" in models and engines["float"] == COMPILED:
        return {TRANSFORMERS: models["float"]}
    return {}


def _time_by_threads(
    models: Mapping[str, TelechatForCausalLM], case: Case, work: _Work, grid_samples: Sequence[Sample]
) -> Iterator[Sample]:
    """Time `case` with every number of threads; say before how long that takes at most."""
    counts, repeats = work.threads.counts, work.timing.repeats
    own = [sample for sample in grid_samples if sample.precision in models]
    longest = duration(longest_seconds(case, own, counts, repeats))
    message = _(
        "input {input}, output {output} tokens with {threads} threads, {repeats} times in {precisions} precisions: at most "
        "about {time}"
    )
    print(
        message.format(
            input=case.input_tokens,
            output=case.output_tokens,
            threads=", ".join(map(str, counts)),
            repeats=repeats,
            precisions=len(models),
            time=longest,
        )
    )
    return time_cases(
        models,
        [case],
        work.timing,
        counts,
        _("runs by threads, at most about {time} in all").format(time=longest),
    )


def _warm_up(
    models: Mapping[str, TelechatForCausalLM], cases: Sequence[Case], timing: Timing
) -> dict[str, Generation]:
    """A short run of each model, with each batch size too; that of batch 1 tells how long the cases will take."""
    short = Case(cases[0].input_tokens, min(WARM_UP, cases[0].output_tokens))
    for batch in {case.batch: None for case in cases if case.batch > 1}:
        for name in (name for name in models if name != TRANSFORMERS):
            timed_generation(name, models[name], short._replace(batch=batch), timing)
    return {name: timed_generation(name, model, short, timing) for name, model in models.items()}

"""Cases run one after the other with their clock, counter of energy and number of threads; each is kept at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from telechat_kit.inference.generation import Generation, generate, generate_copies
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.performance.cases import Case
from telechat_kit.performance.energy import EnergyReader, NoCounter, spent
from telechat_kit.performance.thread_scaling import cpu_threads
from telechat_kit.performance.timed_samples import Journal, Run, Sample, sample_of
from telechat_kit.progress import track

NOT_READ = NoCounter("not asked for")


@dataclass(frozen=True)
class Timing:
    """How cases are timed.

    Energy is read before and behind a run, the allocation of its cache and the capture of a graph included.
    """

    prompt: list[int]  # a case takes as many tokens of it as it says
    repeats: int
    journal: Journal
    graph: str = "none"
    energy: EnergyReader = NOT_READ


def timed(
    models: Mapping[str, TelechatForCausalLM],
    cases: Sequence[Case],
    timing: Timing,
    thread_counts: Sequence[int | None] = (None,),
    label: str = "timed runs",
) -> Iterator[Sample]:
    """Repeats outermost and the models in turn: a drift of the machine's speed meets all cases alike.

    Each of `thread_counts` is set for its runs alone, and two tokens before the clock starts wake its threads; None
    leaves them as they are. Runs that stand in the journal are not timed again. `label` stands before the progress.
    """
    runs = [
        Run(name, case, repeat, threads)
        for repeat in range(timing.repeats)
        for case in cases
        for threads in thread_counts
        for name in models
    ]
    for run in track(runs, label):
        kept = timing.journal.sample(run)
        if kept is None:
            kept, generation = _timed(models[run.precision], run, timing)
            timing.journal.write(kept, generation)
        yield kept


def _timed(model: TelechatForCausalLM, run: Run, timing: Timing) -> tuple[Sample, Generation]:
    case, (prompt, graph) = run.case, (timing.prompt, timing.graph)
    with cpu_threads(run.threads):
        if run.threads is not None:
            _generation(model, prompt, case._replace(output_tokens=min(2, case.output_tokens)), graph)
        before = timing.energy.joules()
        generation = _generation(model, prompt, case, graph)
        joules = spent(before, timing.energy.joules())
    return sample_of(run.precision, run.repeat, generation, run.threads, joules), generation


def _generation(model: TelechatForCausalLM, prompt: list[int], case: Case, graph: str) -> Generation:
    inputs, outputs, batch = case
    if batch == 1:
        return generate(model, prompt[:inputs], outputs, graph=graph)
    return generate_copies(model, prompt[:inputs], batch, outputs)

"""Cases run one after the other with their clock, counter of energy and number of threads; each is kept at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from telechat_kit.inference.generation import (
    Generation,
    generate,
    generate_by_transformers,
    generate_copies,
)
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.performance.cases import Case
from telechat_kit.performance.energy import EnergyReader, NoCounter, spent
from telechat_kit.performance.thread_scaling import cpu_threads
from telechat_kit.performance.timed_samples import Journal, Run, Sample, sample_of
from telechat_kit.progress import track

NOT_READ = NoCounter("not asked for")
#: In place of a precision: the float model in transformers' own loop, where an engine of the kit's runs both
TRANSFORMERS = "transformers"


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


def time_cases(
    models: Mapping[str, TelechatForCausalLM],
    cases: Sequence[Case],
    timing: Timing,
    thread_counts: Sequence[int | None] = (None,),
    label: str = "timed runs",
) -> Iterator[Sample]:
    """Repeats outermost and the models in turn: a drift of the machine's speed meets all cases alike.

    Each of `thread_counts` is set for its runs alone, and two tokens before the clock starts wake its threads; None
    leaves them as they are. `TRANSFORMERS` has no batches. Runs that stand in the journal are not timed again. `label` stands before the progress.
    """
    runs = [
        Run(name, case, repeat, threads)
        for repeat in range(timing.repeats)
        for case in cases
        for threads in thread_counts
        for name in models
        if case.batch == 1 or name != TRANSFORMERS
    ]
    for run in track(runs, label):
        sample = timing.journal.sample(run)
        if sample is None:
            model, case = models[run.precision], run.case
            with cpu_threads(run.threads):
                if run.threads is not None:
                    waking = case._replace(output_tokens=min(2, case.output_tokens))
                    timed_generation(run.precision, model, waking, timing)
                before = timing.energy.joules()
                generation = timed_generation(run.precision, model, case, timing)
                joules = spent(before, timing.energy.joules())
            sample = sample_of(run.precision, run.repeat, generation, run.threads, joules)
            timing.journal.write(sample, generation)
        yield sample


def timed_generation(name: str, model: TelechatForCausalLM, case: Case, timing: Timing) -> Generation:
    """One run of `case` by `model`, in the way that stands behind `name`."""
    prompt = timing.prompt[: case.input_tokens]
    if name == TRANSFORMERS:
        return generate_by_transformers(model, prompt, case.output_tokens)
    if case.batch == 1:
        return generate(model, prompt, case.output_tokens, graph=timing.graph)
    return generate_copies(model, prompt, case.batch, case.output_tokens)

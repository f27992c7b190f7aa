"""Speed against the number of CPU threads: which counts and which case are timed, and what the samples say."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from telechat_kit.backends import choose_device, split_devices
from telechat_kit.backends.cores import usable_cores
from telechat_kit.errors import ParameterError
from telechat_kit.messages import Message, shown
from telechat_kit.messages import gettext as _
from telechat_kit.performance.cases import Case
from telechat_kit.performance.timed_samples import Sample, median_of_known, unstable
from telechat_kit.statistics import Estimate, median


@dataclass(frozen=True)
class ThreadPlan:
    """The counts that are timed, those that are left out, and why."""

    counts: list[int]
    left_out: list[int]
    available: int
    reason: str = ""


@dataclass(frozen=True)
class ThreadResult:
    """Medians of the case with one number of threads in one precision."""

    precision: str
    threads: int
    repeats: int
    tokens_per_second: Estimate
    time_to_first_token: Estimate
    time_per_output_token: Estimate | None
    unstable: bool = False


@dataclass(frozen=True)
class ThreadScaling:
    """One case of the grid, timed with several numbers of CPU threads."""

    input_tokens: int
    output_tokens: int
    batch: int
    #: CPUs that the process may run on
    available: int
    results: list[ThreadResult] = field(default_factory=list)
    #: counts that were asked for and not timed
    left_out: list[int] = field(default_factory=list)
    reason: str = ""

    def of(self, precision: str) -> list[ThreadResult]:
        """The results of one precision, by the number of threads."""
        own = [result for result in self.results if result.precision == precision]
        return sorted(own, key=lambda result: result.threads)


def plan_threads(counts: Sequence[int], device: str, available: int | None = None) -> ThreadPlan:
    """The counts to time on `device` (a profile's word); what cannot be timed there is left out, which is printed.

    Raises:
        ParameterError: a count below 1.
    """
    available = available or usable_cores()
    if counts and min(counts) < 1:
        raise ParameterError(
            "thread_counts is {counts}: each must be 1 or more. Leave it empty for none.", counts=list(counts)
        )
    kinds = [part.partition(":")[0] for part in split_devices(device)]
    kinds = [choose_device().kind] if kinds == ["auto"] else kinds
    asked, limit = list(dict.fromkeys(counts)), available
    reason: str = Message("the process may use {available} of the machine's CPUs", available=available)
    if kinds != ["cpu"]:
        limit, reason = 0, Message("they are timed on one CPU, and the device is {device}", device=device)
    left_out = [count for count in asked if count > limit]
    if left_out:
        print(
            _("left out: {counts} threads: {reason}").format(
                counts=", ".join(map(str, left_out)), reason=shown(reason)
            )
        )
    return ThreadPlan([count for count in asked if count <= limit], left_out, available, reason)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """torch, and with it the compiled kernels, at `count` threads; as before at the end. None: as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def scaling_case(cases: Sequence[Case]) -> Case:
    """The case that is timed by threads: of the smallest batch and the shortest prompt the longest answer."""
    return min(cases, key=lambda case: (case.batch, case.input_tokens, -case.output_tokens))


def longest_seconds(case: Case, samples: Sequence[Sample], counts: Sequence[int], repeats: int) -> float:
    """At most about so long take all runs of `case`: as if speed grew with the threads, from its `samples` of the grid.

    More threads than the samples had are taken to bring nothing.
    """
    own: dict[str, list[float]] = {}
    for sample in samples:
        if sample.case == case:
            own.setdefault(sample.precision, []).append(sample.seconds)
    slower = sum(max(1.0, torch.get_num_threads() / count) for count in counts)
    return repeats * slower * sum(float(np.median(seconds)) for seconds in own.values())


def summarize_threads(plan: ThreadPlan, case: Case, samples: Sequence[Sample]) -> ThreadScaling | None:
    """What `samples`, each with its number of threads, say of `case`; None where no count was asked for."""
    if not plan.counts and not plan.left_out:
        return None
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        assert sample.threads is not None
        groups.setdefault((sample.precision, sample.threads), []).append(sample)
    results = [
        ThreadResult(
            precision=precision,
            threads=threads,
            repeats=len(group),
            tokens_per_second=median([s.tokens_per_second for s in group]),
            time_to_first_token=median([s.time_to_first_token for s in group]),
            time_per_output_token=median_of_known(s.time_per_output_token for s in group),
            unstable=unstable(group),
        )
        for (precision, threads), group in sorted(groups.items())
    ]
    return ThreadScaling(*case, plan.available, results, plan.left_out, plan.reason)

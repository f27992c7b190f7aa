"""Timed runs as they are kept, and what they say: medians, limits, and whether the device kept its pace."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from telechat_kit.errors import DataError
from telechat_kit.files import read_jsonl, write_text, writing
from telechat_kit.inference.generation import Generation
from telechat_kit.messages import marked
from telechat_kit.performance.cases import Case
from telechat_kit.performance.roofline import ModelSize, Peaks, limit_tokens_per_second
from telechat_kit.statistics import Estimate, median
from telechat_kit.strict_json import parse

#: A case whose fastest and slowest run differ by more than this share of the median is marked
UNSTABLE = 0.1
#: Number of prompt tokens, and the ids generated behind them
Answer = tuple[int, list[int]]
#: Share by which the later repeats may be slower or faster before the whole run is
DRIFT = 0.05


class Run(NamedTuple):
    """One timed run; `threads` as in `Sample`."""

    precision: str
    case: Case
    repeat: int
    threads: int | None = None


@dataclass(frozen=True)
class Sample:
    """One timed run, as kept in samples.jsonl. Times in seconds; those of tokens are without the first one."""

    precision: str  # "float" or "w8a8"
    input_tokens: int
    output_tokens: int
    repeat: int
    seconds: float
    time_to_first_token: float
    time_per_output_token: float | None  # mean
    token_p50: float | None = None
    token_p95: float | None = None
    batch: int = 1  # copies of the prompt at a time; each gets `output_tokens`
    threads: int | None = None  # CPU threads set for a run of the scaling by threads; None: a run of the grid
    joules: float | None = None  # of the whole device during the run; None: not reported

    @property
    def case(self) -> Case:
        """What was timed."""
        return Case(self.input_tokens, self.output_tokens, self.batch)

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated in all rows per second from the start of the prefill."""
        return self.batch * self.output_tokens / self.seconds

    @property
    def joules_per_token(self) -> float | None:
        """Joules of the run, prefill included, for each token generated in all rows."""
        return None if self.joules is None else self.joules / (self.batch * self.output_tokens)


@dataclass(frozen=True)
class CaseResult:
    """Medians of one case in one precision, and the fastest that the device allows."""

    precision: str
    input_tokens: int
    output_tokens: int
    repeats: int
    tokens_per_second: Estimate
    time_to_first_token: Estimate
    time_per_output_token: Estimate | None
    limit_tokens_per_second: float
    token_p95: Estimate | None = None
    unstable: bool = False
    batch: int = 1
    joules_per_token: Estimate | None = None

    @property
    def case(self) -> Case:
        """What was timed."""
        return Case(self.input_tokens, self.output_tokens, self.batch)

    @property
    def share_of_limit(self) -> float:
        """Tokens per second over the most that the device allows for this case."""
        return self.tokens_per_second.value / self.limit_tokens_per_second


def sample_of(
    name: str, repeat: int, run: Generation, threads: int | None = None, joules: float | None = None
) -> Sample:
    """The sample of one generation with the model `name`."""
    steps = np.diff(run.token_times)
    p50, p95 = (float(np.quantile(steps, share)) if len(steps) else None for share in (0.5, 0.95))
    return Sample(
        precision=name,
        input_tokens=run.prompt_tokens,
        output_tokens=len(run.token_ids),
        repeat=repeat,
        seconds=run.seconds,
        time_to_first_token=run.time_to_first_token,
        time_per_output_token=run.time_per_output_token,
        token_p50=p50,
        token_p95=p95,
        batch=run.batch,
        threads=threads,
        joules=joules,
    )


class Journal:
    """Timed runs, each on disk as soon as it is done: a broken-off run is gone on with, and an earlier one's stay.

    Args:
        path: of samples.jsonl, which is written at the end. Until then `partial_samples(path)` grows.
        key: of the work; runs of other work are not taken over.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._part, self._key = path, partial_samples(path), key
        self._rows = [(row.sample, row.token_ids) for row in _readable(self._part) if row.key == key]
        self._known = {Run(s.precision, s.case, s.repeat, s.threads): s for s, _ in self._rows}
        self.resumed = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._part, "".join(self._line(*row) for row in self._rows))

    def sample(self, run: Run) -> Sample | None:
        """The sample of `run` if an earlier process timed it."""
        found = self._known.get(run)
        self.resumed += found is not None
        return found

    def write(self, sample: Sample, generation: Generation) -> None:
        """Add a timed run and the ids that it gave."""
        self._rows.append((sample, generation.token_ids))
        with writing(self._part), self._part.open("a", encoding="utf-8") as file:
            file.write(self._line(*self._rows[-1]))

    def answers(self, precision: str) -> list[Answer]:
        """What the grid's runs of `precision` generated at batch 1: number of prompt tokens, and ids."""
        return [
            (row.input_tokens, ids)
            for row, ids in self._rows
            if (row.precision, row.batch, row.threads) == (precision, 1, None)
        ]

    def publish(self) -> None:
        """Write samples.jsonl from all runs; what was kept for going on goes."""
        write_text(self.path, "".join(json.dumps(asdict(sample)) + "\n" for sample, _ in self._rows))
        self._part.unlink()

    def _line(self, sample: Sample, ids: Sequence[int]) -> str:
        row = {"key": self._key, "sample": asdict(sample), "token_ids": list(ids)}
        return json.dumps(row) + "\n"


def partial_samples(samples_path: Path) -> Path:
    """Where timed runs stand until all are there."""
    return samples_path.with_name(f"{samples_path.name}.part")


@dataclass(frozen=True)
class _Row:
    key: str
    sample: Sample
    token_ids: list[int]


def _readable(path: Path) -> list[_Row]:
    """Rows of a journal up to the first that is none.

    A full disk or a power cut ends the file anywhere, inside a character too.
    """
    rows: list[_Row] = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            rows.append(_ROW.validate_python(parse(line, str(path), marked("Remove it."))))
        except (DataError, ValidationError):
            break
    return rows


def read_samples(path: Path) -> list[Sample]:
    """The raw samples of a run, for statistics of one's own.

    Raises:
        DataError: the file cannot be read, or is no list of samples; line named where one is at fault.
    """
    remedy = marked("Run 04_performance again.")
    try:
        return _SAMPLES.validate_python(read_jsonl(path, remedy))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            "{path}, sample {number}: {told}. {remedy}",
            path=path,
            number=int(first["loc"][0]) + 1,
            told=first["msg"],
            remedy=remedy,
        ) from error


_ROW, _SAMPLES = TypeAdapter(_Row), TypeAdapter(list[Sample])


def summarize(samples: Sequence[Sample], sizes: Sequence[ModelSize], peaks: Peaks) -> list[CaseResult]:
    """Medians and intervals of every case and precision of the grid, in the order of the samples."""
    size = {entry.precision: entry for entry in sizes}
    return [
        CaseResult(
            precision=precision,
            input_tokens=case.input_tokens,
            output_tokens=case.output_tokens,
            repeats=len(group),
            tokens_per_second=median([s.tokens_per_second for s in group]),
            time_to_first_token=median([s.time_to_first_token for s in group]),
            time_per_output_token=median_of_known(s.time_per_output_token for s in group),
            limit_tokens_per_second=limit_tokens_per_second(size[precision], peaks, *case),
            token_p95=median_of_known(s.token_p95 for s in group),
            unstable=unstable(group),
            batch=case.batch,
            joules_per_token=median_of_known(s.joules_per_token for s in group),
        )
        for (precision, case), group in _groups(samples).items()
    ]


def median_of_known(values: Iterable[float | None]) -> Estimate | None:
    """Median and interval of the values that are there; None without any."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def drift(samples: Sequence[Sample]) -> float | None:
    """Time of the later half of the repeats over that of the earlier half, less 1: the median over the grid's cases.

    Above 0 the device became slower: busy with something else, or throttled by its heat. None with one repeat.
    """
    ratios = []
    for group in _groups(samples).values():
        ordered = [sample.seconds for sample in sorted(group, key=lambda sample: sample.repeat)]
        if half := len(ordered) // 2:
            ratios.append(float(np.median(ordered[-half:]) / np.median(ordered[:half])))
    return float(np.median(ratios)) - 1 if ratios else None


def _groups(samples: Sequence[Sample]) -> dict[tuple[str, Case], list[Sample]]:
    """The grid's samples by precision and case; those of the scaling by threads are of other conditions."""
    groups: dict[tuple[str, Case], list[Sample]] = {}
    for sample in (sample for sample in samples if sample.threads is None):
        groups.setdefault((sample.precision, sample.case), []).append(sample)
    return groups


def unstable(group: Sequence[Sample]) -> bool:
    """Whether the runs of a case differ by more than `UNSTABLE` of their median."""
    seconds = [sample.seconds for sample in group]
    return max(seconds) - min(seconds) > UNSTABLE * float(np.median(seconds))

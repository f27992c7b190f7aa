"""Figures that nothing measures: NaN, negative divergences, shares above 1, values outside their own interval."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from math import inf, isfinite
from typing import Any

import numpy as np

from telechat_kit.comparison.findings import CHANGED, SAME, Finding, short
from telechat_kit.comparison.run_data import RunData
from telechat_kit.messages import Message, marked
from telechat_kit.precision import Divergence
from telechat_kit.precision.positions import FIGURES, TOP
from telechat_kit.statistics import Estimate

PART = marked("possible")
_SHARE, _AMOUNT, _COUNT = (0.0, 1.0), (0.0, inf), (0.0, inf)
#: What fields of records can be, by the names of the fields
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("top1_agreement", "top5_agreement", "similarity", "clipped", "estimated_share"), _SHARE),
    **dict.fromkeys(("same_choice", "accuracy_float", "accuracy_w8a8"), _SHARE),
    **dict.fromkeys(("kl_mean", "kl_max", "kl_quantiles", "rms", "effect", "relative_error"), _AMOUNT),
    **dict.fromkeys(("seconds", "time_to_first_token", "time_per_output_token", "token_p50"), _AMOUNT),
    **dict.fromkeys(("token_p95", "joules", "joules_per_token", "estimated_seconds"), _AMOUNT),
    **dict.fromkeys(("float_bytes", "w8a8_bytes", "checkpoint_bytes", "peak_memory_bytes"), _COUNT),
    **dict.fromkeys(("sequences", "tokens", "common_tokens", "float_tokens", "w8a8_tokens"), _COUNT),
    **dict.fromkeys(("repeats", "repeat", "compared", "equal", "questions"), _COUNT),
    "difference": (-1.0, 1.0),
}
#: Changes of a probability
_CHANGES = ".probability_change."
#: Those that divide something, so are never 0
_POSITIVE = {"tokens_per_second", "limit_tokens_per_second", "read_bandwidth", "bandwidth", "seconds"}
_POSITIVE |= {"perplexity_float", "perplexity_w8a8", "perplexity_ratio", "time_to_first_token"}


def impossible_figures(run: RunData) -> Iterator[Finding]:
    """Every number of the records that cannot be true; one finding that all can if there is none."""
    parts = {
        "quantize": run.quantize,
        "precision": run.precision,
        "performance": run.performance,
        "samples": run.samples,
    }
    count, wrong = 0, list[Finding]()
    for name, part in parts.items():
        for place, field, value in _numbers(name, name, part):
            count += 1
            if problem := _problem("difference" if _CHANGES in place else field, value):
                wrong.append(Finding(place, _shown(value), problem, CHANGED, PART))
    if run.precision is not None:
        found = run.precision.divergence
        wrong += _rows("precision.divergence", found.by_sequence, run.precision.blocks)
        for loss in run.precision.kinds:
            wrong += _rows(f"precision.kinds.{loss.kind}", loss.figures.by_sequence, loss.blocks)
        for group in run.precision.languages:
            wrong += _rows(f"precision.languages.{group.name}", group.by_sequence, [])
        wrong += _tail(found)
    yield from wrong
    if not wrong and count:
        yield Finding(Message("{count} numbers are possible", count=count), "", "", SAME, PART)


def _numbers(place: str, field: str, value: Any) -> Iterator[tuple[str, str, float | Estimate]]:
    """Place, name of the field and value of every number and estimate."""
    if isinstance(value, Estimate) or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield place, field, value
    elif is_dataclass(value):
        for one in fields(value):
            yield from _numbers(f"{place}.{one.name}", one.name, getattr(value, one.name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(f"{place}.{key}", field, item)
    elif isinstance(value, list) and field != "by_sequence":
        for index, item in enumerate(value):
            yield from _numbers(f"{place}[{index}]", field, item)


def _problem(field: str, value: float | Estimate) -> str:
    estimate = value if isinstance(value, Estimate) else Estimate(value, value, value, 0.0)
    if not all(isfinite(number) for number in (estimate.value, estimate.low, estimate.high)):
        return marked("no number")
    slack = 1e-9 * max(abs(estimate.low), abs(estimate.high)) + 1e-12
    if estimate.low > estimate.high + slack:
        return marked("the interval ends before it begins")
    if not estimate.low - slack <= estimate.value <= estimate.high + slack:
        return marked("outside its own interval")
    if not 0 <= estimate.coverage <= 1:
        return marked("a coverage that is no share")
    least, most = BOUNDS.get(field, (-inf, inf))
    if not least - slack <= estimate.value <= most + slack:
        return Message("outside {least:g} to {most:g}", least=least, most=most)
    return marked("not above 0") if field in _POSITIVE and not estimate.value > 0 else ""


def _rows(place: str, rows: list[list[float]], blocks: Iterable[tuple[int, int]]) -> Iterator[Finding]:
    """Means of sequences: what each can be, and shares that are those of whole positions."""
    lengths = [stop - start - 1 for start, stop in blocks]
    for index, row in enumerate(rows):
        where = f"{place}.by_sequence[{index}]"
        if len(row) != len(FIGURES):
            yield Finding(
                where, short(row), Message("not {count} numbers", count=len(FIGURES)), CHANGED, PART
            )
            continue
        named = dict(zip(FIGURES, row, strict=True))
        least = {name: -1.0 if name == "probability_change" else 0.0 for name in FIGURES}
        most = {name: 1.0 if name in ("top1", "top5", "probability_change") else inf for name in FIGURES}
        for name, value in named.items():
            if not least[name] <= value <= most[name] + 1e-6:
                what = Message("outside {least:g} to {most:g}", least=least[name], most=most[name])
                yield Finding(f"{where}.{name}", short(value), what, CHANGED, PART)
        if index < len(lengths):
            for name, parts in (("top1", lengths[index]), ("top5", TOP * lengths[index])):
                counted = named[name] * parts
                if abs(counted - round(counted)) > 1e-3:
                    what = Message("no share of {lengths} positions", lengths=lengths[index])
                    yield Finding(f"{where}.{name}", short(named[name]), what, CHANGED, PART)


def _tail(found: Divergence) -> Iterator[Finding]:
    """Percentiles grow, none lies above the largest value, and what lies beyond one must fit into the mean."""
    place = "precision.divergence.kl_quantiles"
    ordered = sorted((float(percent), estimate.value) for percent, estimate in found.kl_quantiles.items())
    values = [value for _, value in ordered] + [found.kl_max]
    if any(np.diff(values) < -1e-12):
        yield Finding(place, short(values), marked("they do not grow"), CHANGED, PART)
    for percent, value in ordered:
        beyond = (1 - percent / 100) * (found.tokens - 1) / found.tokens
        if beyond * value > found.kl_mean.value * (1 + 1e-6) + 1e-12:
            yield Finding(
                f"{place}.{percent:g}", short(value), marked("more than the mean allows"), CHANGED, PART
            )


def _shown(value: float | Estimate) -> str:
    return str(value) if isinstance(value, Estimate) else short(value)

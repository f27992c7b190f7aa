"""The figures of a run computed anew from what they were made of: means of sequences, raw samples, answers.

By the functions that made the records, whose draws are seeded, so that they come out to the last digit. What a record
keeps no raw data of is told as not checked.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from math import exp, isclose, log
from typing import Any

import numpy as np

from telechat_kit.comparison.findings import CHANGED, SAME, Finding, compared, short, unchecked
from telechat_kit.comparison.run_data import RunData
from telechat_kit.messages import Message, marked
from telechat_kit.performance.cases import Case
from telechat_kit.performance.measurement import PUBLISHED, PerformanceRecord, Sample
from telechat_kit.performance.roofline import Peaks
from telechat_kit.performance.thread_scaling import ThreadPlan, ThreadScaling, summarize_threads
from telechat_kit.performance.timed_runs import TRANSFORMERS
from telechat_kit.performance.timed_samples import drift, summarize
from telechat_kit.precision import Answer, Divergence, Group, PrecisionRecord, Sources, TaskResult
from telechat_kit.precision.divergence import figures_of_means, mean_of
from telechat_kit.precision.kinds import like_calibration
from telechat_kit.precision.similarity import similarity
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.records import finite
from telechat_kit.statistics import share
from telechat_kit.token_samples import common_prefix

FIGURES, ANSWERS, SPEEDS, SETTINGS = (
    marked("figures"),
    marked("answers"),
    marked("speeds"),
    marked("settings"),
)


def recomputed(run: RunData) -> Iterator[Finding]:
    """What comes out when the figures of a run are computed again from its own raw data."""
    if run.quantize is not None:
        yield from _quantize(run.quantize)
    if run.precision is not None:
        yield from _precision(run.precision, run.quantize)
    if run.performance is not None:
        yield from _performance(run.performance, run.samples, run.parameters.get("repeats"))


def _quantize(record: QuantizeRecord) -> Iterator[Finding]:
    recipe = record.recipe
    if recipe is None:
        yield unchecked(
            SETTINGS, "quantize.recipe", marked("the weights were given and do not tell their recipe")
        )
        return
    yield from compared(
        SETTINGS,
        "quantize.calibration_tokens",
        record.calibration_tokens,
        sum(recipe.calibration_sample_tokens),
    )


def _precision(record: PrecisionRecord, quantized: QuantizeRecord | None) -> Iterator[Finding]:
    yield from _divergence(record.divergence, record.blocks)
    for loss in record.kinds:
        yield from _group(f"precision.kinds.{loss.kind}", loss.figures, loss.blocks)
    for group in record.languages:
        yield from _group(f"precision.languages.{group.name}", group, [])
    if quantized is not None and quantized.recipe is not None and record.like_calibration is not None:
        hashes = {record.text_source: record.text_sha256} | {loss.kind: loss.sha256 for loss in record.kinds}
        again = like_calibration(hashes, asdict(quantized.recipe))
        yield from compared(SETTINGS, "precision.like_calibration", record.like_calibration, again)
    for answer in enumerate(record.answers):
        yield from _answer(*answer)
    if record.sources is not None:
        yield from _sources(record.sources)
    for task in record.tasks:
        yield from _task(task)


def _divergence(found: Divergence, blocks: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    name = "precision.divergence"
    if not _whole(found.by_sequence):
        yield unchecked(FIGURES, name, marked("the record keeps no means of sequences"))
        return
    sums = np.array(found.by_sequence)
    change = replace(found.probability_change, mean=mean_of(sums, "probability_change"))
    again = replace(found, **_decided(found, sums, blocks), probability_change=change)
    yield from compared(FIGURES, name, found, again)
    yield from _positions(found)
    rest = marked("percentiles, the largest KL, the mean square of the changes, and intervals by position")
    yield unchecked(
        FIGURES,
        Message("{name}: {rest}", name=name, rest=rest),
        marked("the record keeps no single positions; a repetition decides"),
    )


def _decided(
    found: Divergence | Group, sums: np.ndarray, blocks: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The fields of `found` that the means of its sequences and the ranges that were read decide."""
    tokens = sum(stop - start - 1 for start, stop in blocks) if blocks else found.tokens
    known = {key: value for key, value in figures_of_means(sums).items() if hasattr(found, key)}
    return {"sequences": len(sums), "tokens": tokens, **known}


def _whole(rows: Sequence[Sequence[float]]) -> bool:
    """Whether rows can be computed with; those of other lengths are told as impossible."""
    return bool(rows) and {len(row) for row in rows} == {6}


def _positions(found: Divergence) -> Iterator[Finding]:
    """The groups of positions weigh up to the whole: all sequences are of one length."""
    groups, total = found.by_position, sum(group.tokens for group in found.by_position)
    yield from compared(FIGURES, marked("precision.divergence.by_position, tokens"), total, found.tokens)
    if not total or found.tokens % found.sequences:
        return
    weights = [group.tokens / total for group in groups]
    wholes: dict[str, tuple[float, Callable[[float], float]]] = {
        "perplexity_float": (found.perplexity_float.value, log),
        "perplexity_ratio": (found.perplexity_ratio.value, log),
        "kl_mean": (found.kl_mean.value, float),
        "top1_agreement": (found.top1_agreement.value, float),
    }
    for name, (whole, scale) in wholes.items():
        mean = sum(
            weight * scale(getattr(group, name).value) for weight, group in zip(weights, groups, strict=True)
        )
        value = exp(mean) if scale is log else mean
        if isclose(value, whole, rel_tol=1e-6, abs_tol=1e-9):
            yield Finding(f"precision.divergence.by_position.{name}", "", "", SAME, FIGURES)
        else:
            place = Message("precision.divergence.by_position.{name}, weighed up", name=name)
            yield Finding(place, short(value), short(whole), CHANGED, FIGURES)


def _group(name: str, found: Group, blocks: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    if not _whole(found.by_sequence):
        yield unchecked(FIGURES, name, marked("the record keeps no means of sequences"))
        return
    sums = np.array(found.by_sequence)
    yield from compared(FIGURES, name, found, replace(found, **_decided(found, sums, blocks)))


def _answer(index: int, found: Answer) -> Iterator[Finding]:
    name = f"precision.answers[{index}]"
    again = replace(found, similarity=similarity(found.float_answer, found.w8a8_answer))
    if not found.float_ids and not found.w8a8_ids:
        yield unchecked(ANSWERS, Message("{name}, tokens", name=name), marked("the record keeps no ids"))
        yield from compared(ANSWERS, name, found, again)
        return
    ids = (found.float_ids, found.w8a8_ids)
    common = common_prefix(*ids)
    again = replace(again, common_tokens=common, float_tokens=len(ids[0]), w8a8_tokens=len(ids[1]))
    yield from compared(ANSWERS, name, found, again)
    parted = common < max(map(len, ids))
    told = not found.equal
    if parted != told:
        yield Finding(
            Message("{name}, whether both are equal", name=name),
            _parted(told),
            _parted(parted),
            CHANGED,
            ANSWERS,
        )
    if not parted and found.float_answer != found.w8a8_answer:
        yield Finding(
            Message("{name}, texts of equal ids", name=name),
            marked("they differ"),
            marked("equal"),
            CHANGED,
            ANSWERS,
        )


def _parted(parted: bool) -> str:
    return marked("they part") if parted else marked("equal")


def _sources(found: Sources) -> Iterator[Finding]:
    total = sum(linear.effect for linear in found.linears) or 1.0
    linears = [replace(linear, estimated_share=linear.effect / total) for linear in found.linears]
    shares = {linear.name: linear.estimated_share for linear in linears}
    kept = [
        replace(
            one,
            estimated_share=sum(shares.get(name, 0.0) for name in one.names),
            kl_change=replace(one.kl_change, value=one.kl_mean.value - found.kl_mean.value),
        )
        for one in found.kept
    ]
    yield from compared(FIGURES, "precision.sources", found, replace(found, linears=linears, kept=kept))
    rest = marked("the noise of linears and blocks, and their intervals")
    yield unchecked(
        FIGURES,
        Message("precision.sources: {rest}", rest=rest),
        marked("the record keeps no tokens; a repetition decides"),
    )


def _task(found: TaskResult) -> Iterator[Finding]:
    """Shares of a whole number of questions, with the intervals that those have."""
    n, accuracies = found.questions, (found.accuracy_float, found.accuracy_w8a8)
    right = [round(accuracy.value * n) for accuracy in accuracies]
    again = replace(
        found,
        accuracy_float=share(right[0], n),
        accuracy_w8a8=share(right[1], n),
        difference=replace(found.difference, value=(right[1] - right[0]) / n),
    )
    yield from compared(FIGURES, f"precision.tasks.{found.name}", found, again)
    rest = marked("interval of the difference")
    yield unchecked(
        FIGURES,
        Message("precision.tasks.{name}, {rest}", name=found.name, rest=rest),
        marked("the record keeps no single choices"),
    )


def _performance(
    record: PerformanceRecord, samples: Sequence[Sample], repeats: int | None
) -> Iterator[Finding]:
    yield from compared(SPEEDS, "performance.published", record.published, list(PUBLISHED))
    if not samples:
        yield unchecked(SPEEDS, "performance.cases", marked("there are no raw samples"))
        return
    yield from _samples(samples, repeats)
    known = {size.precision for size in record.sizes}
    if lost := sorted({sample.precision for sample in samples} - known):
        yield Finding(
            marked("samples.jsonl, precisions"),
            ", ".join(lost),
            marked("not in performance.sizes"),
            CHANGED,
            SPEEDS,
        )
        return
    peaks = record.peaks or Peaks(record.read_bandwidth, record.read_bandwidth_basis)
    results = summarize(samples, record.sizes, peaks)
    if record.peaks is None:  # of a record from before they were kept
        limits = {(case.precision, case.case): case.limit_tokens_per_second for case in record.cases}
        results = [
            replace(one, limit_tokens_per_second=limits.get((one.precision, one.case), 0.0))
            for one in results
        ]
    else:
        yield from compared(SPEEDS, "performance.read_bandwidth", record.read_bandwidth, peaks.bandwidth)
    grid = [sample for sample in samples if sample.threads is None]
    again = replace(
        record,
        batch=min(sample.batch for sample in grid) if grid else record.batch,
        cases=[one for one in results if one.precision != TRANSFORMERS],
        transformers=[one for one in results if one.precision == TRANSFORMERS],
        drift=finite(drift(samples)),
        seconds=sum(sample.seconds for sample in grid),
        threads=_threads(record.threads, samples),
    )
    yield from compared(SPEEDS, "performance", record, again)


def _samples(samples: Sequence[Sample], repeats: int | None) -> Iterator[Finding]:
    """Times of each sample fit together, and each case was timed as often as the parameters say."""
    wrong = []
    for index, one in enumerate(samples):
        after_first = one.output_tokens - 1
        mean = (one.seconds - one.time_to_first_token) / after_first if after_first > 0 else None
        place = Message("samples.jsonl, line {index}", index=index + 1)
        if one.time_to_first_token > one.seconds:
            wrong.append(
                Finding(
                    place,
                    short(one.time_to_first_token),
                    marked("first token after the last"),
                    CHANGED,
                    SPEEDS,
                )
            )
        wrong += [
            f
            for f in compared(
                SPEEDS, Message("{place}, time per token", place=place), one.time_per_output_token, mean
            )
            if f.verdict != SAME
        ]
    counts = Counter((one.precision, one.case, one.threads) for one in samples)
    runs = {(one.precision, one.case, one.threads, one.repeat) for one in samples}
    if len(runs) < len(samples):
        wrong.append(
            Finding(
                "samples.jsonl",
                Message("{count} runs", count=len(samples)),
                Message("{count} different ones", count=len(runs)),
                CHANGED,
                SPEEDS,
            )
        )
    for (precision, case, threads), count in counts.items():
        if repeats is not None and count != repeats:
            place = Message("samples.jsonl, {precision} {case}", precision=precision, case=tuple(case))
            if threads:
                place = Message("{place}, {threads} threads", place=place, threads=threads)
            wrong.append(
                Finding(
                    place,
                    Message("{count} runs", count=count),
                    Message("{repeats} asked for", repeats=repeats),
                    CHANGED,
                    SPEEDS,
                )
            )
    yield from wrong
    if not wrong:
        yield Finding(Message("{count} samples fit together", count=len(samples)), "", "", SAME, SPEEDS)


def _threads(found: ThreadScaling | None, samples: Sequence[Sample]) -> ThreadScaling | None:
    """The scaling by threads, from the samples that name a number of them."""
    own = [sample for sample in samples if sample.threads is not None]
    if found is None:
        return None if not own else summarize_threads(ThreadPlan([1], [], 0), own[0].case, own)
    counts = sorted({sample.threads for sample in own if sample.threads is not None})
    case = own[0].case if own else Case(found.input_tokens, found.output_tokens, found.batch)
    return summarize_threads(ThreadPlan(counts, found.left_out, found.available, found.reason), case, own)

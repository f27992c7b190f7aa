"""Sentences and tables of `04_performance`: the verdict, what to doubt, the cases, ids, what was left out."""

from statistics import median

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.backends.cores import Busy
from telechat_kit.comparison.verdict import engine_gain, engine_said, speed_gain, speed_said
from telechat_kit.messages import closed_up, ngettext, shown
from telechat_kit.messages import gettext as _
from telechat_kit.performance.cases import duration
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.performance.timed_samples import DRIFT, UNSTABLE
from telechat_kit.reports.charts import NAMES
from telechat_kit.reports.tables import styled

#: Share of the cores that others may take before it is said to count
BUSY = 0.05


def verdict(record: PerformanceRecord) -> str:
    """What the run found: a sentence a line."""
    lines, engine = [speed_said(speed_gain(record), record.conditions.device_name)], engine_gain(record)
    if engine is not None:
        lines.append(engine_said(engine))
    shares = {
        name: median(case.share_of_limit for case in record.grid_cases if case.precision == name)
        for name in NAMES
    }
    reached = _(
        "Of what the memory and the arithmetic of the device allow, W8A8 reaches {w8a8} and float {float} (medians of the "
        "cases)."
    )
    lines.append(reached.format(**{name: f"{share:.0%}" for name, share in shares.items()}))
    if record.cache_dtype != "auto":
        kept = _("The engine kept keys and values of both in {cache_dtype}.")
        lines.append(kept.format(cache_dtype=record.cache_dtype))
    return "\n".join(map(closed_up, lines))


def doubts(record: PerformanceRecord) -> str:
    """What speaks against the figures: drift, cases that vary, ids that differ. One line each."""
    unstable = sum(case.unstable for case in record.cases)
    lines = [_drift(record.drift)]
    varied = ngettext(
        "{unstable} of {count} row varies by more than {most} between its runs: marked unstable",
        "{unstable} of {count} rows vary by more than {most} between their runs: marked unstable",
        len(record.cases),
    )
    steady = _("no case varies by more than {most} between its runs")
    lines.append(
        (varied if unstable else steady).format(
            unstable=unstable, count=len(record.cases), most=f"{UNSTABLE:.0%}"
        )
    )
    if record.id_checks:
        equal = sum(check.equal == check.compared and check.runs_agree for check in record.id_checks)
        told = ngettext(
            "behind {equal} of {count} prompt the timed ids are those of generate() of transformers",
            "behind {equal} of {count} prompts the timed ids are those of generate() of transformers",
            len(record.id_checks),
        )
        lines.append(told.format(equal=equal, count=len(record.id_checks)))
    if record.seconds is not None and record.estimated_seconds is not None:
        lines.append(
            _("all timed runs took {seconds}, estimated before: {estimate}").format(
                seconds=duration(record.seconds), estimate=duration(record.estimated_seconds)
            )
        )
    if record.busy is not None:
        lines.append(_busy(record.busy))
    if record.energy_basis:
        lines.append(energy(record))
    return "\n".join(lines)


def energy(record: PerformanceRecord) -> str:
    """Of what the joules of the case table are, or why there are none."""
    if any(case.joules_per_token for case in record.cases):
        message = _("Energy per token is that of the whole device, other programs included: {basis}.")
    else:
        message = _("Energy: not reported by this device ({basis}).")
    return message.format(basis=shown(record.energy_basis))


def launches(record: PerformanceRecord) -> str:
    """What starting operators costs a token beside reading its bytes: a sentence for each precision."""
    if not record.launches or record.launch_seconds is None:
        return _("No starts of operators were counted: on a CPU they are plain calls.")
    sizes = {size.precision: size for size in record.sizes}
    message = _(
        "{precision}: a token starts {count} operators, {milliseconds} ms at {each} µs each (measured with small sums); "
        "its bytes take {read} ms ({basis}). A prompt of {tokens} tokens starts {prompt}."
    )
    return "\n".join(
        message.format(
            precision=_(NAMES[found.precision]),
            count=f"{found.token:,}",
            milliseconds=f"{found.token * record.launch_seconds * 1e3:.1f}",
            each=f"{record.launch_seconds * 1e6:.1f}",
            read=f"{sizes[found.precision].read_bytes_per_token / record.read_bandwidth * 1e3:.1f}",
            basis=shown(record.read_bandwidth_basis),
            tokens=found.input_tokens,
            prompt=f"{found.prompt:,}",
        )
        for found in record.launches
    )


def _busy(found: Busy) -> str:
    message = (
        _("other programs took {taken} of {cores} cores meanwhile")
        if found.taken <= BUSY * found.cores
        else _(
            "other programs took {taken} of {cores} cores meanwhile: the figures are those of a busy machine. End them and "
            "run it again"
        )
    )
    return message.format(taken=f"{found.taken:.2f}", cores=found.cores)


def _drift(found: float | None) -> str:
    if found is None:
        return _("one repeat: a drift of the device would not show")
    if abs(found) <= DRIFT:
        message = _("time of the later repeats against the earlier ones: {change}, no drift")
    elif found > 0:
        message = _(
            "time of the later repeats against the earlier ones: {change}, the device was busy or throttled. Run it again"
        )
    else:
        message = _(
            "time of the later repeats against the earlier ones: {change}, the device was busy at first. Run it again"
        )
    return message.format(change=f"{found:+.1%}")


def cases(record: PerformanceRecord) -> Styler:
    """Medians of every case, float and W8A8, with the limit of the device beside them, then transformers' own loop."""
    rows = [
        (
            case.input_tokens,
            case.output_tokens,
            _(NAMES[case.precision]) if case.precision in NAMES else _("float, transformers"),
            case.tokens_per_second.value,
            f"{case.tokens_per_second.low:.1f}–{case.tokens_per_second.high:.1f}",
            case.time_to_first_token.value * 1e3,
            case.time_per_output_token.value * 1e3 if case.time_per_output_token else None,
            case.token_p95.value * 1e3 if case.token_p95 else None,
            case.limit_tokens_per_second,
            case.share_of_limit,
            case.batch,
            case.repeats,
            _("unstable") if case.unstable else "",
            case.joules_per_token.value if case.joules_per_token else None,
        )
        for case in (*record.cases, *record.transformers)
    ]
    names = [
        _("input tokens"),
        _("output tokens"),
        _("precision"),
        _("tokens/s"),
        _("interval"),
        _("first token, ms"),
        _("per output token, ms"),
        _("95 % of them within, ms"),
        _("limit, tokens/s"),
        _("share of the limit"),
        _("batch"),
        _("repeats"),
        _("note"),
        _("energy per token, J"),
    ]
    digits = ("{:.1f}", "{:.1f}", "{:.2f}", "{:.2f}", "{:.0f}", "{:.0%}", "{:.3g}")
    formats = dict(zip((names[3], *names[5:10], names[-1]), digits, strict=True))
    frame = pd.DataFrame(rows, columns=names).sort_values(names[:2], kind="stable")
    if not any(case.joules_per_token for case in record.cases):
        return styled(
            frame.drop(columns=names[-1]), {name: formats[name] for name in formats if name != names[-1]}
        )
    return styled(frame, formats)


def interval_note(record: PerformanceRecord) -> str:
    """What the intervals of the case table cover, in a sentence."""
    coverage = min(case.tokens_per_second.coverage for case in record.cases)
    repeats = record.cases[0].repeats
    return ngettext(
        "The intervals of the medians cover the truth with {coverage} probability (order statistics of {count} repeat).",
        "The intervals of the medians cover the truth with {coverage} probability (order statistics of {count} repeats).",
        repeats,
    ).format(coverage=f"{coverage:.0%}", count=repeats)


def published(record: PerformanceRecord) -> Styler:
    """The guide's figures, named as what they are."""
    rows = [
        (
            f"{case.input_tokens} / {case.output_tokens}" if case.input_tokens else _("mean of the 25 cases"),
            case.npu_310p,
            case.gpu_a10,
        )
        for case in record.published
    ]
    names = [
        _("published: TeleChat-7B int8, input / output tokens"),
        _("NPU 310P, tokens/s"),
        _("GPU A10, tokens/s"),
    ]
    return styled(pd.DataFrame(rows, columns=names), dict.fromkeys(names[1:], "{:.0f}"))


def id_checks(record: PerformanceRecord) -> Styler:
    """Ids generated while timing beside those of `generate()`, by prompt length."""
    rows = [
        (check.input_tokens, check.compared, check.equal, _("yes") if check.runs_agree else _("no"))
        for check in record.id_checks
    ]
    names = [
        _("input tokens"),
        _("ids compared"),
        _("leading ids equal"),
        _("all runs gave the same ids"),
    ]
    return styled(pd.DataFrame(rows, columns=names))


def skipped(record: PerformanceRecord) -> Styler:
    """Cases that were left out, and why."""
    rows = [
        (case.input_tokens, case.output_tokens, case.batch, shown(case.reason)) for case in record.skipped
    ]
    names = [_("input tokens"), _("output tokens"), _("batch"), _("left out because it")]
    return styled(pd.DataFrame(rows, columns=names))

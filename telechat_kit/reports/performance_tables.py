"""Sentences and tables of `04_performance`: the verdict, what to doubt, the cases, ids, what was left out."""

from statistics import median

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.backends.cores import Busy
from telechat_kit.comparison.verdict import engine_gain, engine_said, speed_gain, speed_said
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
    lines.append(
        f"Of what the memory and the arithmetic of the device allow, W8A8 reaches {shares['w8a8']:.0%} and float "
        f"{shares['float']:.0%} (medians of the cases)."
    )
    return "\n".join(lines)


def doubts(record: PerformanceRecord) -> str:
    """What speaks against the figures: drift, cases that vary, ids that differ. One line each."""
    unstable = sum(case.unstable for case in record.cases)
    lines = [_drift(record.drift)]
    lines.append(
        f"{unstable} of {len(record.cases)} rows vary by more than {UNSTABLE:.0%} between their runs: marked unstable"
        if unstable
        else f"no case varies by more than {UNSTABLE:.0%} between its runs"
    )
    if record.id_checks:
        equal = sum(check.equal == check.compared and check.runs_agree for check in record.id_checks)
        lines.append(
            f"behind {equal} of {len(record.id_checks)} prompts the timed ids are those of generate() of transformers"
        )
    if record.seconds is not None and record.estimated_seconds is not None:
        lines.append(
            f"all timed runs took {duration(record.seconds)}, estimated before: {duration(record.estimated_seconds)}"
        )
    if record.busy is not None:
        lines.append(_busy(record.busy))
    if record.energy_basis:
        lines.append(energy(record))
    return "\n".join(lines)


def energy(record: PerformanceRecord) -> str:
    """Of what the joules of the case table are, or why there are none."""
    if any(case.joules_per_token for case in record.cases):
        return f"energy per token is that of the whole device, other programs included: {record.energy_basis}"
    return f"energy: not reported by this device ({record.energy_basis})"


def launches(record: PerformanceRecord) -> str:
    """What starting operators costs a token beside reading its bytes: a sentence for each precision."""
    if not record.launches or record.launch_seconds is None:
        return "No starts of operators were counted: on a CPU they are plain calls."
    sizes = {size.precision: size for size in record.sizes}
    each = f"{record.launch_seconds * 1e6:.1f}"
    return "\n".join(
        f"{NAMES[found.precision]}: a token starts {found.token:,} operators, "
        f"{found.token * record.launch_seconds * 1e3:.1f} ms at {each} µs each (measured with small sums); its bytes "
        f"take {sizes[found.precision].read_bytes_per_token / record.read_bandwidth * 1e3:.1f} ms "
        f"({record.read_bandwidth_basis}). A prompt of {found.input_tokens} tokens starts {found.prompt:,}."
        for found in record.launches
    )


def _busy(found: Busy) -> str:
    taken = f"other programs took {found.taken:.2f} of {found.cores} cores meanwhile"
    if found.taken <= BUSY * found.cores:
        return taken
    return f"{taken}: the figures are those of a busy machine. End them and run it again"


def _drift(found: float | None) -> str:
    if found is None:
        return "one repeat: a drift of the device would not show"
    if abs(found) <= DRIFT:
        return f"time of the later repeats against the earlier ones: {found:+.1%}, no drift"
    reason = "the device was busy or throttled" if found > 0 else "the device was busy at first"
    return f"time of the later repeats against the earlier ones: {found:+.1%}, {reason}. Run it again"


def cases(record: PerformanceRecord) -> Styler:
    """Medians of every case, float and W8A8, with the limit of the device beside them, then transformers' own loop."""
    rows = [
        (
            case.input_tokens,
            case.output_tokens,
            NAMES.get(case.precision, "float, transformers"),
            case.tokens_per_second.value,
            f"{case.tokens_per_second.low:.1f}–{case.tokens_per_second.high:.1f}",
            case.time_to_first_token.value * 1e3,
            case.time_per_output_token.value * 1e3 if case.time_per_output_token else None,
            case.token_p95.value * 1e3 if case.token_p95 else None,
            case.limit_tokens_per_second,
            case.share_of_limit,
            case.batch,
            case.repeats,
            "unstable" if case.unstable else "",
            case.joules_per_token.value if case.joules_per_token else None,
        )
        for case in (*record.cases, *record.transformers)
    ]
    names = [
        "input tokens",
        "output tokens",
        "precision",
        "tokens/s",
        "interval",
        "first token, ms",
        "per output token, ms",
        "95 % of them within, ms",
        "limit, tokens/s",
        "share of the limit",
        "batch",
        "repeats",
        "note",
        "energy per token, J",
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
    return f"The intervals of the medians cover the truth with {coverage:.0%} probability (order statistics of {record.cases[0].repeats} repeats)."


def published(record: PerformanceRecord) -> Styler:
    """The guide's figures, named as what they are."""
    rows = [
        (
            f"{case.input_tokens} / {case.output_tokens}" if case.input_tokens else "mean of the 25 cases",
            case.npu_310p,
            case.gpu_a10,
        )
        for case in record.published
    ]
    names = ["published: TeleChat-7B int8, input / output tokens", "NPU 310P, tokens/s", "GPU A10, tokens/s"]
    return styled(pd.DataFrame(rows, columns=names), dict.fromkeys(names[1:], "{:.0f}"))


def id_checks(record: PerformanceRecord) -> Styler:
    """Ids generated while timing beside those of `generate()`, by prompt length."""
    rows = [
        (check.input_tokens, check.compared, check.equal, "yes" if check.runs_agree else "no")
        for check in record.id_checks
    ]
    names = ["input tokens", "ids compared", "leading ids equal", "all runs gave the same ids"]
    return styled(pd.DataFrame(rows, columns=names))


def skipped(record: PerformanceRecord) -> Styler:
    """Cases that were left out, and why."""
    rows = [(case.input_tokens, case.output_tokens, case.batch, case.reason) for case in record.skipped]
    return styled(
        pd.DataFrame(rows, columns=["input tokens", "output tokens", "batch", "left out because it"])
    )

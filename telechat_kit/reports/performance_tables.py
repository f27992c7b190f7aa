"""Sentences and tables of `04_performance` beside the cases: the verdict, what to doubt, ids, what was left out."""

from statistics import median

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.comparison.verdict import speed_gain, speed_said
from telechat_kit.performance.cases import duration
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.performance.timed_samples import DRIFT, UNSTABLE
from telechat_kit.reports.charts import NAMES
from telechat_kit.reports.tables import styled


def verdict(record: PerformanceRecord) -> str:
    """What the run found: a sentence a line."""
    shares = {
        name: median(case.share_of_limit for case in record.grid_cases if case.precision == name)
        for name in NAMES
    }
    return (
        f"{speed_said(speed_gain(record), record.conditions.device_name)}\nOf what the memory and the arithmetic of the "
        f"device allow, W8A8 reaches {shares['w8a8']:.0%} and float {shares['float']:.0%} (medians of the cases)."
    )


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
    if record.energy_basis:
        lines.append(energy(record))
    return "\n".join(lines)


def energy(record: PerformanceRecord) -> str:
    """Of what the joules of the case table are, or why there are none."""
    if any(case.joules_per_token for case in record.cases):
        return f"energy per token is that of the whole device, other programs included: {record.energy_basis}"
    return f"energy: not reported by this device ({record.energy_basis})"


def _drift(found: float | None) -> str:
    if found is None:
        return "one repeat: a drift of the device would not show"
    if abs(found) <= DRIFT:
        return f"time of the later repeats against the earlier ones: {found:+.1%}, no drift"
    reason = "the device was busy or throttled" if found > 0 else "the device was busy at first"
    return f"time of the later repeats against the earlier ones: {found:+.1%}, {reason}. Run it again"


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

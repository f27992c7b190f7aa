"""Tables that several notebooks and the report show, and the style of all: one row a finding, units in the headers."""

from statistics import geometric_mean
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.precision import PrecisionRecord
from telechat_kit.provenance import Conditions
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.reports.charts import NAMES, speed_ratio


def styled(frame: pd.DataFrame, formats: dict[Any, Any] | None = None) -> Styler:
    """A table as the pages show it: text escaped, because models wrote some of it; no row numbers."""
    return frame.style.format(formats, escape="html", na_rep="–").hide(axis="index")


def conditions(found: Conditions) -> Styler:
    """Under which conditions a record was made."""
    rows = [
        ("device", f"{found.device}: {found.device_name}"),
        ("memory", f"{found.memory_bytes / 2**30:.1f} GiB"),
        ("system", found.system),
        *((f"version of {name}", version) for name, version in found.versions.items()),
        *((f"operators of {verb.replace('_', ' ')}", way) for verb, way in found.operators.items()),
        ("code", found.code),
        ("started (UTC)", found.started),
        *((f"SHA-256, {name.replace('_', ' ')}", value) for name, value in found.hashes.items()),
    ]
    return styled(pd.DataFrame(rows, columns=["condition", "value"]))


def headline(precision: PrecisionRecord, performance: PerformanceRecord, quantized: QuantizeRecord) -> Styler:
    """The four figures that a reader came for."""
    found = precision.divergence
    ratio = found.perplexity_ratio
    rows = [
        ("perplexity", f"{found.perplexity_float.value:.2f}", f"{found.perplexity_w8a8.value:.2f}", f"{ratio.value:.3f} times [{ratio.low:.3f}, {ratio.high:.3f}]"),
        ("same most likely token", "–", "–", f"{found.top1_agreement.value:.1%} of positions"),
        ("weight files", f"{quantized.float_bytes / 1e6:,.1f} MB", f"{quantized.w8a8_bytes / 1e6:,.1f} MB", f"{quantized.w8a8_bytes / quantized.float_bytes:.2f} times"),
        ("tokens/s, geometric mean of the cases", *_speeds(performance), f"{speed_ratio(performance):.2f} times"),
    ]  # fmt: skip
    return styled(pd.DataFrame(rows, columns=["", "float", "W8A8", "W8A8 against float"]))


def _speeds(record: PerformanceRecord) -> tuple[str, str]:
    values = {
        name: [case.tokens_per_second.value for case in record.grid_cases if case.precision == name]
        for name in NAMES
    }
    means = {name: geometric_mean(found) for name, found in values.items()}
    return f"{means['float']:.1f}", f"{means['w8a8']:.1f}"

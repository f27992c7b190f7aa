"""Tables that several notebooks and the report show, and the style of all: one row a finding, units in the headers."""

from statistics import geometric_mean
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.comparison.verdict import device_said, engine_gain, losses, shown, speed_gain
from telechat_kit.messages import Message, marked
from telechat_kit.messages import gettext as _
from telechat_kit.messages import shown as told
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.precision import PrecisionRecord
from telechat_kit.provenance import Conditions
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.reports.charts import NAMES

#: Operations as records name them
_OPERATIONS = (marked("attention"), marked("int8 linear"))


def styled(frame: pd.DataFrame, formats: dict[Any, Any] | None = None) -> Styler:
    """A table as the pages show it: cells and headings escaped, models and folders wrote some; no row numbers."""
    shown = frame.style.format(formats, escape="html", na_rep="–")
    return shown.format_index(escape="html", axis="columns").hide(axis="index")


def conditions(found: Conditions) -> Styler:
    """Under which conditions a record was made."""
    rows = [
        (_("device"), f"{found.device}: {device_said(found.device_name)}"),
        (_("memory"), f"{found.memory_bytes / 2**30:.1f} GiB"),
        (_("system"), found.system),
        *(
            (_("version of {package}").format(package=name), version)
            for name, version in found.versions.items()
        ),
        *(
            (_("operators of {verb}").format(verb=_(verb.replace("_", " "))), told(way))
            for verb, way in found.operators.items()
        ),
        (_("code"), found.code),
        (_("started (UTC)"), found.started),
        *(
            (Message("SHA-256, {what}", what=name.replace("_", " ")).shown(), value)
            for name, value in found.hashes.items()
        ),
    ]
    return styled(pd.DataFrame(rows, columns=[_("condition"), _("value")]))


def headline(precision: PrecisionRecord, performance: PerformanceRecord, quantized: QuantizeRecord) -> Styler:
    """The figures that a reader came for; of the texts the worst."""
    worst = losses(precision, quantized)[0]
    rows = [
        (_("perplexity, {text}").format(text=worst.text), f"{worst.perplexity_float:.2f}", f"{worst.perplexity_float * worst.perplexity_ratio.value:.2f}", _times(shown(worst.perplexity_ratio))),
        (_("same most likely token, {text}").format(text=worst.text), "–", "–", _("{share} % of positions").format(share=shown(worst.same_token.map(lambda x: 100 * x)))),
        (_("weight files"), f"{quantized.float_bytes / 1e6:,.1f} MB", f"{quantized.w8a8_bytes / 1e6:,.1f} MB", _times(f"{quantized.w8a8_bytes / quantized.float_bytes:.2f}")),
        (_("tokens/s, geometric mean of the cases"), *_speeds(performance), _gain(performance)),
        *_transformers(performance),
    ]  # fmt: skip
    return styled(pd.DataFrame(rows, columns=[_("figure"), _("float"), "W8A8", _("W8A8 against float")]))


def _gain(record: PerformanceRecord) -> str:
    """With the engines, where they differ: then the ratio is not that of int8 alone."""
    found, apart = speed_gain(record).ratio, len(set(record.engines.values())) > 1
    if found is None:
        return _("not shown: the runs vary too much")
    message = _("{ratio} times, in different engines") if apart else _("{ratio} times")
    return message.format(ratio=shown(found))


def _times(ratio: str) -> str:
    return _("{ratio} times").format(ratio=ratio)


def _transformers(record: PerformanceRecord) -> list[tuple[str, str, str, str]]:
    """The row of transformers' own loop, where it was timed."""
    found = engine_gain(record)
    if found is None:
        return []
    mean = geometric_mean(case.tokens_per_second.value for case in record.transformers)
    brought = (
        _("engine: {ratio} times").format(ratio=shown(found.ratio))
        if found.ratio
        else _("not shown: the runs vary too much")
    )
    return [(_("tokens/s of transformers' generate()"), f"{mean:.1f}", "–", brought)]


def _speeds(record: PerformanceRecord) -> tuple[str, str]:
    values = {
        name: [case.tokens_per_second.value for case in record.grid_cases if case.precision == name]
        for name in NAMES
    }
    means = {name: geometric_mean(found) for name, found in values.items()}
    return f"{means['float']:.1f}", f"{means['w8a8']:.1f}"

"""Tables of the notebooks and the report: one row a finding, units in the headers."""

from statistics import geometric_mean
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.environment import SetupRecord
from telechat_kit.performance import PerformanceRecord
from telechat_kit.precision import PrecisionRecord
from telechat_kit.provenance import Conditions
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.reports.charts import NAMES, speed_ratio
from telechat_kit.statistics import Estimate


def styled(frame: pd.DataFrame, formats: dict[Any, Any] | None = None) -> Styler:
    """A table as the pages show it: text escaped, because models wrote some of it; no row numbers."""
    return frame.style.format(formats, escape="html", na_rep="–").hide(axis="index")


def setup(record: SetupRecord) -> Styler:
    """Component, found, required, verdict, what to do."""
    rows = [(c.component, c.found, c.required, c.verdict, c.advice) for c in record.checks]
    frame = pd.DataFrame(rows, columns=["component", "found", "required", "verdict", "what to do"])
    return styled(frame)


def model(record: SetupRecord) -> Styler:
    """Shape of the network and origin of its weights."""
    rows = [(key, f"{value:,}") for key, value in record.architecture.items()]
    rows += [("parameters", f"{sum(part.parameters for part in record.parts):,}")]
    rows += [(key, str(value)) for key, value in record.origin.items()]
    return styled(pd.DataFrame(rows, columns=["model", record.checkpoint_path]))


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


def recipe(record: QuantizeRecord) -> Styler:
    """How the checkpoint was quantized."""
    used = record.recipe
    rows = [
        ("level", used.level),
        ("outlier suppression", used.anti_outlier),
        ("activation range", {1: "min-max", 2: "histogram", 3: "automatic"}[used.act_method]),
        (
            "calibration",
            f"{len(used.calibration_blocks)} samples, {record.calibration_tokens:,} tokens of {used.calibration_source}",
        ),
        ("seed", str(used.seed)),
        (
            "linears in int8",
            f"{sum(linear.kind == 'W8A8' for linear in record.linears)} of {len(record.linears)}",
        ),
        ("weight files", f"{record.float_bytes / 1e6:,.1f} MB float, {record.w8a8_bytes / 1e6:,.1f} MB W8A8"),
        ("time", f"{record.seconds:.1f} s"),
        ("peak memory of the process", f"{record.peak_memory_bytes / 2**30:.2f} GiB"),
    ]
    return styled(pd.DataFrame(rows, columns=["recipe", record.quant_path]))


def float_linears(record: QuantizeRecord) -> Styler:
    """The linears kept in float, and why."""
    rows = [
        (linear.name.removeprefix("transformer."), linear.score, linear.reason)
        for linear in record.float_linears
    ]
    return styled(pd.DataFrame(rows, columns=["kept in float", "score", "reason"]), {"score": "{:.2f}"})


def divergence(record: PrecisionRecord) -> Styler:
    """Float against W8A8 over the text, with 95 % intervals."""
    found = record.divergence
    rows = [
        ("perplexity, float", *_estimate(found.perplexity_float, "{:.3f}")),
        ("perplexity, W8A8", *_estimate(found.perplexity_w8a8, "{:.3f}")),
        ("perplexity ratio, W8A8 / float", *_estimate(found.perplexity_ratio, "{:.4f}")),
        ("KL(float || W8A8), nats per token, mean", *_estimate(found.kl_mean, "{:.4f}")),
        *(
            (f"KL, {share} % of positions at most", f"{value:.4f}", "–")
            for share, value in found.kl_quantiles.items()
        ),
        ("KL, largest", f"{found.kl_max:.3f}", "–"),
        ("same most likely token", *_estimate(found.top1_agreement, "{:.2%}")),
    ]
    return styled(pd.DataFrame(rows, columns=["figure", "value", "95 % interval"]))


def _estimate(estimate: Estimate, pattern: str) -> tuple[str, str]:
    low, high = pattern.format(estimate.low), pattern.format(estimate.high)
    return pattern.format(estimate.value), f"{low} – {high}"


def answers(record: PrecisionRecord) -> Styler:
    """Answers of both models side by side."""
    rows = [
        (
            a.input,
            a.float_answer,
            a.w8a8_answer,
            f"{a.common_tokens} of {max(a.float_tokens, a.w8a8_tokens)}",
            a.similarity,
        )
        for a in record.answers
    ]
    names = ["question", "float", "W8A8", "same tokens from the start", "similarity of the texts"]
    return styled(pd.DataFrame(rows, columns=names), {names[4]: "{:.0%}"})


def cases(record: PerformanceRecord) -> Styler:
    """Medians of every case, float and W8A8, with the bandwidth limit beside them."""
    rows = [
        (
            case.input_tokens,
            case.output_tokens,
            NAMES[case.precision],
            case.tokens_per_second.value,
            f"{case.tokens_per_second.low:.1f}–{case.tokens_per_second.high:.1f}",
            case.time_to_first_token.value * 1e3,
            case.time_per_output_token.value * 1e3 if case.time_per_output_token else None,
            case.limit_tokens_per_second,
            case.repeats,
        )
        for case in record.cases
    ]
    names = [
        "input tokens",
        "output tokens",
        "precision",
        "tokens/s",
        "interval",
        "first token, ms",
        "per output token, ms",
        "limit, tokens/s",
        "repeats",
    ]
    formats = {names[3]: "{:.1f}", names[5]: "{:.1f}", names[6]: "{:.2f}", names[7]: "{:.0f}"}
    return styled(pd.DataFrame(rows, columns=names).sort_values(names[:2], kind="stable"), formats)


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
        name: [case.tokens_per_second.value for case in record.cases if case.precision == name]
        for name in NAMES
    }
    means = {name: geometric_mean(found) for name, found in values.items()}
    return f"{means['float']:.1f}", f"{means['w8a8']:.1f}"

"""Tables of the notebooks and the report: one row a finding, units in the headers."""

from collections.abc import Callable, Iterable, Sequence
from statistics import geometric_mean, median
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.comparison.verdict import losses, shown, speed_gain
from telechat_kit.environment import Check, SetupRecord
from telechat_kit.inference.memory import Fit
from telechat_kit.performance.measurement import PUBLISHED, PerformanceRecord
from telechat_kit.precision import PrecisionRecord
from telechat_kit.provenance import Conditions
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.quantization.recipe import AppliedRecipe
from telechat_kit.reports.charts import NAMES, block_and_kind

#: The row of `fits` for which the guide publishes a speed
_GUIDE = ("TeleChat-7B", "W8A8", 1)


def styled(frame: pd.DataFrame, formats: dict[Any, Any] | None = None) -> Styler:
    """A table as the pages show it: text escaped, because models wrote some of it; no row numbers."""
    return frame.style.format(formats, escape="html", na_rep="–").hide(axis="index")


def checks(found: Sequence[Check]) -> Styler:
    """Component, found, required, verdict, what to do."""
    rows = [(c.component, c.found, c.required, c.verdict, c.advice) for c in found]
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


def fits(rows: Sequence[Fit]) -> Styler:
    """Which model fits a card, the longest context with it, and the fastest decode that its memory allows."""
    titles = ["model", "weights", "chips", "GB on each", "KB/token of cache", "longest context"]
    titles += ["limit, tokens/s", "published"]
    return styled(
        pd.DataFrame(
            [
                (
                    row.model,
                    row.precision,
                    str(row.devices),
                    f"{row.weight_bytes / 1e9:.2f}",
                    f"{row.cache_bytes_per_token / 1e3:.0f}",
                    f"{row.largest_context:,}" if row.largest_context else "does not fit",
                    f"{row.limit_tokens_per_second:.1f}",
                    f"{PUBLISHED[0].npu_310p}" if (row.model, row.precision, row.devices) == _GUIDE else "–",
                )
                for row in rows
            ],
            columns=titles,
        )
    )


def recipe(record: QuantizeRecord) -> Styler:
    """How the checkpoint was quantized, or what is known of given weights."""
    used, given, rows = record.recipe, record.given, list[tuple[str, str]]()
    if given:
        int8 = sum(linear.kind != "FLOAT" for linear in record.linears)
        rows += [
            ("weights", f"given in {given.format} form, not quantized here"),
            ("tensors checked for name, shape and type", f"{given.tensors:,}"),
            ("int8 weights that are the rounded float ones", f"{given.rounded} of {int8} linears"),
            ("largest deviation from them", f"{given.largest_deviation:.2f} steps of the int8 weight"),
            *(("note", note) for note in given.notes),
        ]
    if used:
        rows += [
            ("level", used.level),
            ("outlier suppression", used.anti_outlier),
            ("activations", _activations(used)),
            ("SHA-256 of the recipe", record.recipe_sha256),
        ]
    rows += [
        (
            "linears in int8",
            f"{sum(linear.kind != 'FLOAT' for linear in record.linears)} of {len(record.linears)}",
        ),
        ("weight files", f"{record.float_bytes / 1e6:,.1f} MB float, {record.w8a8_bytes / 1e6:,.1f} MB W8A8"),
        ("time", f"{record.seconds:.1f} s"),
        ("peak memory of the process", f"{record.peak_memory_bytes / 2**30:.2f} GiB"),
    ]
    return styled(pd.DataFrame(rows, columns=["recipe", record.quant_path]))


def _activations(used: AppliedRecipe) -> str:
    if used.activations == "dynamic":
        return "dynamic, one scale for each token"
    return f"static, {({1: 'min-max', 2: 'histogram', 3: 'automatic'})[used.act_method]} range"


def calibration(record: QuantizeRecord) -> Styler:
    """The samples that the ranges come from: source, tokens, what was cut, and hashes."""
    used = record.recipe
    rows = [("calibration", "not known: the weights were given")] if used is None else _samples(used)
    return styled(pd.DataFrame(rows, columns=["calibration", "value"]))


def _samples(used: AppliedRecipe) -> list[tuple[str, str]]:
    lengths = used.calibration_sample_tokens
    forms = {
        "blocks": "blocks of the joined text",
        "lines": "lines as they are",
        "chat": "lines as chat prompts",
    }
    rows = [
        ("source", used.calibration_source),
        ("form", forms[used.calibration_format]),
        ("samples", f"{len(lengths):,}"),
        ("tokens, all samples", f"{sum(lengths):,}"),
        (
            "tokens of a sample, smallest / median / largest",
            f"{min(lengths)} / {median(lengths):g} / {max(lengths)}",
        ),
        ("seed", str(used.seed)),
    ]
    if used.calibration_lines:
        rows += [("line numbers in the file", ", ".join(map(str, used.calibration_lines)))]
        rows += [
            (f"line {line}, cut", f"{length} tokens to {max(lengths)}")
            for line, length in used.calibration_cut
        ]
    return [
        *rows,
        ("SHA-256 of the text", used.calibration_sha256),
        ("SHA-256 of the samples' token ids", used.calibration_samples_sha256),
    ]


def linears(record: QuantizeRecord) -> Styler:
    """One row for each kind of linear: its worst figures over the blocks. Activations have no unit."""
    kinds = dict.fromkeys(block_and_kind(row.name)[1] for row in record.linears)
    rows = []
    for kind in kinds:
        found = [row for row in record.linears if block_and_kind(row.name)[1] == kind]
        rows.append(
            (
                kind,
                f"{sum(row.kind != 'FLOAT' for row in found)} of {len(found)}",
                _worst(row.score for row in found),
                _worst(row.raw_absmax for row in found),
                _worst(row.input_absmax for row in found),
                _worst(row.input_scale for row in found),
                _worst((row.output_snr_db for row in found), worst=min),
                _worst(row.clipped_share for row in found),
            )
        )
    names = [
        "linear",
        "in int8",
        "sensitivity score",
        "largest |input|, unsuppressed",
        "largest |input|, suppressed",
        "largest step of the int8 input",
        "lowest signal to error of the output, dB",
        "largest clipped share",
    ]
    formats = dict.fromkeys(names[2:5], "{:,.1f}") | {
        names[5]: "{:.4f}",
        names[6]: "{:.1f}",
        names[7]: "{:.3%}",
    }
    return styled(pd.DataFrame(rows, columns=names).dropna(axis="columns", how="all"), formats)


def _worst(values: Iterable[float | None], worst: Callable[[list[float]], float] = max) -> float | None:
    known = [value for value in values if value is not None]
    return worst(known) if known else None


def dead_channels(record: QuantizeRecord) -> Styler:
    """Linears with input channels that were never anything but 0, or with weight rows of zeros."""
    rows = [
        (row.name.removeprefix("transformer."), row.dead_inputs, row.dead_outputs)
        for row in record.linears
        if row.dead_inputs or row.dead_outputs
    ]
    names = ["linear", "input channels always 0", "output channels with a weight of 0"]
    return styled(pd.DataFrame(rows or [("none", 0, 0)], columns=names))


def float_linears(record: QuantizeRecord) -> Styler:
    """The linears kept in float, and why."""
    rows = [
        (linear.name.removeprefix("transformer."), linear.score, linear.reason)
        for linear in record.float_linears
    ]
    return styled(pd.DataFrame(rows, columns=["kept in float", "score", "reason"]), {"score": "{:.2f}"})


def measured_choice(record: QuantizeRecord) -> Styler:
    """Level auto: KL of the model with each candidate alone in float, and with the best ones together."""
    if record.measured is None:
        level = record.recipe.level if record.recipe else "not known"
        return styled(pd.DataFrame({"choice": [f"not measured: level {level}. Level auto measures"]}))
    found = record.measured
    taken = {prefix.candidates: prefix.kl for prefix in found.prefixes}
    rows: list[tuple[str, float, float | None, str]] = [("all in int8", found.kl_int8, found.kl_int8, "")]
    for place, candidate in enumerate(found.candidates, start=1):
        names = ", ".join(name.removeprefix("transformer.h.") for name in candidate.names)
        rows.append((names, candidate.kl, taken.get(place), "float" if place <= found.chosen else ""))
    alone, together = "KL, it alone in float", "KL, with all above"
    table = pd.DataFrame(rows, columns=["linears", alone, together, "kept in"])
    return styled(table, {alone: "{:.4f}", together: "{:.4f}"})


def cases(record: PerformanceRecord) -> Styler:
    """Medians of every case, float and W8A8, with the limit of the device beside them."""
    rows = [
        (
            case.input_tokens,
            case.output_tokens,
            NAMES[case.precision],
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


def headline(precision: PrecisionRecord, performance: PerformanceRecord, quantized: QuantizeRecord) -> Styler:
    """The figures that a reader came for, the worst text first."""
    found = losses(precision, quantized)
    rows = [
        *((f"perplexity, {loss.text}", f"{loss.perplexity_float:.2f}", f"{loss.perplexity_float * loss.perplexity_ratio.value:.2f}", f"{shown(loss.perplexity_ratio)} times") for loss in found),
        *((f"same most likely token, {loss.text}", "–", "–", f"{shown(loss.same_token.map(lambda x: 100 * x))} % of positions") for loss in found),
        ("weight files", f"{quantized.float_bytes / 1e6:,.1f} MB", f"{quantized.w8a8_bytes / 1e6:,.1f} MB", f"{quantized.w8a8_bytes / quantized.float_bytes:.2f} times"),
        ("tokens/s, geometric mean of the cases", *_speeds(performance), _gain(performance)),
    ]  # fmt: skip
    return styled(pd.DataFrame(rows, columns=["", "float", "W8A8", "W8A8 against float"]))


def _gain(record: PerformanceRecord) -> str:
    found = speed_gain(record).ratio
    return "not shown: the runs vary too much" if found is None else f"{shown(found)} times"


def _speeds(record: PerformanceRecord) -> tuple[str, str]:
    values = {
        name: [case.tokens_per_second.value for case in record.grid_cases if case.precision == name]
        for name in NAMES
    }
    means = {name: geometric_mean(found) for name, found in values.items()}
    return f"{means['float']:.1f}", f"{means['w8a8']:.1f}"

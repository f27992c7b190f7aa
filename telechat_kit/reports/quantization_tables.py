"""Tables of `02_quantize`: the recipe, its calibration, what int8 does to the linears, and which stay in float."""

from collections.abc import Callable, Iterable
from statistics import median

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.model.folder import DYNAMIC
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.quantization.recipe import AppliedRecipe
from telechat_kit.reports.linear_names import block_and_kind
from telechat_kit.reports.tables import styled


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
    ranges = {1: "min-max", 2: "histogram", 3: "automatic"}
    return f"static, {ranges.get(used.act_method, f'unknown ({used.act_method})')} range"


def arithmetic(record: QuantizeRecord) -> str:
    """What is multiplied with what, by the linears that the record lists."""
    if any(linear.kind == DYNAMIC for linear in record.linears):
        return "Per-channel int8 weights, one scale for each token of a linear's input, found as it is read."
    return "Per-channel int8 weights, one static scale and offset for each linear's input."


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
        ("form", forms.get(used.calibration_format, used.calibration_format)),
        ("samples", f"{len(lengths):,}"),
        ("tokens, all samples", f"{sum(lengths):,}"),
        (
            "tokens of a sample, smallest / median / largest",
            f"{min(lengths)} / {median(lengths):g} / {max(lengths)}",
        ),
        ("seed", str(used.seed)),
        *(
            (f"kind {share['kind']}", f"{share['tokens']:,} tokens, {share['tokens'] / sum(lengths):.0%}")
            for share in used.calibration_kinds
        ),
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

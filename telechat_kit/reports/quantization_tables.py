"""Tables of `02_quantize`: the recipe, its calibration, what int8 does to the linears, and which stay in float."""

import re
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.comparison.verdict import kind_name
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, shown
from telechat_kit.model.folder import DYNAMIC
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.quantization.recipe import AppliedRecipe
from telechat_kit.reports.linear_names import block_and_kind
from telechat_kit.reports.tables import styled

#: Bytes a token up to which a tokenizer is said to shred a text
SHREDDED = 1.25


def recipe(record: QuantizeRecord) -> Styler:
    """How the checkpoint was quantized, or what is known of given weights."""
    used, given, rows = record.recipe, record.given, list[tuple[str, str]]()
    if given:
        int8 = sum(linear.kind != "FLOAT" for linear in record.linears)
        rows += [
            (_("weights"), _("given in {form} form, not quantized here").format(form=given.format)),
            (_("tensors checked for name, shape and type"), f"{given.tensors:,}"),
            (_("int8 weights that are the rounded float ones"), _of(given.rounded, int8)),
            (
                _("largest deviation from them"),
                _("{steps} steps of the int8 weight").format(steps=f"{given.largest_deviation:.2f}"),
            ),
            *((_("note"), shown(note)) for note in given.notes),
        ]
    if used:
        rows += [
            (_("level"), used.level),
            (_("outlier suppression"), used.anti_outlier),
            (_("activations"), _activations(used)),
            (_("SHA-256 of the recipe"), record.recipe_sha256),
        ]
    rows += [
        (
            _("linears in int8"),
            _of(sum(linear.kind != "FLOAT" for linear in record.linears), len(record.linears)),
        ),
        (
            _("weight files"),
            _("{float} MB float, {w8a8} MB W8A8").format(
                float=f"{record.float_bytes / 1e6:,.1f}", w8a8=f"{record.w8a8_bytes / 1e6:,.1f}"
            ),
        ),
        (_("time"), f"{record.seconds:.1f} s"),
        (_("peak memory of the process"), f"{record.peak_memory_bytes / 2**30:.2f} GiB"),
    ]
    return styled(pd.DataFrame(rows, columns=[_("recipe"), record.quant_path]))


def _of(part: int, whole: int) -> str:
    return _("{part} of {whole}").format(part=part, whole=whole)


def _activations(used: AppliedRecipe) -> str:
    if used.activations == "dynamic":
        return _("dynamic, one scale for each token")
    ranges = {
        1: _("static, min-max range"),
        2: _("static, histogram range"),
        3: _("static, automatic range"),
    }
    unknown = _("static, unknown ({method}) range").format(method=used.act_method)
    return ranges.get(used.act_method, unknown)


def arithmetic(record: QuantizeRecord) -> str:
    """What is multiplied with what, by the linears that the record lists."""
    if any(linear.kind == DYNAMIC for linear in record.linears):
        return _(
            "Per-channel int8 weights, one scale for each token of a linear's input, found as it is read."
        )
    return _("Per-channel int8 weights, one static scale and offset for each linear's input.")


def calibration(record: QuantizeRecord) -> Styler:
    """The samples that the ranges come from: source, tokens, what was cut, and hashes."""
    used = record.recipe
    rows = [(_("calibration"), _("not known: the weights were given"))] if used is None else _samples(used)
    return styled(pd.DataFrame(rows, columns=[_("calibration"), _("value")]))


def _samples(used: AppliedRecipe) -> list[tuple[str, str]]:
    lengths = used.calibration_sample_tokens
    forms = {
        "blocks": _("blocks of the joined text"),
        "lines": _("lines as they are"),
        "chat": _("lines as chat prompts"),
    }
    rows = [
        (_("source"), used.calibration_source),
        (_("form"), forms.get(used.calibration_format, used.calibration_format)),
        (_("samples"), f"{len(lengths):,}"),
        (_("tokens, all samples"), f"{sum(lengths):,}"),
        (
            _("tokens of a sample, smallest / median / largest"),
            f"{min(lengths)} / {median(lengths):g} / {max(lengths)}",
        ),
        (_("seed"), str(used.seed)),
        *(
            (
                _("kind {kind}").format(kind=kind_name(share["kind"])),
                _kind_share(share, sum(lengths)),
            )
            for share in used.calibration_kinds
        ),
    ]
    if used.calibration_lines:
        rows += [(_("line numbers in the file"), ", ".join(map(str, used.calibration_lines)))]
        rows += [
            (
                _("line {line}, cut").format(line=line),
                _("{tokens} tokens to {most}").format(tokens=length, most=max(lengths)),
            )
            for line, length in used.calibration_cut
        ]
    return [
        *rows,
        (_("SHA-256 of the text"), used.calibration_sha256),
        (_("SHA-256 of the samples' token ids"), used.calibration_samples_sha256),
    ]


def _kind_share(share: Mapping[str, Any], total: int) -> str:
    tokens, part = f"{share['tokens']:,}", f"{share['tokens'] / total:.0%}"
    if (length := share.get("bytes_per_token")) is None:
        return _("{tokens} tokens, {share}").format(tokens=tokens, share=part)
    told = {"tokens": tokens, "share": part, "length": f"{length:.1f}"}
    if length > SHREDDED:
        return _("{tokens} tokens, {share}, {length} bytes a token").format(**told)
    return _(
        "{tokens} tokens, {share}, {length} bytes a token: the tokenizer knows little more than the bytes of this text"
    ).format(**told)


def linears(record: QuantizeRecord) -> Styler:
    """One row for each kind of linear: its worst figures over the blocks. Activations have no unit."""
    kinds = dict.fromkeys(block_and_kind(row.name)[1] for row in record.linears)
    rows = []
    for kind in kinds:
        found = [row for row in record.linears if block_and_kind(row.name)[1] == kind]
        rows.append(
            (
                kind,
                _of(sum(row.kind != "FLOAT" for row in found), len(found)),
                _worst(row.score for row in found),
                _worst(row.raw_absmax for row in found),
                _worst(row.input_absmax for row in found),
                _worst(row.input_scale for row in found),
                _worst((row.output_snr_db for row in found), worst=min),
                _worst(row.clipped_share for row in found),
            )
        )
    names = [
        _("linear"),
        _("in int8"),
        _("sensitivity score"),
        _("largest |input|, unsuppressed"),
        _("largest |input|, suppressed"),
        _("largest step of the int8 input"),
        _("lowest signal to error of the output, dB"),
        _("largest clipped share"),
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
    names = [_("linear"), _("input channels always 0"), _("output channels with a weight of 0")]
    return styled(pd.DataFrame(rows or [(_("none"), 0, 0)], columns=names))


def float_linears(record: QuantizeRecord) -> Styler:
    """The linears kept in float, and why."""
    rows = [
        (linear.name.removeprefix("transformer."), linear.score, _reason(linear.reason))
        for linear in record.float_linears
    ]
    names = [_("kept in float"), _("score"), _("reason")]
    return styled(pd.DataFrame(rows, columns=names), {names[1]: "{:.2f}"})


#: Records hold these in English
_RANK, _SHARES = re.compile(r"rank (\d+) of (\d+) by (.+)"), re.compile(r"shares an input with (.+)")
_REASONS = (
    marked("listed"),
    marked("in float as given"),
    marked("sensitivity"),
    marked("int8 noise in the residual stream"),
)


def _reason(told: str) -> str:
    """Why a linear stays in float, in the language in force."""
    if found := _RANK.fullmatch(told):
        position, count, score = found.groups()
        return _("rank {position} of {count} by {score}").format(
            position=position, count=count, score=_(score)
        )
    if found := _SHARES.fullmatch(told):
        return _("shares an input with {linear}").format(linear=found[1])
    return shown(told)


def measured_choice(record: QuantizeRecord) -> Styler:
    """Level auto: KL of the model with each candidate alone in float, and with the best ones together."""
    if record.measured is None:
        level = record.recipe.level if record.recipe else _("not known")
        told = _("not measured: level {level}. Level auto measures").format(level=level)
        return styled(pd.DataFrame({_("choice"): [told]}))
    found = record.measured
    taken = {prefix.candidates: prefix.kl for prefix in found.prefixes}
    rows: list[tuple[str, float, float | None, str]] = [(_("all in int8"), found.kl_int8, found.kl_int8, "")]
    for place, candidate in enumerate(found.candidates, start=1):
        names = ", ".join(name.removeprefix("transformer.h.") for name in candidate.names)
        rows.append((names, candidate.kl, taken.get(place), _("float") if place <= found.chosen else ""))
    alone, together = _("KL, it alone in float"), _("KL, with all above")
    table = pd.DataFrame(rows, columns=[_("linears"), alone, together, _("kept in")])
    return styled(table, {alone: "{:.4f}", together: "{:.4f}"})

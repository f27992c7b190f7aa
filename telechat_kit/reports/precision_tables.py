"""Tables of `03_precision`, and its verdict in one sentence."""

import re
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup, escape
from pandas.io.formats.style import Styler

from telechat_kit.comparison.alignment import Alignment
from telechat_kit.comparison.verdict import losses, said, shown
from telechat_kit.comparison.verdict import verdict as judge
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked
from telechat_kit.precision import Answer, Group, PrecisionRecord, Sources
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.reports.tables import styled
from telechat_kit.statistics import Estimate

#: What notebooks call the groups of `groups`
_GROUPED_BY = (marked("positions"),)
#: A word with the blanks before it; a Chinese character is one
_WORDS = re.compile(r"\s*(?:[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|[^\w\s])|\s+$")
_LETTERS = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")


@dataclass(frozen=True)
class Page:
    """A piece of a page; JupyterLab and the exported page show it."""

    markup: Markup

    def _repr_html_(self) -> str:
        return str(self.markup)

    def __str__(self) -> str:
        return self.markup.striptags()


def verdict(record: PrecisionRecord) -> Page:
    """The worst text first, each figure with its interval, before anything else."""
    found = judge(record)
    lines = Markup("").join(Markup('<p class="verdict">{}</p>').format(line) for line in said(found))
    note = _("None of these tokens was used for calibration; brackets: 95 % intervals over sequences.")
    return Page(lines + Markup("<p>{}</p>").format(note))


def texts(record: PrecisionRecord, quantized: QuantizeRecord | None = None) -> Styler:
    """What int8 costs on each text, the worst first."""
    rows = [
        (
            loss.text,
            {True: _("yes"), False: _("no"), None: _("not known")}[loss.like_calibration],
            loss.tokens,
            f"{loss.perplexity_float:.2f}",
            shown(loss.perplexity_ratio),
            shown(loss.kl),
            shown(loss.same_token.map(lambda share: 100 * share)),
        )
        for loss in losses(record, quantized)
    ]
    columns = [
        _("text"),
        _("like the calibration's"),
        _("tokens"),
        _("perplexity, float"),
        _("perplexity, W8A8 over float"),
        _("mean KL, nats"),
        _("same first choice, %"),
    ]
    return styled(pd.DataFrame(rows, columns=columns))


def divergence(record: PrecisionRecord) -> Styler:
    """Float against W8A8 over the text, with 95 % intervals."""
    found, change = record.divergence, record.divergence.probability_change
    points = change.mean.map(lambda x: 100 * x), change.rms.map(lambda x: 100 * x)
    rows = [
        (_("perplexity, float"), *_estimate(found.perplexity_float, "{:.3f}")),
        (_("perplexity, W8A8"), *_estimate(found.perplexity_w8a8, "{:.3f}")),
        (_("perplexity ratio, W8A8 / float"), *_estimate(found.perplexity_ratio, "{:.4f}")),
        (_("KL(float || W8A8), nats per token, mean"), *_estimate(found.kl_mean, "{:.4f}")),
        *(
            (_("KL, {share} % of positions at most").format(share=share), *_estimate(value, "{:.4f}"))
            for share, value in found.kl_quantiles.items()
        ),
        (_("KL, largest"), f"{found.kl_max:.3f}", "–"),
        (_("same most likely token"), *_estimate(found.top1_agreement, "{:.2%}")),
        (_("same among the five most likely"), *_estimate(found.top5_agreement, "{:.2%}")),
        (_("correct token's probability, mean change, points"), *_estimate(points[0], "{:+.3f}")),
        (_("correct token's probability, RMS change, points"), *_estimate(points[1], "{:.3f}")),
    ]
    return styled(pd.DataFrame(rows, columns=[_("figure"), _("value"), _("95 % interval")]))


def groups(found: list[Group], name: str) -> Styler:
    """The main figures of each group of positions; `name` heads the first column."""
    rows = [
        (
            group.name,
            group.tokens,
            f"{group.perplexity_float.value:.2f}",
            *_estimate(group.perplexity_ratio, "{:.3f}"),
            *_estimate(group.kl_mean, "{:.4f}"),
            *_estimate(group.top1_agreement, "{:.1%}"),
        )
        for group in found
    ]
    columns = [
        _(name),
        _("tokens"),
        _("perplexity, float"),
        _("ratio"),
        "95 %",
        _("mean KL, nats"),
        "95 % ",
        _("same token"),
        " 95 %",
    ]
    return styled(pd.DataFrame(rows, columns=columns))


def sources(found: Sources | None, count: int = 10) -> Styler | Page:
    """The linears with the largest estimated share of the loss."""
    if found is None:
        return _sentence(_("The sources of the loss were not looked for (source_sequences is 0)."))
    linears = sorted(found.linears, key=lambda linear: -linear.effect)[:count]
    rows = [
        (
            linear.name.removeprefix("transformer."),
            linear.estimated_share,
            linear.output_snr,
            linear.clipped,
            None if linear.low is None else f"{linear.low:.3g} – {linear.high:.3g}",
            linear.largest,
        )
        for linear in linears
    ]
    names = [
        _("linear"),
        _("share of the loss, estimated"),
        _("output signal / noise, dB"),
        _("clipped inputs"),
        _("int8 range"),
        _("largest input"),
    ]
    formats = {names[1]: "{:.1%}", names[2]: "{:.1f}", names[3]: "{:.4%}", names[5]: "{:.3g}"}
    return styled(pd.DataFrame(rows, columns=names), formats)


def kept_in_float(found: Sources | None) -> Styler | None:
    """What putting the dearest linears back to float brings, measured one by one."""
    if found is None:
        return None
    rows = [
        (
            ", ".join(name.removeprefix("transformer.") for name in kept.names),
            f"{kept.estimated_share:.1%}",
            *_estimate(kept.kl_mean, "{:.4f}"),
            *_estimate(kept.kl_change, "{:+.5f}"),
        )
        for kept in found.kept
    ]
    names = [
        _("kept in float"),
        _("share, estimated"),
        _("mean KL then"),
        "95 %",
        _("change, measured"),
        "95 % ",
    ]
    return styled(pd.DataFrame(rows, columns=names))


def answers(record: PrecisionRecord) -> Page:
    """Answers of both models side by side, the place where they part marked. All text is escaped."""
    names = (
        _("question"),
        _("float"),
        "W8A8",
        _("the same"),
        _("same tokens from the start"),
        _("similarity"),
    )
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in names)
    rows = Markup("").join(_answer_row(answer) for answer in record.answers)
    return Page(
        Markup('<table class="answers"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(
            head, rows
        )
    )


def _answer_row(answer: Answer) -> Markup:
    longest = max(answer.float_tokens, answer.w8a8_tokens)
    cells = (
        answer.input,
        *marked_fork(answer.float_answer, answer.w8a8_answer),
        same_said(answer),
        f"{answer.common_tokens} / {longest}",
        f"{answer.similarity:.0%}",
    )
    return Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells))


def same_said(answer: Answer) -> str:
    """Whether both say the same: to the token, in the same words, or not; meaning is left to the reader."""
    if answer.equal:
        return _("yes")
    words = [_LETTERS.findall(text.casefold()) for text in (answer.float_answer, answer.w8a8_answer)]
    return _("in the same words") if words[0] == words[1] else _("no")


def marked_fork(first: str, second: str) -> tuple[Markup, Markup]:
    """Both texts, escaped, with `<mark>` around the first word of each that the other does not have there.

    What follows is left as it is: behind the place where they part, texts are not held against each other.
    """
    words = [_WORDS.findall(text) for text in (first, second)]
    parted = (place for place, pair in enumerate(zip(*words, strict=False)) if pair[0] != pair[1])
    common = next(parted, min(map(len, words)))
    return _marked(words[0], common), _marked(words[1], common)


def _marked(words: list[str], place: int) -> Markup:
    before, after = "".join(words[:place]), "".join(words[place + 1 :])
    if place == len(words):
        return escape(before)
    return Markup("{}<mark>{}</mark>{}").format(before, words[place], after)


def tasks(record: PrecisionRecord) -> Styler | Page:
    """Accuracy of both models on multiple-choice questions."""
    if not record.tasks:
        return _sentence(_("No multiple-choice questions were asked (tasks_path is empty)."))
    rows = [
        (
            task.name,
            task.questions,
            *_estimate(task.accuracy_float, "{:.1%}"),
            *_estimate(task.accuracy_w8a8, "{:.1%}"),
            *_estimate(task.difference.map(lambda x: 100 * x), "{:+.1f}"),
            f"{task.same_choice:.0%}",
        )
        for task in record.tasks
    ]
    names = [
        _("questions"),
        _("number"),
        _("float"),
        "95 %",
        "W8A8",
        "95 % ",
        _("difference, points"),
        " 95 %",
        _("same choice"),
    ]
    return styled(pd.DataFrame(rows, columns=names))


def alignment(found: Alignment | None) -> Styler | Page:
    """Whether this run is aligned with the other that was named, if one was."""
    if found is None:
        return _sentence(_("No other run was named (compare_with is empty)."))
    return aligned(found)


def aligned(found: Alignment) -> Styler:
    """The verdict on two runs, what it rests on, and the conditions in which they differ."""
    rows = [(_("verdict"), _(found.verdict), "")]
    rows += [(_("KL between the runs, nats per token"), *_estimate(found.kl_mean, "{:.3g}"))]
    rows += [(_("KL, largest of a position"), f"{found.kl_max:.3g}", "–")]
    rows += [(_("same most likely token"), *_estimate(found.top1_agreement, "{:.2%}"))]
    rows += [(_("equal answers"), _of(found.equal_answers, found.answers), "–")]
    if found.first_differing_answer:
        first = found.first_differing_answer
        rows += [
            (
                _("first answer that differs: number {number}, after {tokens} tokens").format(
                    number=first.number, tokens=first.common_tokens
                ),
                first.first,
                first.second,
            )
        ]
    rows += [
        (_("differs: {condition}").format(condition=one.condition), one.first, one.second)
        for one in found.differences
    ]
    return styled(pd.DataFrame(rows, columns=["", _("first run"), _("second run, or 95 % interval")]))


def _of(part: int, whole: int) -> str:
    return _("{part} of {whole}").format(part=part, whole=whole)


def _sentence(text: str) -> Page:
    return Page(Markup("<p>{}</p>").format(text))


def _estimate(estimate: Estimate, pattern: str) -> tuple[str, str]:
    return pattern.format(estimate.value), _interval(estimate, pattern, "{} – {}")


def _interval(estimate: Estimate, pattern: str, shape: str = "[{}, {}]") -> str:
    """The interval, or a dash where there is none."""
    if not estimate.coverage:
        return "–"
    return shape.format(pattern.format(estimate.low), pattern.format(estimate.high))

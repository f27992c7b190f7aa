"""`report.html`: the four records of a run as one page for readers, without code."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from telechat_kit.comparison.limits import Light, answer, judge_limits
from telechat_kit.comparison.rules import DEFAULT_LIMITS
from telechat_kit.comparison.run_data import carried_html, collect_run, read_run_data
from telechat_kit.comparison.verdict import device_said, said
from telechat_kit.comparison.verdict import verdict as judge
from telechat_kit.environment import SCHEMA as SETUP
from telechat_kit.environment import SetupRecord
from telechat_kit.files import resolve, write_text
from telechat_kit.manifest import renew_manifest
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, ngettext
from telechat_kit.performance.measurement import SCHEMA as PERFORMANCE
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.precision import SCHEMA as PRECISION
from telechat_kit.precision import PrecisionRecord
from telechat_kit.provenance import code_hash
from telechat_kit.quantization.pipeline import SCHEMA as QUANTIZE
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.records import read_record
from telechat_kit.reports import (
    charts,
    limit_views,
    performance_charts,
    performance_tables,
    precision_charts,
    precision_tables,
    quantization_charts,
    quantization_tables,
    tables,
)
from telechat_kit.reports.consistency import TOGETHER, stale_records
from telechat_kit.reports.html import PAGES, dress_tables, render_page
from telechat_kit.reports.plain_text import markdown_summary, table_files, with_data_links, write_tables
from telechat_kit.translation import known, speaking

#: What the page takes for known, explained where a reader can look it up
WORDS = (
    (
        "W8A8",
        marked("Weights and the inputs of linears as 8-bit integers; what is between them stays in float."),
    ),
    (
        marked("level"),
        marked("How many linears stay in float because int8 costs most there: L0 none, L5 five."),
    ),
    (
        marked("perplexity"),
        marked("How many next tokens a model is torn between on average; lower is better."),
    ),
    (
        "KL",
        marked(
            "How far the probabilities of W8A8 are from those of float, in nats per token; 0 is the same."
        ),
    ),
    (marked("first choice"), marked("The token that a model holds for the most likely one.")),
    (marked("prefill"), marked("Reading the prompt, up to the first token of the answer.")),
    (marked("decode"), marked("The tokens after the first, one at a time.")),
    (
        marked("limit of the device"),
        marked("The speed at which the device would only wait for its memory or its arithmetic."),
    ),
    (marked("geometric mean"), marked("The mean that treats twice as fast and half as fast as opposites.")),
    (
        marked("95 % interval"),
        marked("Where the true figure lies with 95 % probability, as far as these samples tell."),
    ),
    (
        marked("unstable"),
        marked("Repeats of the case differ by more than a tenth; it does not enter any headline."),
    ),
)


#: Packages that draw and lay out
_PACKAGES = ("matplotlib", "pandas", "jinja2", "beautifulsoup4", "numpy")


@dataclass(frozen=True)
class RunRecords:
    """The four records of a finished run."""

    setup: SetupRecord
    quantize: QuantizeRecord
    precision: PrecisionRecord
    performance: PerformanceRecord


@dataclass(frozen=True)
class Section:
    """A part of the page: heading, a sentence or a list of them, and what is shown under them.

    `title` is the English message of the heading, which the template translates.
    """

    title: str
    text: str | Sequence[str]
    shown: Sequence[Markup]

    @property
    def address(self) -> str:
        """Where links find the part, in every language and whatever other parts there are."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def read_run(run_folder: str | Path) -> RunRecords:
    """The records of a run folder; a `DataError` names the first that is missing or damaged."""
    return RunRecords(
        read_record(run_folder, SetupRecord, SETUP),
        read_record(run_folder, QuantizeRecord, QUANTIZE),
        read_record(run_folder, PrecisionRecord, PRECISION),
        read_record(run_folder, PerformanceRecord, PERFORMANCE),
    )


def verdict(run: RunRecords) -> str:
    """What int8 cost, the worst text first, and what it brought: a sentence a line."""
    return "\n".join(said(judge(run.precision, run.quantize, run.performance)))


def consistency_note(run: RunRecords) -> str:
    """Whether the records belong together, or which of them an earlier profile left."""
    found = stale_records(run.setup, run.quantize, run.precision, run.performance)
    return "\n".join(found) or _(TOGETHER)


def model_name(run: RunRecords) -> str:
    """Name of the model, from its origin or else its folder."""
    return _(str(run.setup.origin.get("name") or Path(run.setup.checkpoint_path).name))


def write_report(
    run_folder: str | Path, language: str = "en", limits: Sequence[str] = DEFAULT_LIMITS
) -> Path:
    """Write `report.html` into the run folder from its records, whole or not at all.

    Beside it: `report.md`, a summary for pull requests, `tables/`, each table as CSV, and the manifest of the folder
    (where a run of `telechat-kit run` is at work, that writes it).

    Args:
        language: of the page, "en" or "zh".
        limits: what W8A8 has to keep to be shipped, as `comparison.rules` reads it.

    Raises:
        ParameterError: another language, or a text that is no limit.
        DataError: a record is missing or damaged.

    Example:
        >>> write_report("results/tiny").name
        'report.html'
    """
    folder = resolve(run_folder)
    with speaking(known(language)):
        run, lights = read_run(folder), judge_limits(read_run_data(folder), limits)
        page = _page(folder, run, lights, page_origin(language, limits))
    with speaking("en"):  # tables for programs have the same names and headers in every language
        plain = (
            page if language == "en" else _page(folder, run, judge_limits(read_run_data(folder), limits), {})
        )
    files = table_files(plain)
    write_tables(files, folder / "tables")
    with speaking(language):
        page = with_data_links(page, files)
    write_text(folder / "report.md", markdown_summary(page, "report.html"))
    path = write_text(folder / "report.html", page)
    renew_manifest(folder, create=True)
    return path


def _page(folder: Path, run: RunRecords, lights: Sequence[Light], origin: Mapping[str, Any]) -> str:
    """The report in the language in force."""
    conditions = run.performance.conditions
    return render_page(
        "report.html.j2",
        title=_("{model}: float against W8A8").format(model=model_name(run)),
        links=[(_(label), href) for label, href in PAGES],
        here="report.html",
        about=_("Run {run} of {day} on {device}.").format(
            run=folder.name, day=conditions.started[:10], device=device_said(conditions.device_name)
        ),
        words=WORDS,
        to_verify="telechat-kit verify report.html",
        verdict=[answer(lights), *verdict(run).splitlines()],
        warnings=stale_records(run.setup, run.quantize, run.precision, run.performance),
        sections=_sections(run, lights),
        carried=Markup(carried_html({**collect_run(folder), "page": origin})),
    )


def page_origin(language: str, limits: Sequence[str]) -> dict[str, Any]:
    """What a report is made with besides its records: who has the same makes the same page."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"language": language, "limits": list(limits), "made_with": {"code": code_hash(), **packages}}


def _speed_notes(record: PerformanceRecord) -> list[str]:
    """The sentences above the speed charts; that on energy where the table has such a column."""
    bandwidth = _(
        "The limit follows from the bytes and operations of the shapes, and from what the device can do: it reads "
        "{bandwidth} GB/s ({basis})."
    )
    notes = [
        *performance_tables.verdict(record).splitlines(),
        performance_tables.interval_note(record),
        bandwidth.format(
            bandwidth=f"{record.read_bandwidth / 1e9:.1f}", basis=_(record.read_bandwidth_basis)
        ),
    ]
    if record.launches:
        notes += performance_tables.launches(record).splitlines()
    if any(case.joules_per_token for case in record.cases):
        notes.append(performance_tables.energy(record))
    return notes


def _sections(run: RunRecords, lights: Sequence[Light]) -> list[Section]:
    def table(style: tables.Styler) -> Markup:
        return dress_tables(style.to_html())

    precision, performance, quantized = run.precision, run.performance, run.quantize
    judged = [dress_tables(str(limit_views.table(lights)))] if lights else []
    tokens = ngettext(
        "The distribution is that over {count} token of {text}.",
        "The distribution is that over {count} tokens of {text}.",
        precision.divergence.tokens,
    ).format(count=f"{precision.divergence.tokens:,}", text=precision.text_source)
    greedy = _("Greedy, repetition penalty {penalty}, at most {count} new tokens.").format(
        penalty=precision.repetition_penalty, count=precision.max_new_tokens
    )
    same_tokens = _(
        "Both models read the same tokens of every text, none of which was used for calibration. Intervals are "
        "bootstrapped over sequences."
    )
    return [
        Section(marked("May this be shipped?"), _(limit_views.HOW_TO_READ), judged),
        Section(marked("At a glance"), _about_model(run), [table(tables.headline(precision, performance, quantized))]),
        Section(
            marked("What int8 costs"),
            [same_tokens, tokens],
            [precision_charts.texts(precision, quantized).html(), table(precision_tables.texts(precision, quantized)), precision_charts.divergence_quantiles(precision).html(), table(precision_tables.divergence(precision))],
        ),
        Section(marked("Answers side by side"), greedy, [dress_tables(str(precision_tables.answers(precision).markup))]),
        Section(
            marked("Speed"),
            _speed_notes(performance),
            [charts.speed(performance).html(), performance_charts.heat_map(performance).html(), charts.first_token(performance).html(), table(performance_tables.cases(performance))],
        ),
        Section(
            marked("Published figures"),
            _(
                "From the guide that this kit reproduces: TeleChat-7B on an NPU and a GPU. Another model and other hardware "
                "than above, so they stand beside our figures and are not compared with them."
            ),
            [table(performance_tables.published(performance))],
        ),
        Section(
            marked("How it was quantized"),
            quantization_tables.arithmetic(quantized),
            [quantization_charts.sensitivity(quantized).html(), table(quantization_tables.recipe(quantized)), table(quantization_tables.calibration(quantized)), table(quantization_tables.float_linears(quantized))],
        ),
        Section(marked("Conditions"), _("What is needed to run it again."), [table(tables.conditions(performance.conditions))]),
    ]  # fmt: skip


def _about_model(run: RunRecords) -> str:
    origin = run.setup.origin
    said = _("The model: {model}, license {license}.").format(
        model=model_name(run), license=_(str(origin.get("license", marked("not recorded"))))
    )
    note = str(origin.get("note", ""))
    return f"{said} {_(note)}".strip()

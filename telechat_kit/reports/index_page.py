"""`index.html` over a folder of runs: how far each came, where its page is, and its figures beside what compares."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from telechat_kit.comparison.changes import LOSS, OVER_FLOAT, Figure, figures, worst_loss
from telechat_kit.comparison.comparable import float_weights, why_not
from telechat_kit.comparison.folder_states import COMPLETE, FolderState, folder_state, run_folders
from telechat_kit.comparison.limits import judge_limits, worst_state
from telechat_kit.comparison.rules import DEFAULT_LIMITS
from telechat_kit.comparison.run_data import RunData
from telechat_kit.comparison.verdict import device_said
from telechat_kit.errors import DataError, KitError
from telechat_kit.files import relative, write_text
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, ngettext, shown
from telechat_kit.reports.comparison_page import figure_text
from telechat_kit.reports.html import dress_tables, plain_table, render_page
from telechat_kit.reports.page import Section

#: Figures of the table by name, and what heads their columns; before them the loss on the text that costs most
_HEADINGS = {
    "perplexity_ratio": marked("perplexity, W8A8 / float"),
    LOSS: marked("mean KL, nats"),
    "top1_agreement": marked("same token"),
    OVER_FLOAT: marked("speed, times float"),
    "tokens_per_second": marked("W8A8, tokens/s"),
}
#: Parameters that every run must have its own of
_OWN = {"run_folder", "quant_path"}
_TEXT = marked(
    "The newest run comes first. Figures stand in one column where they compare with those of the newest run that has "
    "them; where they do not, the reason stands in their place. May be shipped: whether the limits of the profile are kept."
)


def index_rows(results: Path) -> list[FolderState]:
    """The run folders below `results`, the newest first; one that tells no time comes last."""
    rows = [folder_state(folder) for folder in run_folders(results)]
    return sorted(rows, key=lambda row: row.started, reverse=True)


def write_index(results: Path) -> Path:
    """Write `index.html` into `results`.

    Raises:
        DataError: there is no run below `results`.
    """
    rows = index_rows(results)
    if not rows:
        raise DataError("{results} holds no runs. `telechat-kit run` makes them there.", results=results)
    sections = [
        Section(title, _(_TEXT) if not number else "", [_table(part, results)])
        for number, (title, part) in enumerate(_by_model(rows).items())
    ]
    counts = {kind: sum(row.kind == kind for row in rows) for kind in dict.fromkeys(row.kind for row in rows)}
    page = render_page(
        "report.html.j2",
        title=_("Runs in {folder}").format(folder=relative(results)),
        verdict=ngettext("{count} run: {states}.", "{count} runs: {states}.", len(rows)).format(
            count=len(rows), states=_(", ").join(f"{count} {_(kind)}" for kind, count in counts.items())
        ),
        sections=sections,
    )
    return write_text(results / "index.html", page)


def _by_model(rows: Sequence[FolderState]) -> dict[str, list[FolderState]]:
    """The rows of each model, told apart by the hash of its weights; those that tell none at the end."""
    groups: dict[str, list[FolderState]] = {}
    for row in rows:
        groups.setdefault(float_weights(row.run) if row.run else "", []).append(row)
    named = {_model(part): part for key, part in groups.items() if key}
    return named | ({_("Model not told"): groups[""]} if "" in groups else {})


def _model(rows: Sequence[FolderState]) -> str:
    """Name of the model and the beginning of its weights' hash."""
    runs = [row.run for row in rows if row.run]
    setup = next((run.setup for run in runs if run.setup), None)
    name = (setup.origin.get("name") or Path(setup.checkpoint_path).name) if setup else _("a model")
    return f"{_(name)} ({float_weights(runs[0])[:8]})"


def _table(rows: Sequence[FolderState], results: Path) -> Markup:
    varied = varied_parameters([row.run.parameters if row.run else {} for row in rows])
    found = [_figures(row) for row in rows]
    columns = headed(_HEADINGS, worst_loss(found), found)
    bases = {name: next((i for i, own in enumerate(found) if name in own), 0) for name in columns}
    headings = [_("run"), _("state"), _("started (UTC)"), _("may be shipped"), _("device")]
    headings += [*varied, *columns.values()]
    lines = []
    for number, row in enumerate(rows):
        parameters = row.run.parameters if row.run else {}
        cells = [*_about(row, results), *(_value(parameters.get(name)) for name in varied)]
        cells += [
            _cell(name, (row.run, found[number]), rows[bases[name]].run) if row.run else "–"
            for name in columns
        ]
        lines.append(cells)
    return dress_tables(str(plain_table(headings, lines)))


def headed(headings: Mapping[str, str], loss: str, runs: Sequence[Mapping[str, Figure]]) -> dict[str, str]:
    """Figures and what heads them, the loss on the worst text first where it is not that on `text_path`."""
    named = {name: _(heading) for name, heading in headings.items()}
    if loss == LOSS:
        return named
    label = next((run[loss].label for run in runs if loss in run), loss)
    return {loss: _("{figure}, nats").format(figure=shown(label)), **named}


def varied_parameters(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters in which runs differ, but for those that each must have its own of."""
    told = [run for run in runs if run]
    names = dict.fromkeys(name for run in told for name in run)
    return [
        name for name in names if name not in _OWN and any(run.get(name) != told[0].get(name) for run in told)
    ]


def _figures(row: FolderState) -> dict[str, Figure]:
    try:
        return figures(row.run) if row.run else {}
    except KitError:
        return {}


def _cell(name: str, own: tuple[RunData, dict[str, Figure]], base: RunData | None) -> str:
    """A figure, or why it does not stand beside the others of its column."""
    run, found = own
    if name not in found:
        return "–"
    reason = why_not(name, base, run) if base else ""
    return shown(reason) or figure_text(found[name])


def _about(row: FolderState, results: Path) -> Iterator[str]:
    """Run with its page, state, date, limits, device."""
    own = row.folder.relative_to(results).as_posix()
    place = f"{own}/{row.page}" if own != "." else row.page
    name = os.fsencode(own).decode("utf-8", "backslashreplace")  # any bytes are a name
    yield Markup('<a href="{}">{}</a>').format(quote(os.fsencode(place)), name) if row.page else name
    yield state_text(row)
    yield row.started or "–"
    yield shown(may_be_shipped(row))
    conditions = row.run.setup.conditions if row.run and row.run.setup else None
    yield device_said(conditions.device_name) if conditions else "–"


def state_text(row: FolderState) -> str:
    """State of a run and what explains it, in the language in force."""
    if not row.detail:
        return _(row.kind)
    return _("{state}, {detail}").format(state=_(row.kind), detail=shown(row.detail))


def may_be_shipped(row: FolderState) -> str:
    """Whether the limits of the profile are kept; only a complete run is judged."""
    if row.run is None or row.kind != COMPLETE:
        return "–"
    try:
        return worst_state(judge_limits(row.run, row.run.parameters.get("limits", DEFAULT_LIMITS)))
    except KitError as error:
        return str(error)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)

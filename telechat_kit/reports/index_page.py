"""`index.html` over a folder of runs: one row a run, its state, its headline, a link to its report."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from telechat_kit.comparison.changes import Figure, figures
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import DataError, KitError
from telechat_kit.files import relative, write_text
from telechat_kit.reports.comparison_page import figure_text
from telechat_kit.reports.html import dress_tables, render_page
from telechat_kit.reports.page import Section

#: Figures of the table, by name
SHOWN = ("perplexity_ratio", "kl_mean", "top1_agreement", "tokens_per_second", "tokens_per_second_float")
_HEADINGS = (
    "run",
    "model",
    "level",
    "device",
    "state",
    "perplexity, W8A8 / float",
    "mean KL, nats",
    "same token",
    "W8A8, tokens/s",
    "float, tokens/s",
)


@dataclass(frozen=True)
class IndexRow:
    """A run folder: where its page is, and what can be said of it."""

    folder: Path
    state: str
    run: RunData | None


def index_rows(results: Path) -> list[IndexRow]:
    """The run folders below `results`, by name; a damaged one is a row that says so."""
    folders = sorted({path.parent for name in ("run.json", "setup.json") for path in results.rglob(name)})
    return [_row(folder) for folder in folders if not any(part.startswith(".") for part in folder.parts)]


def _row(folder: Path) -> IndexRow:
    try:
        run = read_run_data(folder)
    except KitError as error:
        return IndexRow(folder, str(error), None)
    stopped = [f"{step['name']} {step['status']}" for step in _steps(run) if step["status"] != "completed"]
    return IndexRow(folder, ", ".join(stopped) or "completed", run)


def _steps(run: RunData) -> list[dict[str, str]]:
    steps = run.state.get("steps", [])
    return [step for step in steps if isinstance(step, dict) and {"name", "status"} <= set(step)]


def write_index(results: Path) -> Path:
    """Write `index.html` into `results`.

    Raises:
        DataError: there is no run below `results`.
    """
    rows = index_rows(results)
    if not rows:
        raise DataError(f"{results} holds no runs. `telechat-kit run` makes them there.")
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in _HEADINGS)
    body = Markup("").join(_cells(row, results) for row in rows)
    table = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)
    text = "Speeds compare only where model, device and cases are the same: `telechat-kit compare` says so."
    page = render_page(
        "report.html.j2",
        title=f"Runs in {relative(results)}",
        verdict=f"{len(rows)} runs, {sum(row.state == 'completed' for row in rows)} of them complete.",
        sections=[Section("Runs", text, [dress_tables(str(table))])],
    )
    return write_text(results / "index.html", page)


def _cells(row: IndexRow, results: Path) -> Markup:
    name = row.folder.relative_to(results).as_posix()
    report = row.folder / "report.html"
    link = Markup('<a href="{}/report.html">{}</a>').format(quote(name), name) if report.is_file() else name
    found: dict[str, Figure] = figures(row.run) if row.run else {}
    texts = [link, *_about(row.run), row.state, *(figure_text(found.get(key)) for key in SHOWN)]
    return Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(text) for text in texts))


def _about(run: RunData | None) -> tuple[str, str, str]:
    if run is None or run.setup is None:
        return "–", "–", "–"
    model = run.setup.origin.get("name") or Path(run.setup.checkpoint_path).name
    recipe = run.quantize.recipe if run.quantize else None
    level = recipe.level if recipe else "–"
    return str(model), level, run.setup.conditions.device_name

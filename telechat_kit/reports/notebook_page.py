"""An executed notebook as an article: one HTML page with folded code that opens without a network.

What stands in the tables and charts is made elsewhere; here is only how a notebook is shown.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from traitlets.config import Config

from telechat_kit.errors import DataError
from telechat_kit.files import write_text
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, shown
from telechat_kit.reports.html import TEMPLATES, dress_tables, page_values, translate
from telechat_kit.reports.inline_svg import is_inline_svg

PAPERMILL_MARK = "papermill-error-cell-tag"
CODE = marked("Code")
INPUT_LABELS = {"injected-parameters": marked("Parameters of this run"), "parameters": marked("Parameters")}

# No widgets and no JavaScript: an output that has one is shown by the next form that it carries.
SHOWN_TYPES = [
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/latex",
    "text/plain",
]
WIDGET_TYPE = "application/vnd.jupyter.widget-view+json"

_HEADING = re.compile(r"^# +(.+?)[ #]*$\n?", re.MULTILINE)
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CURSOR = re.compile(r"(\n|\r|\x1b\[A)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BAR = re.compile(r"(?P<name>.*?)\s*\d+%\|")


@dataclass(frozen=True)
class Failure:
    """What the banner says: why a notebook did not finish, and the cell where, if one is known."""

    message: str
    cell_id: str | None = None


def export_notebook(
    notebook: Path,
    html: Path,
    *,
    title: str | None = None,
    links: Sequence[tuple[str, str]] = (),
    failure: str | None = None,
) -> Path:
    """Write an executed notebook as one HTML page that opens without a network.

    Args:
        notebook: executed `.ipynb`; one that failed or was broken off gives a page that says so.
        html: page to write, whole or not at all.
        title: title of the page; the notebook's first level-1 heading if none is given.
        links: label and address of the other pages, for the line above the title.
        failure: why the step failed, where the notebook cannot hold it (dead kernel, time-out).

    Raises:
        DataError: the notebook is missing or damaged.
    """
    node = _read(notebook)
    failed = find_failure(node, failure)
    title = _take_title(node, title) or notebook.stem
    _prepare(node)
    exporter = _exporter()
    exporter.environment.globals.update(page_values(title=title, links=links, here=html.name, failure=failed))
    resources = {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}}
    page, _resources = exporter.from_notebook_node(node, resources=resources)
    whole = page.encode("utf-8", "replace").decode("utf-8")  # a model can write half a character
    return write_text(html, whole)


def find_failure(notebook: NotebookNode, told: str | None = None) -> Failure | None:
    """Cell that failed, by its outputs or papermill's marks; `told` is the caller's own reason."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        message = _error_message(cell)
        if message:
            return Failure(told or message, cell.id)
    begun = [cell for cell in cells if _papermill(cell, "start_time")]
    # After a dead kernel papermill calls every cell completed; only the times tell how far it came.
    if begun and (len(begun) < len(cells) or _papermill(begun[-1], "status") == "running"):
        return Failure(told or _("The kernel stopped before the end of the notebook."), begun[-1].id)
    return Failure(told) if told else None


def terminal_text(text: str) -> str:
    """Text as a terminal shows it in the end: cursor moves applied, colors and control codes gone."""
    lines, row, column = [""], 0, 0
    for part in _CURSOR.split(text):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[A":  # tqdm goes back up after an inner bar
            row = max(row - 1, 0)
        else:
            printed = _CONTROL.sub("", _ESCAPE.sub("", part))
            end = column + len(printed)
            lines[row] = lines[row][:column].ljust(column) + printed + lines[row][end:]
            column = end
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def log_text(text: str) -> str:
    """`terminal_text` with one line for every progress bar: its last state."""
    last: dict[str | int, str] = {}
    for index, line in enumerate(terminal_text(text).splitlines()):
        bar = _BAR.match(line)
        last[bar["name"] if bar else index] = line
    return "\n".join(line for line in last.values() if line.strip())


def _read(notebook: Path) -> NotebookNode:
    try:
        node = nbformat.convert(nbformat.read(notebook, as_version=4), 4)
        if not all(isinstance(cell.source, str) for cell in node.cells):
            raise ValueError("a cell holds no text")
    except Exception as error:  # nbformat ends at damaged notebooks in many ways
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            "{notebook} cannot be read as a notebook: {told}. Run its step again.",
            notebook=notebook,
            told=told,
        ) from error
    return node


def _papermill(cell: NotebookNode, key: str) -> Any:
    return cell.metadata.get("papermill", {}).get(key)


def _error_message(cell: NotebookNode) -> str | None:
    for output in cell.outputs:
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}"
    return _("A cell failed without a message.") if _papermill(cell, "exception") else None


def _take_title(notebook: NotebookNode, title: str | None) -> str | None:
    """Remove the first level-1 heading, unless it says something else than `title`; give the title to show."""
    for cell in notebook.cells:
        heading = _HEADING.search(cell.source.split("```")[0]) if cell.cell_type == "markdown" else None
        if heading:
            text = _plain(heading[1])
            if title in (None, text):
                cell.source = cell.source[: heading.start()] + cell.source[heading.end() :]
            return title or text
    return title


def _plain(markdown: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return unescape(re.sub(r"[`*]|\\(?=[^\w\s])", "", text))


def _prepare(notebook: NotebookNode) -> None:
    # Our banner says what papermill's two marker cells say, and says it once.
    notebook.cells = [cell for cell in notebook.cells if PAPERMILL_MARK not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _log_last([output for output in cell.outputs if _is_shown(output)])


def _is_shown(output: NotebookNode) -> bool:
    # The text form of a widget is its state at the beginning: a progress bar at 0 %.
    data = output.get("data")
    return data is None or (WIDGET_TYPE not in data and any(kind in data for kind in SHOWN_TYPES))


def _log_last(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Put all of stderr into one output at the end: bars come in pieces between the results."""
    shown = [output for output in outputs if output.get("name") != "stderr"]
    log = "".join(output.text for output in outputs if output.get("name") == "stderr")
    return [*shown, nbformat.v4.new_output("stream", name="stderr", text=log)] if log else shown


def _input_label(cell: NotebookNode) -> str:
    tags = cell.metadata.get("tags", [])
    label = _(next((label for tag, label in INPUT_LABELS.items() if tag in tags), CODE))
    not_run = "papermill" in cell.metadata and not _papermill(cell, "start_time")
    return _("{cell}, not run").format(cell=label) if not_run else label


def _log_label(log: str) -> str:
    return _("Progress") if all(_BAR.match(line) for line in log.splitlines()) else _("Messages")


FILTERS: dict[str, Callable[..., Any]] = {
    "dress_tables": dress_tables,
    "input_label": _input_label,
    "is_chart": is_inline_svg,
    "log_label": _log_label,
    "log_text": log_text,
    "terminal_text": terminal_text,
    "told": shown,
}


def _exporter() -> HTMLExporter:
    config = Config()
    config.NbConvertBase.display_data_priority = SHOWN_TYPES
    config.CoalesceStreamsPreprocessor.enabled = True
    exporter = HTMLExporter(
        config=config,
        template_name="notebook",
        extra_template_basedirs=[str(TEMPLATES)],
        extra_template_paths=[str(TEMPLATES)],
        filters=FILTERS,
        embed_images=True,
        anchor_link_text="#",
    )
    translate(exporter.environment)
    return exporter

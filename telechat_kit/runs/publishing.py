"""What a step leaves: the executed notebook under its name, and its page, also after a failure."""

from collections.abc import Sequence
from pathlib import Path

import nbformat

from telechat_kit.files import relative
from telechat_kit.messages import gettext as _
from telechat_kit.messages import language, shown
from telechat_kit.provenance import file_hash
from telechat_kit.reports.html import PAGES
from telechat_kit.reports.notebook_page import export_notebook
from telechat_kit.runs.notebook_language import in_language
from telechat_kit.runs.plan import left_by
from telechat_kit.runs.profile import notebook_path
from telechat_kit.runs.state import Step, StepState


def publish(step: Step, running: Path, folder: Path, current: StepState) -> None:
    """Give the executed notebook its name and its page; a failed one does not replace an earlier good one."""
    failed = [folder / f"{step.name}.failed{suffix}" for suffix in (".ipynb", ".html")]
    if current.status == "completed":
        for path in failed:
            path.unlink(missing_ok=True)
        _forget_place(running, step, folder / f"{step.name}.ipynb")
        running.replace(folder / f"{step.name}.ipynb")
        _export(step, folder / f"{step.name}.ipynb", None)
        current.left = {name: file_hash(folder / name) for name in left_by(step)}
        return
    _ensure_notebook(running, step)
    _forget_place(running, step, failed[0])
    running.replace(failed[0])
    if current.failure is None:
        return
    if current.failure.cell is None:
        current.failure.cell = _running_cell(failed[0])
    _export(step, failed[0], f"{current.failure.error}: {shown(current.failure.message)}")


def _ensure_notebook(running: Path, step: Step) -> None:
    """A kernel that never came leaves no notebook, a full disk half of one: the page then shows the source."""
    try:
        nbformat.read(running, as_version=4)
    except (OSError, ValueError):
        source = nbformat.read(notebook_path(step.name), as_version=4)
        nbformat.write(in_language(source, language()), running)


def _forget_place(running: Path, step: Step, target: Path) -> None:
    """Name the notebook's source and itself as the project knows them: papermill's paths tell of the machine."""
    content = nbformat.read(running, as_version=4)
    if told := content.metadata.get("papermill"):
        told |= {"input_path": relative(notebook_path(step.name)), "output_path": relative(target)}
        nbformat.write(content, running)


def _export(step: Step, notebook: Path, failure: str | None) -> None:
    page = notebook.with_suffix(".html")
    export_notebook(notebook, page, links=page_links(page.name, step), failure=failure)


def _running_cell(notebook: Path) -> int | None:
    """Number of the last cell that was started; papermill's own status calls all completed after a dead kernel."""
    cells = nbformat.read(notebook, as_version=4).cells
    started = [i for i, cell in enumerate(cells, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return max(started, default=None)


def page_links(name: str, step: Step) -> Sequence[tuple[str, str]]:
    """The pages of a run for the line above the title of the page `name`."""
    return [(_(label), name if href == f"{step.name}.html" else href) for label, href in PAGES]

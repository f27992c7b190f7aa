"""Commands around a run: run the notebooks, list their parameters, turn an executed one into a page."""

import sys
from pathlib import Path

import click

from telechat_kit.files import relative
from telechat_kit.reports.notebook_page import export_notebook
from telechat_kit.runs.execution import run_profile
from telechat_kit.runs.profile import all_parameters, load_profile


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@click.option(
    "-p",
    "--parameter",
    "overrides",
    nargs=2,
    multiple=True,
    metavar="KEY VALUE",
    help="Override a parameter.",
)
@click.option("--fresh", is_flag=True, help="Run all steps, also those whose inputs did not change.")
def run(profile: Path, overrides: tuple[tuple[str, str], ...], fresh: bool) -> None:
    """Run the five notebooks of a PROFILE (a file of params/) and write its results folder.

    Steps whose parameters, input files and code did not change are kept.

    \b
    Examples:
      telechat-kit run params/demo.yaml
      telechat-kit run params/demo.yaml -p level L0 -p run_folder results/demo-L0
      telechat-kit run params/tiny.yaml --fresh
    """
    checked = load_profile(profile, overrides)
    outcome = run_profile(checked, fresh)
    if outcome.stopped is not None:
        failure = outcome.stopped.failure
        if failure is not None:
            where = f"{failure.notebook}, cell {failure.cell}" if failure.cell else failure.notebook
            click.echo(f"\n{outcome.stopped.status}: {where}\n{failure.error}: {failure.message}", err=True)
        page = outcome.folder / f"{outcome.stopped.name}.failed.html"
        click.echo(f"The page that shows it: {relative(page)}", err=True)
        sys.exit(outcome.exit_code)
    click.echo(relative(outcome.folder / "report.html"))


@click.command()
def params() -> None:
    """List every parameter: type, default, meaning, and the notebooks that take it.

    \b
    Example:
      telechat-kit params
    """
    for parameter in all_parameters().values():
        click.echo(f"{parameter.name}: {parameter.type_name} = {parameter.default}")
        click.echo(f"    {parameter.help}  [{', '.join(parameter.notebooks)}]")


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.argument("page", type=click.Path(path_type=Path), required=False)
def html(notebook: Path, page: Path | None) -> None:
    """Turn an executed NOTEBOOK into a self-contained HTML PAGE (default: beside it).

    \b
    Example:
      telechat-kit html out.ipynb
    """
    click.echo(export_notebook(notebook, page or notebook.with_suffix(".html")))

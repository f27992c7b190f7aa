"""`telechat-kit`: the command line. Each command calls one verb and says what it left."""

import sys
from pathlib import Path

import click

import telechat_kit
from telechat_kit.errors import KitError
from telechat_kit.files import relative
from telechat_kit.quantization.conversion import FORMATS
from telechat_kit.quantization.conversion import export as export_folder
from telechat_kit.reports.notebook_page import export_notebook
from telechat_kit.runs.execution import run_profile
from telechat_kit.runs.profile import all_parameters, load_profile


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(telechat_kit.__version__, prog_name="telechat-kit")
def cli() -> None:
    """Reproduce TeleChat W8A8 inference as executed notebooks.

    \b
    Exit codes: 0 done, 1 a step failed, 2 wrong input, 130 interrupted.
    """


@cli.command()
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


@cli.command()
def params() -> None:
    """List every parameter: type, default, meaning, and the notebooks that take it.

    \b
    Example:
      telechat-kit params
    """
    for parameter in all_parameters().values():
        click.echo(f"{parameter.name}: {parameter.type_name} = {parameter.default}")
        click.echo(f"    {parameter.help}  [{', '.join(parameter.notebooks)}]")


@cli.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.argument("page", type=click.Path(path_type=Path), required=False)
def html(notebook: Path, page: Path | None) -> None:
    """Turn an executed NOTEBOOK into a self-contained HTML PAGE (default: beside it).

    \b
    Example:
      telechat-kit html out.ipynb
    """
    click.echo(export_notebook(notebook, page or notebook.with_suffix(".html")))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    required=True,
    help="File format to write; safetensors and ascendV1 are msModelSlim's, numpy its dictionaries of 2024.",
)
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="The float checkpoint that was quantized (numpy), or the one beside .npy dictionaries.",
)
def export(folder: Path, target: Path, form: str, model_path: Path | None) -> None:
    """Write the quantized FOLDER in another file format into the new folder TARGET; its logits stay the same.

    \b
    Examples:
      telechat-kit export build/demo-w8a8 build/demo-ascend --format ascendV1
      telechat-kit export build/demo-w8a8 build/demo-npy --format numpy --model-path build/demo
    """
    record = export_folder(folder.absolute(), target.absolute(), form, model_path and model_path.absolute())
    click.echo(f"{relative(target.absolute())}: {record.format}, {record.int8_linears} int8 linears")
    for note in record.notes:
        click.echo(f"    {note}")


def main() -> None:
    """Entry point: an error of the user's making is one message and exit code 2, without a traceback."""
    try:
        cli()
    except KitError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)

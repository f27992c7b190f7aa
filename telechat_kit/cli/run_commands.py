"""Commands around a run: run the notebooks, list their parameters, turn an executed one into a page."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from telechat_kit.cli.parameter_words import Pairs, WithPairs, parameter_option
from telechat_kit.cli.terminal import say
from telechat_kit.errors import ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.messages import gettext as _
from telechat_kit.messages import language, shown
from telechat_kit.widths import padded

if TYPE_CHECKING:
    from telechat_kit.runs.execution import Outcome
    from telechat_kit.runs.plan import Selection
    from telechat_kit.runs.profile import Profile


@click.command(cls=WithPairs, short_help="Run the five notebooks of profiles.")
@click.argument("profiles", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="PROFILE...")
@parameter_option
@click.option("--only", multiple=True, metavar="STEP", help="Only this step: 3, 03, precision, 03_precision.")
@click.option("--from", "start", metavar="STEP", help="This step and those after it.")
@click.option("--fresh", is_flag=True, help="Run steps also if nothing changed.")
@click.option("--dry-run", is_flag=True, help="Say what would run and why, and run nothing.")
@click.option(
    "--timeout",
    "timeouts",
    multiple=True,
    metavar="[STEP=]SECONDS",
    help="End a step that takes longer; for one step or for each.",
)
@click.option("--enforce", is_flag=True, help="Exit code 5 or 3 if a limit is not kept or open.")
@click.option("-j", "--jobs", type=click.IntRange(1), default=1, metavar="N", help="Runs at a time.")
def run(
    profiles: tuple[Path, ...],
    overrides: Pairs,
    only: tuple[str, ...],
    start: str | None,
    fresh: bool,
    dry_run: bool,
    timeouts: tuple[str, ...],
    enforce: bool,
    jobs: int,
) -> None:
    """Run the five notebooks of each PROFILE (a file of params/) and write its results folder.

    Steps whose parameters, input files, code and machine did not change are kept. Steps that are not asked for
    stay as they are.

    \b
    Examples:
      telechat-kit run params/demo.yaml
      telechat-kit run params/demo.yaml -p level L0 -p run_folder=results/demo-L0
      telechat-kit run params/demo.yaml --from precision --dry-run
      telechat-kit run params/tiny.yaml --only 4 --fresh --timeout 600
      telechat-kit run params/demo.yaml --enforce
      telechat-kit run params/*.yaml -j 2

    \b
    Exit codes:
      0 done, 1 a step failed, 2 wrong input or a folder that cannot be written,
      4 another run is at work in the folder, 130 interrupted, 143 ended by SIGTERM.
      With --enforce: 5 a limit of the profile is not kept, 3 one is open.
      Of several runs the highest.
    """
    from telechat_kit.runs.execution import run_profile
    from telechat_kit.runs.many import profile_jobs, run_jobs
    from telechat_kit.runs.plan import Selection
    from telechat_kit.runs.profile import load_profile
    from telechat_kit.runs.readiness import require_inputs

    selection, limits = Selection(only, start, fresh), parse_timeouts(timeouts)
    selection.steps()
    if dry_run:
        for path in profiles:
            _say_plan(load_profile(path, overrides).speaking(language()), selection)
    elif len(profiles) == 1:
        profile = load_profile(profiles[0], overrides).speaking(language())
        require_inputs(profile, selection.steps())
        _say_outcome(run_profile(profile, selection, limits))
        if enforce:
            enforce_limits(profile)
    else:
        options = [*_as_options(only, start, fresh, timeouts), *(["--enforce"] if enforce else [])]
        sys.exit(max(run_jobs(profile_jobs(profiles, overrides), options, jobs).values()))


def enforce_limits(profile: "Profile") -> None:
    """Say what the limits of a profile allow, and end with the exit code that belongs to it."""
    from telechat_kit.comparison.limits import FAIL, LOOK, judge_limits, worst_state
    from telechat_kit.comparison.run_data import read_run_data
    from telechat_kit.reports.limit_views import listed
    from telechat_kit.runs.profile import default_values

    limits = profile.values.get("limits", default_values("05_report")["limits"])
    lights = judge_limits(read_run_data(profile.run_folder), limits)
    say(listed(lights))
    sys.exit({FAIL: 5, LOOK: 3}.get(worst_state(lights), 0))


def parse_timeouts(texts: tuple[str, ...]) -> dict[str, float]:
    """`600` or `04=600` words as seconds by step name; one for a step overrides one for all."""
    from telechat_kit.runs.plan import find_step
    from telechat_kit.runs.state import STEPS

    limits: dict[str, float] = {}
    for text in sorted(texts, key=lambda text: "=" in text):
        name, _, seconds = text.rpartition("=")
        try:
            limit = float(seconds)
        except ValueError:
            limit = -1.0
        if not limit > 0:
            raise ParameterError(
                '--timeout {text}: "{seconds}" is no number of seconds above 0.', text=text, seconds=seconds
            )
        limits |= dict.fromkeys([find_step(name).name] if name else [step.name for step in STEPS], limit)
    return limits


def _as_options(
    only: tuple[str, ...], start: str | None, fresh: bool, timeouts: tuple[str, ...]
) -> list[str]:
    words = [word for name in only for word in ("--only", name)]
    words += ["--from", start] if start else []
    words += ["--fresh"] if fresh else []
    return words + [word for text in timeouts for word in ("--timeout", text)]


def _say_plan(profile: "Profile", selection: "Selection") -> None:
    from telechat_kit.runs.plan import plan
    from telechat_kit.runs.state import load_state

    folder = resolve(profile.run_folder)
    say(f"{relative(profile.path)} -> {relative(folder)}")
    for decision in plan(profile, folder, load_state(folder), selection):
        say(f"  {decision.step.name:<14}  {padded(_(decision.action), 7)}  {shown(decision.reason)}")


def _say_outcome(outcome: "Outcome") -> None:
    if outcome.stopped is None:
        report = outcome.folder / "report.html"
        say(relative(report if report.exists() else outcome.folder))
        return
    failure = outcome.stopped.failure
    if failure is not None:
        where = failure.notebook
        if failure.cell:
            where = _("{notebook}, cell {cell}").format(notebook=failure.notebook, cell=failure.cell)
        stopped = _("{state}: {where}").format(state=_(outcome.stopped.status), where=where)
        say(f"\n{stopped}\n{failure.error}: {shown(failure.message)}", err=True)
    page = outcome.folder / f"{outcome.stopped.name}.failed.html"
    if page.exists():
        say(_("The page that shows it: {page}").format(page=relative(page)), err=True)
    sys.exit(outcome.exit_code)


@click.command(short_help="List every parameter: type, default, meaning.")
def params() -> None:
    """List every parameter: type, default, meaning, and the notebooks that take it.

    \b
    Example:
      telechat-kit params
    """
    from telechat_kit.runs.profile import all_parameters

    for parameter in all_parameters().values():
        say(f"{parameter.name}: {parameter.type_name} = {parameter.default}")
        say(f"    {_(parameter.help)}  [{', '.join(parameter.notebooks)}]")


@click.command(short_help="Turn an executed notebook into one HTML page.")
@click.argument("notebook", type=click.Path(path_type=Path))
@click.argument("page", type=click.Path(path_type=Path), required=False)
def html(notebook: Path, page: Path | None) -> None:
    """Turn an executed NOTEBOOK into a self-contained HTML PAGE (default: beside it).

    \b
    Example:
      telechat-kit html out.ipynb
    """
    from telechat_kit.reports.notebook_page import export_notebook

    say(export_notebook(notebook, page or notebook.with_suffix(".html")))

"""Commands on many runs: sweep, index."""

import sys
from pathlib import Path

import click

from telechat_kit.cli.terminal import say
from telechat_kit.files import relative, resolve


@click.command(short_help="Run every combination that a file names.")
@click.argument("path", metavar="SWEEP", type=click.Path(path_type=Path))
@click.option(
    "-j", "--jobs", type=click.IntRange(1), default=1, metavar="N", help="Runs at a time, on this machine."
)
@click.option(
    "--ray", is_flag=True, help="Place the runs on a Ray cluster (pip install 'telechat-kit[ray]')."
)
@click.option("--fresh", is_flag=True, help="Run steps also if nothing changed.")
@click.option("--dry-run", is_flag=True, help="List the runs, and run nothing.")
def sweep(path: Path, jobs: int, ray: bool, fresh: bool, dry_run: bool) -> None:
    """Run every combination that a SWEEP file names, and put loss against speed on one page.

    Each combination is a run of its own with its own folder and weights; run again, and what is done is kept.

    \b
    Examples:
      telechat-kit sweep params/sweeps/tiny.yaml -j 2
      telechat-kit sweep params/sweeps/demo.yaml --dry-run
      telechat-kit sweep params/sweeps/demo.yaml --ray

    \b
    Exit codes:
      as of `telechat-kit run`, the highest of all runs.
    """
    from telechat_kit.reports.sweep_page import write_sweep
    from telechat_kit.runs.sweep import describe, folders, load_sweep, run_sweep

    wanted = load_sweep(path)
    if dry_run:
        say(describe(wanted))
        return
    codes = run_sweep(wanted, jobs, ray, ["--fresh"] if fresh else [])
    say(relative(write_sweep(folders(wanted), resolve(wanted.results))))
    sys.exit(max(codes.values()))


@click.command(short_help="Write a page of all runs of a folder.")
@click.argument("results", type=click.Path(path_type=Path), default=Path("results"))
def index(results: Path) -> None:
    """Write RESULTS/index.html: every run below that folder with its state, headline and report.

    \b
    Example:
      telechat-kit index results
    """
    from telechat_kit.reports.index_page import write_index

    say(relative(write_index(resolve(results))))

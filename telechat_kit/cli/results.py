"""Commands on finished runs: compare, verify, pack, index."""

import sys
from pathlib import Path

import click

from telechat_kit.comparison import compare as compare_runs
from telechat_kit.comparison import parse_rule
from telechat_kit.files import relative, resolve, write_text
from telechat_kit.reports.comparison_page import conditions_frame, figures_frame, markdown, write_comparison


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--fail-if", "rules", multiple=True, metavar="CONDITION", help="Exit code 1 if a later run meets it."
)
@click.option("--page", type=click.Path(path_type=Path), help="Write the comparison as an HTML page.")
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write the figures as CSV.")
@click.option("--all-conditions", is_flag=True, help="Also list the conditions that are the same.")
def compare(
    places: tuple[str, ...],
    rules: tuple[str, ...],
    page: Path | None,
    table: Path | None,
    all_conditions: bool,
) -> None:
    """Put each RUN (a results folder or a report.html) beside the first one.

    Conditions that differ come first, then every figure with the interval of its change. `published:310P` and
    `published:A10` stand for the guide's table.

    \b
    Examples:
      telechat-kit compare results/demo results/demo-L0
      telechat-kit compare results/demo published:310P
      telechat-kit compare main/report.html new/report.html --fail-if 'tokens_per_second < 0.95x'
      telechat-kit compare results/demo --fail-if 'perplexity_ratio > 1.05'

    \b
    Exit codes:
      0 done, 1 a --fail-if condition is met, 2 wrong input.
    """
    parsed = [parse_rule(text) for text in rules]
    found = compare_runs(places)
    broken = [text for rule in parsed for text in rule.broken_by(found)]
    click.echo(markdown(found))
    if all_conditions:
        click.echo(conditions_frame(found).to_string(index=False))
    if page is not None:
        click.echo(relative(write_comparison(found, resolve(page))))
    if table is not None:
        click.echo(relative(write_text(resolve(table), figures_frame(found).to_csv(index=False))))
    for text in broken:
        click.echo(text, err=True)
    sys.exit(1 if broken else 0)

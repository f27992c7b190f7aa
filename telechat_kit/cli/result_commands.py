"""Commands on finished runs: compare, verify, pack, index."""

import sys
from pathlib import Path

import click

from telechat_kit.files import relative, resolve, write_text

#: Those of `comparison.alignment`, which is imported when runs are compared
KL_TOLERANCE, AGREEMENT_TOLERANCE = 0.001, 0.98


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--fail-if", "rules", multiple=True, metavar="CONDITION", help="Exit code 1 if a later run meets it."
)
@click.option("--page", type=click.Path(path_type=Path), help="Write the comparison as an HTML page.")
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write the figures as CSV.")
@click.option(
    "--kl-tolerance",
    type=float,
    default=KL_TOLERANCE,
    show_default=True,
    help="Aligned runs: most nats per token between them, where both kept a bundle.",
)
@click.option(
    "--agreement-tolerance",
    type=float,
    default=AGREEMENT_TOLERANCE,
    show_default=True,
    help="Aligned runs: least share of positions with the same most likely token.",
)
@click.option("--fail-unless-aligned", is_flag=True, help="Exit code 1 if a later run is not called aligned.")
@click.option("--all-conditions", is_flag=True, help="Also list the conditions that are the same.")
def compare(
    places: tuple[str, ...],
    rules: tuple[str, ...],
    page: Path | None,
    table: Path | None,
    kl_tolerance: float,
    agreement_tolerance: float,
    fail_unless_aligned: bool,
    all_conditions: bool,
) -> None:
    """Put each RUN (a results folder or a report.html) beside the first one.

    Conditions that differ come first, then every figure with the interval of its change. `published:310P` and
    `published:A10` stand for the guide's table. Runs that kept a bundle (`-p bundle w8a8`) are compared position
    by position too: is what one device computes what the other does?

    \b
    Examples:
      telechat-kit compare results/demo results/demo-L0
      telechat-kit compare results/demo published:310P
      telechat-kit compare main/report.html new/report.html --fail-if 'tokens_per_second < 0.95x'
      telechat-kit compare results/demo --fail-if 'perplexity_ratio > 1.05'
      telechat-kit compare results/npu results/gpu --fail-unless-aligned --kl-tolerance 0.002

    \b
    Exit codes:
      0 done, 1 a --fail-if condition is met or a run not aligned, 2 wrong input.
    """
    from telechat_kit.comparison.alignment import Tolerances
    from telechat_kit.comparison.rules import parse_rule
    from telechat_kit.comparison.side_by_side import broken_by, not_aligned
    from telechat_kit.comparison.side_by_side import compare as compare_runs
    from telechat_kit.reports.comparison_page import (
        conditions_frame,
        figures_frame,
        frame_csv,
        markdown,
        markdown_table,
        write_comparison,
    )

    parsed = [parse_rule(text) for text in rules]
    found = compare_runs(places, Tolerances(kl_tolerance, agreement_tolerance))
    broken = [text for rule in parsed for text in broken_by(rule, found)]
    broken += not_aligned(found) if fail_unless_aligned else []
    click.echo(markdown(found))
    if all_conditions:
        click.echo(markdown_table(conditions_frame(found)))
    if page is not None:
        click.echo(relative(write_comparison(found, resolve(page))))
    if table is not None:
        click.echo(relative(write_text(resolve(table), frame_csv(figures_frame(found)))))
    for text in broken:
        click.echo(text, err=True)
    sys.exit(1 if broken else 0)


@click.command()
@click.argument("place", metavar="RUN")
@click.option("--only", "steps", multiple=True, metavar="STEP", help="Repeat only this step; again for more.")
@click.option("--hashes-only", is_flag=True, help="Repeat nothing.")
def verify(place: str, steps: tuple[str, ...], hashes_only: bool) -> None:
    """Check what a RUN (a results folder or a report.html alone) was made from, and repeat it.

    Weights, tokenizers, texts, questions and the files of the run are compared by hash, then the steps run again
    in a temporary folder, and each figure is said to be reproduced, within its interval, or not reproduced. Times
    and speeds are said and do not decide; another version of the code is said too.

    \b
    Examples:
      telechat-kit verify results/demo
      telechat-kit verify report.html --only precision
      telechat-kit verify results/demo --hashes-only

    \b
    Exit codes:
      0 verified, 1 a hash or a figure is another, 2 wrong input.
    """
    from telechat_kit.reports.comparison_page import markdown_table
    from telechat_kit.reports.plain_text import markdown_text
    from telechat_kit.runs.verification import verify as verify_run
    from telechat_kit.runs.verification_tables import origins_frame, summary, verdicts_frame

    found = verify_run(place, steps, repeat=not hashes_only)
    click.echo(f"## {markdown_text(found.name)}\n\n{markdown_table(origins_frame(found))}")
    if found.verdicts:
        click.echo(f"\n{markdown_table(verdicts_frame(found))}")
        if not found.same_machine:
            click.echo(
                "\nThe run was made on another machine, or does not tell: its speeds are not expected here."
            )
    click.echo(f"\n{'verified' if found.good else 'not verified'}: {summary(found)}")
    sys.exit(0 if found.good else 1)


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The archive; RUN.zip beside it by default."
)
@click.option(
    "--outside", is_flag=True, help="Also pack files outside the project that the run names or links to."
)
def pack(folder: Path, output: Path | None, outside: bool) -> None:
    """Pack a RUN with code, notebooks, parameters and data into one archive, without the weights.

    Another machine unpacks it, puts the weights where PACK.json says, and verifies or repeats the run.

    \b
    Example:
      telechat-kit pack results/demo -o demo.zip
    """
    from telechat_kit.runs.archive import pack as pack_run

    path = resolve(folder)
    target = resolve(output) if output else path.with_name(f"{path.name}.zip")
    click.echo(relative(pack_run(path, target, outside)))

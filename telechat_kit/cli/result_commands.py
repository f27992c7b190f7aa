"""Commands on finished runs: compare, verify, sign, pack."""

import sys
from pathlib import Path

import click

from telechat_kit.cli.terminal import output_file, say, say_document
from telechat_kit.files import relative, resolve, write_text
from telechat_kit.messages import LANGUAGES, shown
from telechat_kit.messages import gettext as _

#: Those of `comparison.alignment`, which is imported when runs are compared
KL_TOLERANCE, AGREEMENT_TOLERANCE = 0.001, 0.98


@click.command(short_help="Put runs side by side, with intervals.")
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

    page = page and output_file(page, ".html")
    table = table and output_file(table, ".csv")
    parsed = [parse_rule(text) for text in rules]
    found = compare_runs(places, Tolerances(kl_tolerance, agreement_tolerance))
    broken = [text for rule in parsed for text in broken_by(rule, found)]
    broken += not_aligned(found) if fail_unless_aligned else []
    say_document(markdown(found))
    if all_conditions:
        say_document(markdown_table(conditions_frame(found)))
    if page is not None:
        say(relative(write_comparison(found, page)))
    if table is not None:
        say(relative(write_text(table, frame_csv(figures_frame(found)))))
    for text in broken:
        say(shown(text), err=True)
    sys.exit(1 if broken else 0)


@click.command(short_help="Check a run against itself, and repeat it.")
@click.argument("place", metavar="RUN")
@click.option("--only", "steps", multiple=True, metavar="STEP", help="Repeat only this step; again for more.")
@click.option("--hashes-only", is_flag=True, help="Repeat nothing.")
@click.option("--strict", is_flag=True, help="Exit code 3 if anything could not be checked.")
@click.option(
    "--signers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Allowed signers of OpenSSH (lines NAME KEY-TYPE KEY); one of them must have signed RUN.",
)
def verify(place: str, steps: tuple[str, ...], hashes_only: bool, strict: bool, signers: Path | None) -> None:
    """Check a RUN (a results folder or a report.html alone) against itself and its origins, and repeat it.

    The files are held against the manifest, both ways. Values and intervals are computed anew from the means of
    sequences and the raw samples, answers are compared by text, figures that nothing measures are refused. Weights,
    tokenizers and texts are compared by hash. Then the steps run again in a temporary folder: on the same machine,
    code and weights every figure and answer must be equal, elsewhere agree within the interval of the difference.
    Times and speeds of the repetition are said and do not decide; what was not checked is listed.

    \b
    Examples:
      telechat-kit verify results/demo
      telechat-kit verify report.html --only precision
      telechat-kit verify results/demo --hashes-only
      telechat-kit verify results/demo --hashes-only --signers signers.txt

    \b
    Exit codes:
      0 verified, 1 not verified: something is otherwise than recorded, 2 wrong input,
      3 nothing could be checked, or with --strict: something could not.
    """
    from telechat_kit.reports.comparison_page import markdown_table
    from telechat_kit.reports.plain_text import markdown_text
    from telechat_kit.runs.verification import NOT_VERIFIED, NOTHING, ORIGIN
    from telechat_kit.runs.verification import verify as verify_run
    from telechat_kit.runs.verification_tables import (
        parts_frame,
        signed_lines,
        summary,
        unchecked_lines,
        verdicts_frame,
        wrong_frame,
    )

    found = verify_run(place, steps, repeat=not hashes_only, signers=signers)
    say_document(f"## {markdown_text(found.name)}\n\n{markdown_table(parts_frame(found))}")
    if found.wrong:
        say_document(f"\n{markdown_table(wrong_frame(found))}")
    if found.unchecked:
        lines = "\n".join(f"- {markdown_text(line)}" for line in unchecked_lines(found))
        say_document("\n" + _("Not checked:") + "\n\n" + lines)
    if found.verdicts:
        say_document(f"\n{markdown_table(verdicts_frame(found))}")
        if not found.same_machine:
            told = _(
                "The run was made on another machine or by other code, or does not tell: figures agree within the "
                "interval of the difference, and its speeds are not expected here."
            )
            say(f"\n{told}")
    if found.alone:
        say(f"\n{_(ORIGIN)}")
    for line in signed_lines(found):
        say(f"\n{line}")
    say(f"\n{_(found.outcome_said)}: {summary(found)}")
    codes = {NOT_VERIFIED: 1, NOTHING: 3}
    sys.exit(codes.get(found.outcome, 3 if strict and found.unchecked else 0))


@click.command(short_help="Sign a run with an SSH key.")
@click.argument("place", metavar="RUN")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="A private SSH key, or a public one whose private half ssh-agent holds.",
)
def sign(place: str, key: Path) -> None:
    """Sign the manifest of a RUN with an SSH key, by ssh-keygen, so that others can tell who stands for it.

    The signature is manifest.json.sig beside it. It covers every file of the run; the next run removes it.

    \b
    Examples:
      telechat-kit sign results/demo --key ~/.ssh/id_ed25519
      echo "me@example.org $(cat ~/.ssh/id_ed25519.pub)" > signers.txt
      telechat-kit verify results/demo --signers signers.txt
    """
    from telechat_kit.runs.signing import sign as sign_run

    say(relative(sign_run(place, key)))


@click.command(short_help="Write the report of a run again, or all its pages as one.")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--single", type=click.Path(path_type=Path), metavar="FILE", help="All pages of the run as one FILE."
)
@click.option(
    "--language", type=click.Choice(LANGUAGES), help="Of the report; by default that of its profile."
)
def report(folder: Path, single: Path | None, language: str | None) -> None:
    """Write report.html, report.md and tables/ of a RUN again from its records.

    With --single the report and the pages of the five notebooks go into one FILE, whose links work wherever it is.

    \b
    Examples:
      telechat-kit report results/demo
      telechat-kit report results/demo --language zh
      telechat-kit report results/demo --single demo.html

    \b
    Exit codes:
      0 written, 2 a record or a page is missing or damaged.
    """
    from telechat_kit.comparison.run_data import read_run_data
    from telechat_kit.reports.page import write_report
    from telechat_kit.reports.single_page import write_single_page
    from telechat_kit.runs.profile import default_values

    path = resolve(folder)
    single = single and output_file(single, ".html")
    if single is not None and language is None:
        say(relative(write_single_page(path, single)))
        return
    values = default_values("05_report") | read_run_data(path).parameters
    written = write_report(path, language or values["language"], values["limits"])
    say(relative(write_single_page(path, single) if single is not None else written))


@click.command(short_help="Pack a run with its code, without weights.")
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
    target = output_file(output or path.with_name(f"{path.name}.zip"), ".zip")
    say(relative(pack_run(path, target, outside)))

"""`telechat-kit`: the command line. Each command calls one verb and says what it left.

Commands import what they call when they are called: help, completion and a typing error need neither torch nor
transformers.
"""

import sys

import click

import telechat_kit
from telechat_kit.cli.check_commands import check, hash_folder
from telechat_kit.cli.project_commands import init, lab, list_runs, open_page
from telechat_kit.cli.result_commands import compare, pack, report, sign, verify
from telechat_kit.cli.run_commands import html, params, run
from telechat_kit.cli.speech import OPTION, Group, in_language_of
from telechat_kit.cli.sweep_commands import index, sweep
from telechat_kit.cli.terminal import complain, on_this_system, require_ground, take_streams
from telechat_kit.cli.weight_commands import export, lm_eval
from telechat_kit.errors import KitError
from telechat_kit.messages import LANGUAGES
from telechat_kit.messages import gettext as _


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(telechat_kit.__version__, prog_name="telechat-kit")
@click.option(
    OPTION,
    type=click.Choice(LANGUAGES),
    expose_value=False,
    help="Of what this command says, before its name, and of pages whose profile names none; by default that of the terminal (LANG).",
)
def cli() -> None:
    """Reproduce TeleChat W8A8 inference as executed notebooks.

    \b
    Examples:
      telechat-kit init my-project
      telechat-kit run params/tiny.yaml
      telechat-kit open tiny

    \b
    Completion of words with Tab, in bash (zsh and fish likewise):
      eval "$(_TELECHAT_KIT_COMPLETE=bash_source telechat-kit)"

    \b
    Exit codes: 0 done, 1 a step failed, 2 wrong input, 4 folder in use, 130 interrupted, 143 ended.
    """
    require_ground()


for command in (
    init,
    check,
    run,
    lab,
    params,
    list_runs,
    open_page,
    html,
    report,
    compare,
    verify,
    sign,
    pack,
    index,
    sweep,
    export,
    lm_eval,
    hash_folder,
):
    cli.add_command(command)


def main() -> None:
    """Entry point: an error of the user's making is one message and exit code 2, without a traceback."""
    take_streams()
    with in_language_of(sys.argv[1:]):
        try:
            with on_this_system():
                cli()
        except KitError as error:
            complain(_("Error: {message}").format(message=error.shown()))
            sys.exit(error.exit_code)

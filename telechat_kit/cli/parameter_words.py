"""`-p KEY VALUE`, as papermill has it, and `-p KEY=VALUE`, as most tools have it."""

import re

import click

Pairs = tuple[tuple[str, str], ...]

_OPTIONS = ("-p", "--parameter")
_PAIR = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)

parameter_option = click.option(
    *_OPTIONS,
    "overrides",
    nargs=2,
    multiple=True,
    metavar="KEY VALUE",
    help="Override a parameter; KEY=VALUE will do as well.",
)


class WithPairs(click.Command):
    """A command with `parameter_option`, which click reads as two words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Part `KEY=VALUE` behind `-p` into two words. A key of its own is a name, in which no "=" can stand."""
        words: list[str] = []
        for word in args:
            option, glued = next(
                ((name, word[len(name) :].removeprefix("=")) for name in _OPTIONS if word.startswith(name)),
                ("", ""),
            )
            if option and (pair := _PAIR.fullmatch(glued)):
                words += [option, *pair.groups()]
            elif words and words[-1] in _OPTIONS and (pair := _PAIR.fullmatch(word)):
                words += pair.groups()
            else:
                words.append(word)
        return super().parse_args(ctx, words)

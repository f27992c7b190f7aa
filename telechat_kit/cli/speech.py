"""The language of the command line: that of `--language`, else of the terminal; click's own words come from the catalog too."""

import copy
import gettext as catalogs
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import click

from telechat_kit.messages import DOMAIN, LANGUAGES, LOCALE, TAGS, marked
from telechat_kit.messages import gettext as _
from telechat_kit.translation import of_terminal, speaking, telling
from telechat_kit.variables import set_meanwhile
from telechat_kit.widths import padded, width, wrapped

OPTION = "--language"
#: What gettext of the standard library, which click asks, takes the language from
_LANGUAGE = "LANGUAGE"
_RAW = "\b"
#: Types of values as errors and placeholders name them: "float" is a kind of weights here
_TYPES = {
    "integer": marked("whole number"),
    "integer range": marked("whole number"),
    "float": marked("decimal number"),
    "float range": marked("decimal number"),
}
#: A line of examples is the same in every language, but for what stands behind `#`
_COMMAND = re.compile(r"( *(?:telechat-kit|eval|echo|cd) .*?)(\s+# )?((?<= # ).*)?")


@contextmanager
def in_language_of(arguments: Sequence[str]) -> Iterator[None]:
    """Speak what a command line asks for, or the terminal; what is started meanwhile does so too."""
    wanted = _asked(arguments) or of_terminal(os.environ)
    catalogs.bindtextdomain(DOMAIN, str(LOCALE))
    catalogs.textdomain(DOMAIN)
    of_click = {_LANGUAGE: TAGS[wanted].replace("-", "_")}
    with set_meanwhile(of_click), speaking(wanted), telling(wanted):
        yield


def _asked(arguments: Sequence[str]) -> str | None:
    """The language that stands before the command: help and errors must know it before click has read it."""
    for number, word in enumerate(arguments):
        if not word.startswith("-"):
            return None
        name, _equals, value = word.partition("=")
        if name == OPTION:
            value = value or next(iter(arguments[number + 1 :]), "")
            return value if value in LANGUAGES else None
    return None


class Group(click.Group):
    """Lists its commands as a person meets them, not by the alphabet, and shows them in the language in force."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        return found and translated(found)

    def make_context(self, *args: object, **kwargs: object) -> click.Context:
        """The context of the group itself, whose help is translated as that of its commands."""
        return click.Group.make_context(translated(self), *args, **kwargs)  # type: ignore[arg-type]


def translated(command: click.Command) -> click.Command:
    """A copy of a command whose help is in the language in force."""
    made = copy.copy(command)
    made.context_class = _Context
    made._help_option = None  # click keeps the one that it made first, with the words of that time
    made.help = _translated_help(command.help or "")
    made.short_help = _told(command.short_help)
    made.options_metavar = _("[OPTIONS]")
    made.params = [_translated_option(param) for param in command.params]
    if isinstance(made, click.Group):
        made.subcommand_metavar = _("COMMAND [ARGS]...")
    return made


def _translated_option(param: click.Parameter) -> click.Parameter:
    made = copy.copy(param)
    made.type = copy.copy(param.type)
    made.type.name = _(_TYPES.get(made.type.name, made.type.name))
    if isinstance(made, click.Option):
        made.help = _told(made.help)
    return made


def help_texts(group: click.Group) -> Iterator[str]:
    """All that the help of a group and its commands says, piece by piece as it is translated."""
    for command in (group, *group.commands.values()):
        pieces = [piece for paragraph in _paragraphs(command.help or "") for piece in _pieces(paragraph)]
        options = [param.help for param in command.params if isinstance(param, click.Option)]
        yield from filter(None, [command.short_help, *pieces, *options])


def _told(text: str | None) -> str:
    return _(text) if text else ""


def _translated_help(text: str) -> str:
    return "\n\n".join(_translated_paragraph(paragraph) for paragraph in _paragraphs(text))


def _translated_paragraph(paragraph: str) -> str:
    if not paragraph.startswith(_RAW):
        return _(_joined(paragraph))
    lines = paragraph.split("\n")
    return "\n".join([lines[0], *(_translated_line(line) for line in lines[1:])])


def _translated_line(line: str) -> str:
    """A line that breaks where it does: its words, without what it begins with."""
    if example := _COMMAND.fullmatch(line):
        return "".join([example[1], example[2] or "", _told(example[3])])
    words = line.lstrip()
    return line[: len(line) - len(words)] + _(words)


def _pieces(paragraph: str) -> Iterator[str]:
    if not paragraph.startswith(_RAW):
        yield _joined(paragraph)
        return
    for line in paragraph.split("\n")[1:]:
        example = _COMMAND.fullmatch(line)
        yield (example[3] or "") if example else line.strip()


def _paragraphs(text: str) -> list[str]:
    return [part for part in inspect.cleandoc(text).split("\n\n") if part.strip()]


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())


class _Formatter(click.HelpFormatter):
    """Breaks lines by the columns that they take; click counts signs, of which Chinese ones take two columns."""

    def write_text(self, text: str) -> None:
        if width(text) == len(text):
            super().write_text(text)
            return
        indent = " " * self.current_indent
        told = [self._lines(part, self.width - self.current_indent) for part in text.split("\n\n")]
        self.write("\n\n".join("\n".join(indent + line for line in lines) for lines in told) + "\n")

    def _lines(self, paragraph: str, columns: int) -> list[str]:
        if paragraph.startswith(_RAW):
            return paragraph.split("\n")[1:]
        return wrapped(paragraph, columns)

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = list(rows)
        if all(width(cell) == len(cell) for row in rows for cell in row):
            super().write_dl(rows, col_max, col_spacing)
            return
        first = min(max(width(term) for term, _said in rows), col_max) + col_spacing
        indent = " " * self.current_indent
        for term, said in rows:
            lines = wrapped(said, max(self.width - first - self.current_indent, 10)) if said else []
            if width(term) + col_spacing > first:
                self.write(f"{indent}{term}\n")
            elif lines:
                self.write(f"{indent}{padded(term, first)}{lines.pop(0)}\n")
            else:
                self.write(f"{indent}{term}\n")
            for line in lines:
                self.write(f"{indent}{' ' * first}{line}\n")


class _Context(click.Context):
    formatter_class = _Formatter

"""Between the command line and the system: where it writes, and what ends a command that no part of the kit is to blame for."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from telechat_kit.errors import KitError, ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.widths import visible

#: What a system has against one who writes to a stream, not to a file that the kit opened
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
_OWN = "telechat_kit"


def take_streams() -> None:
    """Make the three streams fit to write to: a closed one writes to nothing, and no sign is more than one can show."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # a file opened later would take its number, and get what is printed
            mode = "r" if number == 0 else "w"
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  (open to the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal in GBK has no emoji: it shows their codes
            stream.reconfigure(errors="backslashreplace")


def say(text: object, err: bool = False) -> None:
    """Print a line; names and texts of others in it command no terminal."""
    click.echo(visible(str(text)), err=err)


def say_document(markdown: str) -> None:
    """Print Markdown: in a terminal as headings, lists and tables that fit its width, elsewhere as it is."""
    if not sys.stdout.isatty():
        say(markdown)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console(file=sys.stdout).print(Markdown(visible(markdown), hyperlinks=False))


def complain(text: object) -> None:
    """Print a line to stderr, if anybody can get it."""
    with contextlib.suppress(OSError):
        say(text, err=True)


def output_file(path: Path, suffix: str) -> Path:
    """Where an option asks a command to write; a file that is there goes only if it is one that the option makes.

    Raises:
        ParameterError: the file is of another kind, or a page of a run.
    """
    from telechat_kit.reports.html import PAGES

    target = resolve(path)
    of_a_run = (target.parent / "run.json").is_file() and target.name in {name for _, name in PAGES}
    if target.is_file() and (of_a_run or target.suffix.lower() != suffix):
        raise ParameterError(
            "{target} is there, and would be lost. Name another file, or one that ends in {suffix}.",
            target=relative(target),
            suffix=suffix,
        )
    return target


def require_ground() -> None:
    """Refuse what torch and transformers end at with messages of their own.

    Raises:
        KitError: the current folder was removed, or Python leaves docstrings out.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise KitError("the current folder is gone. Change to one that is there, and call again.") from error
    if sys.flags.optimize > 1:
        raise KitError(
            "Python leaves docstrings out (PYTHONOPTIMIZE=2 or -OO), which transformers reads. Take that away, and "
            "call again."
        )


@contextlib.contextmanager
def on_this_system() -> Iterator[None]:
    """What the system denies a command, as a `KitError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        with contextlib.suppress(
            OSError, ValueError
        ):  # what is left in it cannot be written at the end either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise KitError(
            "what the command says cannot be written: {told}. Free space, or write it elsewhere.",
            told=error.strerror,
        ) from error
    except MemoryError as error:
        raise KitError(
            "there is not enough memory. Free some, or raise the limit on it (ulimit -v)."
        ) from error
    except ImportError as error:
        if (error.name or "").startswith(_OWN):
            raise
        raise KitError(
            "a package cannot be loaded: {error}. Install the packages again (make, or pip install), or raise the "
            "limit on memory (ulimit -v) if there is one.",
            error=error,
        ) from error

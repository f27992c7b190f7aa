"""Which language is in force.

A page speaks the language of its profile, the command line that of `--language` or of the terminal: whoever writes one
says so with `speaking`. A kernel learns it from its environment.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from telechat_kit.errors import ParameterError
from telechat_kit.messages import LANGUAGES, VARIABLE, spoken
from telechat_kit.variables import set_meanwhile


@contextmanager
def speaking(wanted: str) -> Iterator[None]:
    """Messages in a language, as long as the context lasts.

    Raises:
        ParameterError: no such language.
    """
    token = spoken.set(known(wanted))
    try:
        yield
    finally:
        spoken.reset(token)


@contextmanager
def telling(wanted: str) -> Iterator[None]:
    """The processes that are started meanwhile speak `wanted`, and so do threads."""
    with set_meanwhile({VARIABLE: known(wanted)}):
        yield


def known(wanted: str) -> str:
    """`wanted`, if it is a language of the kit."""
    if wanted not in LANGUAGES:
        raise ParameterError('language "{language}" is unknown. Use en or zh.', language=wanted)
    return wanted


def of_terminal(environment: Mapping[str, str]) -> str:
    """The language that the user's locale asks for; what a command that started this one said goes first."""
    told = environment.get(VARIABLE, "")
    if told in LANGUAGES:
        return told
    names = (environment.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh" if next(filter(None, names), "").startswith("zh") else "en"

"""The language in force, and messages in it.

English stands in the code, Chinese in the gettext catalog under `locale/`, which `make messages` extracts and compiles.
A page speaks the language of its profile, the command line that of the terminal: whoever writes one says so with
`speaking`. A kernel learns it from its environment.
"""

import gettext as catalogs
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from telechat_kit.errors import ParameterError

LANGUAGES = ("en", "zh")
#: Language -> its tag in HTML
TAGS = {"en": "en", "zh": "zh-CN"}
DOMAIN = "telechat_kit"
LOCALE = Path(__file__).parent / "locale"
#: In the environment of a kernel or of a command that another one starts: the language that it speaks
VARIABLE = "TELECHAT_KIT_LANGUAGE"

_spoken: ContextVar[str] = ContextVar("language")


def language() -> str:
    """The language in force."""
    told = _spoken.get(os.environ.get(VARIABLE, ""))
    return told if told in LANGUAGES else "en"


@contextmanager
def speaking(wanted: str) -> Iterator[None]:
    """Messages in a language, as long as the context lasts.

    Raises:
        ParameterError: no such language.
    """
    token = _spoken.set(known(wanted))
    try:
        yield
    finally:
        _spoken.reset(token)


@contextmanager
def telling(wanted: str) -> Iterator[None]:
    """The processes that are started meanwhile speak `wanted`."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = known(wanted)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def known(wanted: str) -> str:
    """`wanted`, if it is a language of the kit."""
    if wanted not in LANGUAGES:
        raise ParameterError(f'language "{wanted}" is unknown. Use {" or ".join(LANGUAGES)}.')
    return wanted


def of_terminal(environment: Mapping[str, str]) -> str:
    """The language that the user's locale asks for; what a command that started this one said goes first."""
    told = environment.get(VARIABLE, "")
    if told in LANGUAGES:
        return told
    names = (environment.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh" if next(filter(None, names), "").startswith("zh") else "en"


def gettext(message: str) -> str:
    """A message in the language in force; as it is where the catalog does not know it."""
    return _catalog(language()).gettext(message) if message else ""


def ngettext(one: str, many: str, count: int) -> str:
    """The form of a message that fits a count, in the language in force."""
    return _catalog(language()).ngettext(one, many, count)


def marked(message: str) -> str:
    """The message itself: `make messages` takes it into the catalog, and what shows it calls `gettext`."""
    return message


@cache
def _catalog(wanted: str) -> catalogs.NullTranslations:
    if wanted == "en":
        return catalogs.NullTranslations()
    return catalogs.translation(DOMAIN, LOCALE, [TAGS[wanted].replace("-", "_")])

"""Texts for people: English in the code and in records, another language where they are shown.

Chinese stands in the gettext catalog under `locale/`, which `make messages` extracts and compiles. Which language is in
force, `translation` says.
"""

import gettext as catalogs
import os
import re
from collections.abc import Iterable
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from string import Formatter

LANGUAGES = ("en", "zh")
#: Language -> its tag in HTML
TAGS = {"en": "en", "zh": "zh-CN"}
DOMAIN = "telechat_kit"
LOCALE = Path(__file__).parent / "locale"
#: In the environment of a kernel or of a command that another one starts: the language that it speaks
VARIABLE = "TELECHAT_KIT_LANGUAGE"

#: What `translation.speaking` sets
spoken: ContextVar[str] = ContextVar("language")
#: Spaces between two Chinese signs, or beside a full-width mark
_GAPS = re.compile(
    r"(?<=[\u3000-\u9fff\uff00-\uffef]) +(?=[\u3000-\u9fff\uff00-\uffef])"
    r"|(?<=[\u3000-\u303f\uff00-\uffef]) +(?=\S)|(?<=\S) +(?=[\u3000-\u303f\uff00-\uffef])"
)
#: A form with fewer letters of its own would fit anything
_FEWEST_LETTERS = 4


def language() -> str:
    """The language in force."""
    told = spoken.get(os.environ.get(VARIABLE, ""))
    return told if told in LANGUAGES else "en"


def gettext(message: str) -> str:
    """A message in the language in force; as it is where the catalog does not know it."""
    return _catalog(language()).gettext(message) if message else ""


def closed_up(text: str) -> str:
    """Chinese without spaces between its signs: values stand there where names of Latin letters, set off by spaces, may."""
    return _GAPS.sub("", text) if language() == "zh" else text


def ngettext(one: str, many: str, count: int) -> str:
    """The form of a message that fits a count, in the language in force."""
    return _catalog(language()).ngettext(one, many, count)


def marked(message: str) -> str:
    """The message itself: `make messages` takes it into the catalog, and what shows it calls `gettext`."""
    return message


class Message(str):
    """A text in English, as records keep it, that knows its form and values and so can be shown in another language.

    Example:
        >>> str(Message("{path} does not exist.", path="a.txt"))
        'a.txt does not exist.'
    """

    form: str
    values: dict[str, object]

    def __new__(cls, form: str, /, **values: object) -> "Message":
        """`form` with `{names}` for the values; without values its braces are braces."""
        made = super().__new__(cls, form.format(**values) if values else form)
        made.form, made.values = form, values
        return made

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and other processes get the English text: `shown` knows it again by its form."""
        return str, (str.__str__(self),)

    def __str__(self) -> str:
        """Itself: `str(error)` of an error that was raised with a message can be shown too."""
        return self

    def shown(self) -> str:
        """The text in the language in force."""
        told = gettext(self.form)
        return (
            told.format(**{name: _value(value) for name, value in self.values.items()})
            if self.values
            else told
        )


def joined(separator: str, texts: Iterable[str]) -> Message:
    """Several texts as one, each of which is shown in the language in force."""
    values = {f"text{number}": text for number, text in enumerate(texts)}
    return Message(separator.join(f"{{{name}}}" for name in values), **values)


def shown(text: str) -> str:
    """A text of the kit in the language in force, also one that was read from a record.

    A record holds "24 of 210 linears stay in float", the catalog "{count} of {all} linears stay in float": the form with
    the most letters of its own that fits the text gives the values. What no form fits stays as it is.
    """
    if isinstance(text, Message):
        return text.shown()
    told = gettext(text)
    if told != text or language() == LANGUAGES[0] or not text.strip():
        return told
    return next(filter(None, (_filled(*pair, text) for pair in _forms(language()))), text)


def _value(value: object) -> object:
    """What stands for a value of a message: texts and errors of the kit in the language in force."""
    if isinstance(value, BaseException) and value.args:
        return shown(value.args[0]) if isinstance(value.args[0], Message) else _sentence(str(value))
    return _sentence(value) if isinstance(value, str) else value


def _sentence(text: str) -> str:
    if isinstance(text, Message) or " " in text:
        return shown(text)
    return text


def _filled(form: str, told: str, text: str) -> str:
    """`told` with the values that `text` has where `form` has names; empty if the form does not fit."""
    values: dict[str, str] = {}
    place, name = 0, ""
    pieces = _pieces(form)
    for number, (literal, following) in enumerate(pieces):
        last = number == len(pieces) - 1
        if number == 0:
            found = 0 if text.startswith(literal) else -1
        elif last and not following:
            found = len(text) - len(literal) if text.endswith(literal) else -1
        else:
            found = text.find(literal, place + 1) if literal else (len(text) if last else place + 1)
        if found < place or (name and not _take(values, name, text[place:found])):
            return ""
        place, name = found + len(literal), following
    if name and not _take(values, name, text[place:]):
        return ""
    if not name and place != len(text):
        return ""
    return "".join(literal + (str(_sentence(values[key])) if key else "") for literal, key in _pieces(told))


def _take(values: dict[str, str], name: str, value: str) -> bool:
    """Note a value; False if it is empty, or another than the same name had before."""
    return bool(value) and values.setdefault(name, value) == value


@cache
def _pieces(form: str) -> tuple[tuple[str, str], ...]:
    """The letters of a form, each piece with the name of the value that follows it."""
    pieces, letters = [], ""
    for literal, name, _spec, _conversion in Formatter().parse(form):
        letters += literal
        if name is not None:  # else a brace that is one
            pieces.append((letters, name))
            letters = ""
    return (*pieces, (letters, "")) if letters or not pieces else tuple(pieces)


@cache
def _forms(wanted: str) -> list[tuple[str, str]]:
    """The messages with values and their translations, those that say most by themselves first."""
    found = {}
    for message, told in getattr(_catalog(wanted), "_catalog", {}).items():
        form = message if isinstance(message, str) else message[0]
        if "{" in form and _letters(form) >= _FEWEST_LETTERS:
            found[form] = told
    return sorted(found.items(), key=lambda pair: (-_letters(pair[0]), -len(pair[0])))


def _letters(form: str) -> int:
    try:
        return sum(sum(map(str.isalpha, literal)) for literal, _ in _pieces(form))
    except ValueError:  # braces that are braces
        return 0


@cache
def _catalog(wanted: str) -> catalogs.NullTranslations:
    if wanted == LANGUAGES[0]:
        return catalogs.NullTranslations()
    return catalogs.translation(DOMAIN, LOCALE, [TAGS[wanted].replace("-", "_")])

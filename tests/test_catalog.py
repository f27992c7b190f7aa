"""The catalog of messages: whole, up to date, compiled; and which language is in force."""

import io
import re

import catalog
import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import read_mo

from telechat_kit.errors import ParameterError
from telechat_kit.messages import VARIABLE, gettext, language, ngettext
from telechat_kit.translation import of_terminal, speaking, telling


def test_every_message_has_its_chinese_and_none_is_left_over() -> None:
    wanted, here = catalog.extracted(), catalog.translated()
    assert {message.id for message in wanted} == {message.id for message in here}, "run `make messages`"
    assert not here.obsolete
    assert catalog.faults(here) == []


def test_the_compiled_catalog_is_that_of_the_texts() -> None:
    compiled = catalog.compiled(catalog.translated())
    assert _messages(catalog.MO.read_bytes()) == _messages(compiled), "run `make messages`"


def _messages(compiled: bytes) -> list[tuple[object, object]]:
    """Without the header: it names the version of Babel, which the project does not pin for every Python."""
    return [(message.id, message.string) for message in read_mo(io.BytesIO(compiled)) if message.id]


def test_what_is_wrong_with_a_catalog_is_named() -> None:
    found = Catalog(locale="zh_Hans_CN")
    found.add("one {a}", "一 {a}")
    found.add("two {a}", "二 {b}")
    found.add("three", "")
    found.add("four", "四", flags=["fuzzy"])
    assert catalog.faults(found) == ["other placeholders: two {a}", "no Chinese: three", "no Chinese: four"]


def test_messages_are_those_of_the_language_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert (language(), gettext("perplexity"), gettext("")) == ("en", "perplexity", "")
    with speaking("zh"):
        assert (language(), gettext("perplexity"), gettext("no message")) == ("zh", "困惑度", "no message")
        with speaking("en"):
            assert gettext("perplexity") == "perplexity"
    with telling("zh"):
        assert gettext("perplexity") == "困惑度"
    assert language() == "en"
    with pytest.raises(ParameterError, match=r'"fr" is unknown\. Use en or zh'), speaking("fr"):
        pass


def test_a_single_thing_is_not_told_in_the_plural() -> None:
    told = [ngettext("one thread", "{count} threads", count).format(count=count) for count in (1, 2)]
    assert told == ["one thread", "2 threads"]
    with speaking("zh"):
        assert ngettext("one thread", "{count} threads", 1).format(count=1) == "1 个线程"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", VARIABLE: "en"}, "en"),
    ],
)
def test_a_terminal_is_answered_in_the_language_of_its_locale(
    environment: dict[str, str], expected: str
) -> None:
    assert of_terminal(environment) == expected


def test_values_of_messages_have_speaking_names() -> None:
    names = {name for message in catalog.translated() for name in re.findall(r"\{(\w+)", str(message.id))}
    assert {name for name in names if re.search(r"[a-z_]\d$", name)} == {"w8a8", "kl_int8", "int8"} & names

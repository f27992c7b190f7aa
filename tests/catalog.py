"""The Chinese catalog of messages, kept by Babel: `python tests/catalog.py` takes in what is new, drops what is gone, compiles.

A translation is written into the .po by hand; the .mo is what is read when the kit runs. Babel's own check of `%`
formats is left out: it takes "95 % of" for one. Placeholders here are `{named}`.
"""

import io
import re
import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from library_words import OF_CLICK, OF_LIBRARIES

from telechat_kit.cli import cli
from telechat_kit.cli.speech import help_texts
from telechat_kit.messages import DOMAIN, LOCALE

ROOT = Path(__file__).parents[1]
PO = LOCALE / "zh_CN" / "LC_MESSAGES" / f"{DOMAIN}.po"
MO = PO.with_suffix(".mo")
_SOURCES = (
    ("telechat_kit/**.py", "python"),
    ("telechat_kit/**.j2", "jinja2"),
    ("notebooks/0*.ipynb", "telechat_kit.runs.notebook_language:extract"),
)
_TEMPLATES = {"trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}
#: What besides gettext takes a message as its first argument
_TAKING_MESSAGES = (
    "marked", "Message", "KitError", "CheckpointError", "ParameterError", "DataError", "DeviceError", "LockedError",
)  # fmt: skip
_PLACEHOLDERS = re.compile(r"\{[^{}]*\}|%\(\w+\)s")


def extracted() -> Catalog:
    """The messages of code, templates and notebooks."""
    found = Catalog()
    keywords = {**DEFAULT_KEYWORDS, **dict.fromkeys(_TAKING_MESSAGES)}
    options = {"telechat_kit/**.j2": _TEMPLATES}
    messages = extract_from_dir(ROOT, _SOURCES, options, keywords, directory_filter=_is_ours)
    for name, _, message, _, _ in sorted(messages, key=lambda row: row[:2]):
        if message:
            found.add(message, locations=[(Path(name).as_posix(), 0)])
    for message in (*help_texts(cli), *OF_CLICK):
        found.add(message, locations=[("telechat_kit/cli", 0)])
    for message in OF_LIBRARIES:
        found.add(message, locations=[("tests/library_words.py", 0)])
    return found


def _is_ours(folder: str) -> bool:
    inside = Path(folder).resolve().relative_to(ROOT).parts
    return not inside or (inside[0] in ("telechat_kit", "notebooks") and "__pycache__" not in inside)


def translated() -> Catalog:
    """The catalog as it lies in the project."""
    with PO.open("rb") as file:
        return read_po(file, locale="zh_Hans_CN")


def faults(catalog: Catalog) -> list[str]:
    """What is wrong with a catalog: messages without Chinese, marked fuzzy, or with other placeholders."""
    found = []
    for message in catalog:
        english = message.id if isinstance(message.id, str) else message.id[-1]
        chinese = message.string if isinstance(message.string, str) else message.string[0]
        if not english:
            continue
        if message.fuzzy or not chinese:
            found.append(f"no Chinese: {english}")
        elif set(_PLACEHOLDERS.findall(english)) != set(_PLACEHOLDERS.findall(chinese)):
            found.append(f"other placeholders: {english}")
    return found


def compiled(catalog: Catalog) -> bytes:
    """The catalog as the kit reads it."""
    file = io.BytesIO()
    write_mo(file, catalog)
    return file.getvalue()


def main() -> None:
    catalog = translated()
    catalog.update(extracted(), no_fuzzy_matching=True)
    file = io.BytesIO()
    write_po(file, catalog, width=0, ignore_obsolete=True, include_lineno=False)
    PO.write_bytes(file.getvalue())
    MO.write_bytes(compiled(translated()))
    left = faults(translated())
    print(*left, f"{len(catalog)} messages, {len(left)} to be seen to", sep="\n")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()

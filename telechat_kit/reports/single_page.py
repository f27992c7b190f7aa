"""All pages of a run in one file, to be mailed: the report, and below it the notebooks' pages, which its links reach.

The report's part stays what it is, letter for letter but for those links, so that `telechat-kit verify` can take it out
again and hold it against the record that it carries.
"""

import re
from pathlib import Path

from bs4 import BeautifulSoup
from markupsafe import Markup

from telechat_kit.errors import DataError
from telechat_kit.files import relative, resolve, write_text
from telechat_kit.reports.html import PAGES

_BEGIN, _END = "<!-- pages of the notebooks -->\n", "<!-- end of the pages -->\n"
_FOOTER = '<footer class="page-footer">'
_BESIDE = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
#: Attributes that name ids, and addresses within the page
_NAMES = re.compile(r'\b(id|for|headers|aria-labelledby|aria-describedby)="([^"]*)"')
_ADDRESSES = re.compile(r'(="#|url\(#)([^")]+)')
_STYLED = re.compile(r"<style[^>]*>.*?</style>", re.DOTALL)


def write_single_page(run_folder: str | Path, target: str | Path) -> Path:
    """Write `report.html` of a run and the pages of its notebooks as one file `target`, whole or not at all.

    Raises:
        DataError: one of the pages is missing or cut off, or `target` is one of them.
    """
    folder, target = resolve(run_folder), resolve(target)
    names = [name for _, name in PAGES]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise DataError(
            "{folder} has no {missing}. Run its step, which writes it.",
            folder=relative(folder),
            missing=missing[0],
        )
    if target.parent == folder and target.name in names:
        raise DataError("{target} is a page of the run itself. Name another file.", target=relative(target))
    report, *others = [_whole(folder / name) for name in names]
    for name in names[1:]:
        report = report.replace(f'<a href="{name}"', f'<a href="#{_address(name)}"')
    parts = [_part(name, page) for name, page in zip(names[1:], others, strict=True)]
    head, footer, tail = report.rpartition(_FOOTER)
    return write_text(target, f"{head}{_BEGIN}{''.join(parts)}{_END}{footer}{tail}")


def report_alone(page: str) -> tuple[str, bool]:
    """The report as it was before `write_single_page`, and whether the pages of the notebooks were with it."""
    alone, count = _BESIDE.subn("", page)
    if not count:
        return page, False
    for _, name in PAGES[1:]:
        alone = alone.replace(f'<a href="#{_address(name)}"', f'<a href="{name}"')
    return alone, True


def _whole(path: Path) -> str:
    """A page of the run, from its first sign to its last."""
    try:
        page = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        page = ""
    if _FOOTER not in page or not page.rstrip().endswith("</html>"):
        raise DataError("{path} is cut off, or no page of this kit. Run its step again.", path=relative(path))
    return page


def _address(name: str) -> str:
    return f"page-{Path(name).stem}"


def _part(name: str, page: str) -> str:
    """The body of a notebook's page under its title; its ids are its own, whatever other pages call theirs."""
    soup = BeautifulSoup(page, "html.parser")
    title, main = soup.h1, soup.main
    if title is None or main is None:
        raise DataError("{name} is no page of this kit. Run its step again.", name=name)
    ids = {str(tag["id"]) for tag in main.find_all(id=True)}
    place = _address(name)

    def own(word: str) -> str:
        return f"{place}-{word}" if word in ids else word

    text = main.decode_contents()
    text = _NAMES.sub(lambda m: f'{m[1]}="{" ".join(map(own, m[2].split()))}"', text)
    text = _ADDRESSES.sub(lambda m: m[1] + own(m[2]), text)
    text = _STYLED.sub(lambda m: re.sub(r"#([\w-]+)", lambda found: f"#{own(found[1])}", m[0]), text)
    return Markup(
        '<section class="notebook-page" id="{}" aria-label="{}">\n<h1>{}</h1>\n{}</section>\n'
    ).format(place, title.get_text(), title.get_text(), Markup(text))

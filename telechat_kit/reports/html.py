"""The look of every page: layout and style without network or script, tables that fit a narrow screen."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from bs4 import BeautifulSoup, Tag
from markupsafe import Markup

import telechat_kit
from telechat_kit.messages import TAGS, closed_up, gettext, language, marked, ngettext

#: Pages of a run, in the order of its steps
PAGES = (
    (marked("Report"), "report.html"),
    (marked("1 Set-up"), "01_setup.html"),
    (marked("2 Quantize"), "02_quantize.html"),
    (marked("3 Precision"), "03_precision.html"),
    (marked("4 Performance"), "04_performance.html"),
    (marked("5 Summary"), "05_report.html"),
)
#: Tables of more columns take the width of the window
WIDE = 9
#: Words of a column of no longer cells are not parted
BRIEF = 12
TEMPLATES = Path(__file__).parent / "templates"

_NUMBER = re.compile(
    r"[(\[<>≤≥≈~]*[-+−±]?\d[\d.,:\s×/()\[\]±…–−+-]*(?:e[-+]?\d+)?\s?[%°µ\w/]{0,12}[)\]]?", re.I
)
_NO_VALUE = {"", "-", "–", "—", "n/a", "nan", "none", "<na>", "null"}


def render_page(template_name: str, **values: Any) -> str:
    """Render a template of the `templates` folder; text is escaped unless it is `markupsafe.Markup`.

    A template that extends `layout.html.j2` needs `title`; `links`, `here` (its own address) are optional.
    """
    return _environment().get_template(template_name).render(page_values(**values))


@cache
def page_css() -> str:
    """The style of every page."""
    return (TEMPLATES / "page.css").read_text(encoding="utf-8")


def page_values(**values: Any) -> dict[str, Any]:
    shared = {"css": Markup(page_css()), "version": telechat_kit.__version__, "links": (), "here": None}
    shared["language"] = TAGS[language()]
    return shared | values


def plain_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> Markup:
    """A table whose texts are escaped, unless they are `Markup`: a link, say."""
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in headings)
    lines = [Markup("").join(Markup("<td>{}</td>").format(text) for text in row) for row in rows]
    body = Markup("").join(Markup("<tr>{}</tr>").format(line) for line in lines)
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def dress_tables(html: str) -> Markup:
    """Give every table a box to scroll in, and its columns of numbers and of long text a class each."""
    if "<table" not in html:
        return Markup(html)
    soup = BeautifulSoup(html, "html.parser")
    for style in soup.find_all("style", scoped=True):  # pandas' own, which turns every heading to the right
        style.decompose()
    # Colors of a pandas Styler are chosen for black on white, so in the dark such a table keeps white paper.
    colored = any("background" in style.get_text() for style in soup.find_all("style"))
    for table in soup.find_all("table"):
        if table.find("td") is None:
            nothing = soup.new_tag("p", attrs={"class": "none"})
            nothing.string = gettext("No rows.")
            table.replace_with(nothing)
            continue
        wide = _mark_columns(table) > WIDE
        classes = " ".join(["table-box", *["white-paper"] * colored, *["wide"] * wide])
        # what scrolls must be reached by the keyboard
        table.wrap(soup.new_tag("div", attrs={"class": classes, "tabindex": "0"}))
    return Markup(str(soup))


def _mark_columns(table: Tag) -> int:
    """Give the cells of each column a class by what stands in it; the number of columns."""
    rows = [row.find_all("td") for row in table.find_all("tr")]
    width = max((len(row) for row in rows), default=0)
    body = [row for row in rows if len(row) == width]
    # Counted from the end, since row labels stand in front and one label can span several rows.
    kinds = {i: _column_kind([row[i].get_text(strip=True) for row in body]) for i in range(-width, 0)}
    for row in table.find_all("tr"):
        cells = row.find_all(["td", "th"])
        if len(cells) >= width and not row.find(colspan=True):
            for i, kind in kinds.items():
                cells[i]["class"] = " ".join([*filter(None, cells[i].get_attribute_list("class")), kind])
    return width


def _column_kind(texts: list[str]) -> str:
    if _is_numeric(texts):
        return "number"
    longest = max(map(len, texts), default=0)
    return "long" if longest > 40 else "short" if longest > BRIEF else "brief"


def _is_numeric(texts: list[str]) -> bool:
    values = [text for text in texts if text.lower() not in _NO_VALUE]
    return bool(values) and all(_NUMBER.fullmatch(text) for text in values)


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    translate(environment)
    environment.finalize = _finished
    return environment


def _finished(value: Any) -> Any:
    """A text as a page shows it; what is HTML already, tables and charts, stays as it is."""
    return closed_up(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def translate(environment: jinja2.Environment) -> None:
    """Let templates call `_`, `gettext` and `ngettext`, in the language in force when they are rendered."""
    environment.add_extension("jinja2.ext.i18n")
    environment.install_gettext_callables(gettext, ngettext, newstyle=False)  # type: ignore[attr-defined]

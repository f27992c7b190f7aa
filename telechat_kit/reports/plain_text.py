"""What a report says, for other programs and for pull requests: its tables as CSV, its summary as Markdown."""

import base64
import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bs4 import BeautifulSoup, Tag

from telechat_kit.files import write_text, writing
from telechat_kit.reports.plain_numbers import plain_numbers
from telechat_kit.widths import padded, visible, width

#: What `table_files` calls its files
_TABLE_FILE = re.compile(r"\d\d+-[\w-]*\.csv")
_BETWEEN_WORDS = re.compile(r"\W+")
#: A spreadsheet takes a cell that begins so for a formula, but for one that is all numbers and their signs
_FORMULA = re.compile(r"\s*[=@+\-＝＠＋－]")
_NUMBERS = re.compile(r"\s*[+-]?\d[\d.,:\s%\[\]–…±×x*eE+-]*")
#: What Markdown would take for an element, a link, a picture, code or the end of a cell
_MARKS = re.compile(r"[\\`|]|<(?=[A-Za-z/!?])|(?<=\])\(|(?<=!)\[")


@dataclass(frozen=True)
class PageTable:
    """A table of a page as it is shown: the heading above it, and its rows, the header first."""

    section: str
    rows: list[list[str]]


def page_tables(page: str) -> list[PageTable]:
    """Every table of a report, in order."""
    found = []
    for section in BeautifulSoup(page, "html.parser").find_all("section"):
        heading = section.find("h2")
        title = heading.get_text(strip=True) if heading else ""
        found += [PageTable(title, _rows(table)) for table in section.find_all("table")]
    return found


def _rows(table: Tag) -> list[list[str]]:
    rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
    return [[" ".join(cell.get_text().split()) for cell in row] for row in rows if row]


def write_tables(files: Iterable[tuple[str, str]], folder: Path) -> list[Path]:
    """What `table_files` gives, in `folder`; what an earlier report left there goes."""
    paths = [write_text(folder / name, text) for name, text in files]
    with writing(folder):
        for left in set(folder.glob("*.csv")) - set(paths):
            if _TABLE_FILE.fullmatch(left.name):  # others' files stay
                left.unlink()
    return paths


def with_data_links(page: str, files: Iterable[tuple[str, str]]) -> str:
    """The report with a link under each table that gives its figures as CSV, one of `files`, from the page itself."""
    soup = BeautifulSoup(page, "html.parser")
    for (name, text), table in zip(files, soup.select("section table"), strict=True):
        address = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
        link = soup.new_tag("a", attrs={"href": address, "download": name})
        link.string = "CSV"
        line = soup.new_tag("p", attrs={"class": "data"})
        line.append(link)
        (table.find_parent(class_="table-box") or table).insert_after(line)
    return str(soup)


def table_files(page: str) -> list[tuple[str, str]]:
    """Name, `NN-heading.csv`, and content of the CSV file of each table of a report."""
    return [
        (
            f"{number:02d}-{re.sub(_BETWEEN_WORDS, '-', table.section.lower()).strip('-')}.csv",
            csv_text(plain_numbers(table.rows)),
        )
        for number, table in enumerate(page_tables(page), start=1)
    ]


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV in which no cell is a formula: folders and models name what they like."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([[_inert(str(cell)) for cell in row] for row in rows])
    return buffer.getvalue()


def _inert(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBERS.fullmatch(cell) else cell


def markdown_summary(page: str, report: str) -> str:
    """Title, verdict, warnings and first two tables of a report; `report` is the address that it links to."""
    soup = BeautifulSoup(page, "html.parser")
    parts = [
        f"## {_text(soup, 'h1')}",
        *(markdown_text(tag.get_text()) for tag in soup.select(".verdict, .banner li")),
    ]
    parts += [markdown_rows(table.rows) for table in page_tables(page)[:2]]
    return "\n\n".join([*parts, f"[{report}]({report})"]) + "\n"


def _text(soup: BeautifulSoup, selector: str) -> str:
    found = soup.select_one(selector)
    return markdown_text(found.get_text()) if found else ""


def markdown_text(text: object) -> str:
    """Any text as one line of Markdown that shows it: no element, link, picture or code, no cell that ends early."""
    return visible(_MARKS.sub(r"\\\g<0>", " ".join(str(text).split())))


def markdown_rows(rows: list[list[str]]) -> str:
    """A table in Markdown, the first row its header; columns are padded so that it also reads in a terminal."""
    cells = [[markdown_text(text) for text in row] for row in rows]
    widths = [max(width(row[i]) for row in cells if i < len(row)) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(padded(*pair) for pair in zip(row, widths, strict=False)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (columns + 2) for columns in widths) + "|", *lines[1:]])

"""All pages of a run in one file: every link inside it works, and the report can be taken out as it was."""

import re
import shutil
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from telechat_kit.errors import DataError
from telechat_kit.reports.html import PAGES
from telechat_kit.reports.single_page import report_alone, write_single_page

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("single") / "all.html"
    return write_single_page(REFERENCE, target).read_text(encoding="utf-8")


def test_the_report_in_it_is_the_report(page: str) -> None:
    assert report_alone(page) == ((REFERENCE / "report.html").read_text(encoding="utf-8"), True)
    report = (REFERENCE / "report.html").read_text(encoding="utf-8")
    assert report_alone(report) == (report, False)


def test_every_address_within_it_is_there_once(page: str) -> None:
    soup = BeautifulSoup(page, "html.parser")
    ids = [str(tag["id"]) for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    wanted = {str(tag["href"])[1:] for tag in soup.find_all(href=re.compile("^#."))}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(ids)
    assert {f"page-{Path(name).stem}" for _, name in PAGES[1:]} <= wanted


def test_no_link_leads_out_of_it_but_to_itself(page: str) -> None:
    soup = BeautifulSoup(page, "html.parser")
    assert {str(tag["href"]) for tag in soup.find_all("a", href=re.compile(r"\.html"))} == {"report.html"}


def test_the_styles_of_tables_still_meet_them(page: str) -> None:
    soup = BeautifulSoup(page, "html.parser")
    ids = {str(tag["id"]) for tag in soup.find_all(id=True)}
    styled = set(
        re.findall(
            r"#((?:page-\w+-)?T_\w+?)\s", " ".join(style.get_text() for style in soup.main.find_all("style"))
        )
    )  # type: ignore[union-attr]
    assert {name for name in styled if "_row" not in name} <= ids


def test_a_run_without_one_of_its_pages_is_told_which(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(REFERENCE, folder)
    (folder / "03_precision.html").unlink()
    with pytest.raises(DataError, match=r"03_precision\.html. Run its step"):
        write_single_page(folder, tmp_path / "all.html")
    assert not (tmp_path / "all.html").exists()
    with pytest.raises(DataError, match="a page of the run itself"):
        write_single_page(REFERENCE, REFERENCE / "report.html")


@pytest.mark.parametrize("name", ["report.html", "03_precision.html"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff\xfe<\0h\0", "cut"])
def test_a_page_that_is_cut_off_or_none_is_refused(name: str, content: bytes | str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for _, page in PAGES:
        shutil.copy(REFERENCE / page, folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-100] if isinstance(content, str) else content)
    with pytest.raises(DataError, match=rf"{name} is cut off, or no page of this kit\. Run its step again"):
        write_single_page(folder, tmp_path / "all.html")
    assert not (tmp_path / "all.html").exists()

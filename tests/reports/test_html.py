"""Executed notebooks as pages: what a reader sees, what stays folded, and that nothing is fetched."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup, Tag
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import telechat_kit
from telechat_kit.errors import DataError
from telechat_kit.reports.html import page_css, render_page
from telechat_kit.reports.notebook_page import export_notebook, terminal_text

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE = "<script>alert(1)</script><img src=http://example.com/a.png>"
FETCHES = re.compile(
    r"""<[^>]*\bsrc=(?!["']?data:)|<link[^>]+href="(?!data:)|\burl\((?!["']?data:)|@import|<script"""
)


def code(
    source: str = "1", *outputs: NotebookNode, tags: tuple[str, ...] = (), **papermill: Any
) -> NotebookNode:
    metadata: dict[str, Any] = {"tags": list(tags)} | ({"papermill": papermill} if papermill else {})
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def shown(kind: str, data: str, **metadata: str) -> NotebookNode:
    return new_output("display_data", {kind: data}, metadata={kind: metadata})


def stream(name: str, text: str) -> NotebookNode:
    return new_output("stream", name=name, text=text)


def error(message: str = "no such level") -> NotebookNode:
    traceback = [
        "\x1b[31m-----\x1b[39m",
        "\x1b[31mValueError\x1b[39m  Traceback",
        "ValueError: no such level",
    ]
    return new_output("error", ename="ValueError", evalue=message, traceback=traceback)


def export(folder: Path, *cells: NotebookNode, **options: Any) -> str:
    notebook = folder / "03_precision.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), notebook)
    return export_notebook(notebook, folder / "03_precision.html", **options).read_text(encoding="utf-8")


def soup_of(folder: Path, *cells: NotebookNode, **options: Any) -> BeautifulSoup:
    return BeautifulSoup(export(folder, *cells, **options), "html.parser")


def one(soup: BeautifulSoup, selector: str) -> Tag:
    found = soup.select(selector)
    assert len(found) == 1, f"{selector}: {len(found)} found"
    return found[0]


def test_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    cells = (
        new_markdown_cell("# Title\n\nText with [a link](https://example.com).\n\n|a|b|\n|-|-|\n|1|2|"),
        code(
            "print(1)", stream("stdout", "1\n"), shown("image/png", PIXEL), shown("image/svg+xml", "<svg/>")
        ),
        code("df", shown("text/html", pd.DataFrame({"a": [1.5]}).to_html())),
        code("bad", error()),
    )
    page = export(tmp_path, *cells, links=[("Report", "report.html")])
    assert not FETCHES.search(page)
    assert "default-src 'none'" in page
    assert 'href="https://example.com"' in page


def test_small_notebook_is_a_small_page(tmp_path: Path) -> None:
    cells = [code(f"value_{i} = verb(path, level={i})", stream("stdout", "done\n")) for i in range(20)]
    assert len(export(tmp_path, new_markdown_cell("# Title"), *cells).encode()) < 60_000


def test_code_is_folded_but_present(tmp_path: Path) -> None:
    soup = soup_of(tmp_path, code("level = 'L5'"), code("chart()", tags=("hide-input",)))
    folds = soup.select("details.code")
    assert [fold.summary.get_text() for fold in folds if fold.summary] == ["Code", "Code"]
    assert not any(fold.has_attr("open") for fold in folds)
    assert "level = 'L5'" in folds[0].get_text()


def test_parameter_cells_are_labeled(tmp_path: Path) -> None:
    soup = soup_of(
        tmp_path, code("a = 1", tags=("parameters",)), code("a = 2", tags=("injected-parameters",))
    )
    assert [summary.get_text() for summary in soup.select("summary")] == [
        "Parameters",
        "Parameters of this run",
    ]


def test_title_is_the_first_heading_and_is_not_repeated(tmp_path: Path) -> None:
    soup = soup_of(tmp_path, new_markdown_cell("# Precision of `W8A8`\n\nText.\n\n```\n# a comment\n```"))
    assert one(soup, "title").get_text() == "Precision of W8A8"
    assert one(soup, "h1").get_text() == "Precision of W8A8"
    assert "# a comment" in one(soup, "main").get_text()


@pytest.mark.parametrize(("title", "headings"), [("Title", ["Title"]), ("Other", ["Other", "Title#"])])
def test_given_title_wins_over_the_heading(tmp_path: Path, title: str, headings: list[str]) -> None:
    soup = soup_of(tmp_path, new_markdown_cell("# Title\n\nText."), title=title)
    assert [heading.get_text() for heading in soup.select("h1")] == headings


def test_title_without_a_heading_is_the_file_name(tmp_path: Path) -> None:
    assert one(soup_of(tmp_path, code()), "h1").get_text() == "03_precision"


def test_links_name_the_page_one_is_on_and_the_footer_names_the_version(tmp_path: Path) -> None:
    soup = soup_of(
        tmp_path, code(), links=[("Precision & more", "03_precision.html"), ("Report", "report.html")]
    )
    assert [link.get_text() for link in soup.select("nav a")] == ["Precision & more", "Report"]
    assert one(soup, "nav a[aria-current]")["href"] == "03_precision.html"
    assert f"telechat-kit {telechat_kit.__version__}" in one(soup, "footer").get_text()


def test_error_shows_its_message_before_the_folded_traceback(tmp_path: Path) -> None:
    soup = soup_of(tmp_path, code("fails()", error()))
    box = one(soup, ".error")
    assert box.get_text().strip().startswith("ValueError: no such level")
    assert "\x1b" not in box.get_text()
    assert not one(soup, ".error details").has_attr("open")
    assert "ValueError: no such level" in one(soup, ".banner").get_text()


def test_banner_replaces_papermills_marks_and_leads_to_the_cell(tmp_path: Path) -> None:
    tag = {"tags": ["papermill-error-cell-tag"]}
    top = new_markdown_cell('<span style="color:red">An Exception was encountered</span>', metadata=tag)
    mark = new_markdown_cell(
        '<span id="papermill-error-cell" style="color:red">Execution</span>', metadata=tag
    )
    soup = soup_of(
        tmp_path,
        top,
        new_markdown_cell("# Title"),
        mark,
        code("fails()", error(), start_time="2025-01-01", status="failed"),
        code("later()", status="pending", start_time=None),
    )
    assert one(soup, "h1").get_text() == "Title"
    assert one(soup, ".banner a")["href"] == "#papermill-error-cell"
    assert one(soup, "#papermill-error-cell").find_parent(class_="cell-failed")
    assert one(soup, ".cell-failed details.code").has_attr("open")
    assert "An Exception was encountered" not in soup.get_text()
    assert soup.select("summary")[-1].get_text() == "Code, not run"


def test_dead_kernel_shows_where_it_stopped_though_papermill_says_completed(tmp_path: Path) -> None:
    done = code("before()", start_time="2025-01-01", status="completed")
    never = code("after()", start_time=None, status="completed")
    soup = soup_of(tmp_path, done, never)
    assert "kernel stopped" in one(soup, ".banner").get_text()
    assert "before()" in one(soup, ".cell-failed").get_text()


def test_callers_reason_is_shown_when_the_notebook_holds_none(tmp_path: Path) -> None:
    soup = soup_of(tmp_path, code(), failure="The step ran longer than 60 s.")
    assert "longer than 60 s" in one(soup, ".banner").get_text()


def test_completed_notebook_has_no_banner(tmp_path: Path) -> None:
    assert not soup_of(tmp_path, code(start_time="2025-01-01", status="completed")).select(".banner")


def test_progress_bar_is_one_folded_line_in_its_last_state(tmp_path: Path) -> None:
    pieces = [stream("stderr", f"\rcalibrate: {i:3}%|#| {i}/100") for i in range(101)]
    soup = soup_of(tmp_path, code("calibrate()", *pieces[:50], stream("stdout", "between\n"), *pieces[50:]))
    log = one(soup, "details.log")
    assert not log.has_attr("open")
    assert [part.strip() for part in log.get_text().strip().splitlines()] == [
        "Progress",
        "calibrate: 100%|#| 100/100",
    ]
    assert one(soup, "pre.text").get_text() == "between"


def test_warnings_stay_readable_beside_a_progress_bar(tmp_path: Path) -> None:
    text = "\rload:   0%|\rload: 100%|#\nUserWarning: slow\n"
    log = one(soup_of(tmp_path, code("1", stream("stderr", text))), "details.log")
    assert log.get_text().split("\n")[1:-1] == ["Messages", "load: 100%|#", "UserWarning: slow"]


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://example.com\x07link\x1b]8;;\x07", "link"),
        ("10 of 20\r20 of 20", "20 of 20"),
        ("one\r\ntwo\r\n", "one\ntwo"),
        ("outer\n\rinner\x1b[A\n\r     \x1b[A\router done", "outer done"),
        ("a\x00b\x08", "ab"),
    ],
)
def test_terminal_text_is_what_a_terminal_shows(written: str, seen: str) -> None:
    assert terminal_text(written) == seen


@pytest.mark.parametrize("kind", ["image/png", "image/svg+xml", "image/jpeg"])
def test_alt_text_of_a_chart_is_kept(tmp_path: Path, kind: str) -> None:
    alt = 'Speed of "W8A8" < float'
    soup = soup_of(tmp_path, code("chart()", shown(kind, PIXEL, alt=alt), shown(kind, PIXEL)))
    assert [image["alt"] for image in soup.select("img")] == [alt, "Chart without a description"]


@pytest.mark.parametrize(
    "output",
    [
        stream("stdout", HOSTILE),
        stream("stderr", HOSTILE),
        shown("text/plain", HOSTILE),
        shown("text/latex", HOSTILE),
        new_output("execute_result", {"text/plain": HOSTILE}),
        error(HOSTILE),
    ],
    ids=["stdout", "stderr", "plain", "latex", "result", "error"],
)
def test_text_of_models_is_never_markup(tmp_path: Path, output: NotebookNode) -> None:
    page = export(tmp_path, code("1", output))
    assert not FETCHES.search(page)
    assert HOSTILE in BeautifulSoup(page, "html.parser").get_text()


def test_half_a_character_does_not_stop_the_export(tmp_path: Path) -> None:
    notebook = tmp_path / "a.ipynb"
    page = nbformat.writes(new_notebook(cells=[code("1", stream("stdout", "half: HERE"))]))
    notebook.write_text(page.replace("HERE", "\\ud83d"), encoding="utf-8")
    assert "half: ?" in export_notebook(notebook, tmp_path / "a.html").read_text(encoding="utf-8")


def test_columns_of_numbers_are_marked_and_tables_scroll_in_their_box(tmp_path: Path) -> None:
    table = pd.DataFrame({"name": ["a", "b"], "seconds": ["1.2 ± 0.1", "—"], "share": ["96.0 %", "3 %"]})
    soup = soup_of(tmp_path, code("df", shown("text/html", table._repr_html_())))
    assert [cell.get_text() for cell in soup.select(".table-box thead .number")] == ["seconds", "share"]
    assert len(soup.select("td.number")) == 4
    assert not soup.select("main style")


def test_number_columns_are_found_beside_row_labels_that_span_rows(tmp_path: Path) -> None:
    index = pd.MultiIndex.from_product([["float", "int8"], ["prefill", "decode"]], names=["model", "phase"])
    table = pd.DataFrame({"seconds": [1, 2, 3, 4], "note": list("abcd")}, index=index)
    soup = soup_of(tmp_path, code("df", shown("text/html", table.to_html())))
    assert [cell.get_text() for cell in soup.select("td.number")] == ["1", "2", "3", "4"]


def test_markdown_tables_scroll_in_their_box(tmp_path: Path) -> None:
    soup = soup_of(tmp_path, new_markdown_cell("|name|count|\n|-|-|\n|a|12|"))
    assert one(soup, ".table-box td.number").get_text() == "12"


def test_widget_is_left_out_and_javascript_gives_way_to_text(tmp_path: Path) -> None:
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "0%| stale"}
    script = {"application/javascript": "alert(1)", "text/plain": "as text"}
    page = export(tmp_path, code("1", new_output("display_data", widget), new_output("display_data", script)))
    assert "stale" not in page
    assert "alert" not in page
    assert "as text" in page


def test_chinese_text_is_kept(tmp_path: Path) -> None:
    page = export(tmp_path, new_markdown_cell("# 精度\n\n模型的回答"), code("1", stream("stdout", "你好\n")))
    assert all(text in page for text in ("<title>精度</title>", "模型的回答", "你好"))


def test_damaged_notebook_is_named(tmp_path: Path) -> None:
    notebook = tmp_path / "cut.ipynb"
    notebook.write_text('{"cells": [', encoding="utf-8")
    with pytest.raises(DataError, match=r"cut\.ipynb"):
        export_notebook(notebook, tmp_path / "cut.html")


def test_layout_escapes_its_values() -> None:
    page = render_page("layout.html.j2", title=HOSTILE, links=[(HOSTILE, "a.html")])
    assert not FETCHES.search(page)
    assert page_css() in page


@pytest.mark.parametrize(
    "cell",
    [
        {"cell_type": "code", "source": 5},
        {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [], "source": 5},
        {
            "cell_type": "code",
            "id": "a",
            "metadata": {},
            "execution_count": None,
            "outputs": 5,
            "source": "x",
        },
    ],
)
def test_a_damaged_notebook_is_one_clear_error(tmp_path: Path, cell: dict[str, Any]) -> None:
    path = tmp_path / "odd.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}))
    with pytest.raises(DataError, match=r"odd\.ipynb cannot be read as a notebook: .*Run its step again"):
        export_notebook(path, tmp_path / "odd.html")

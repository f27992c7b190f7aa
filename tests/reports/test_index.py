"""The index: how far each run came, told truly, and figures side by side only where they compare."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from telechat_kit.comparison.folder_states import folder_state
from telechat_kit.errors import DataError
from telechat_kit.reports.index_page import index_rows, write_index
from telechat_kit.runs.state import SCHEMA, RunState

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def place(
    results: Path, tiny_run: Path, name: str, started: str = "2026-01-01T10:00:00+00:00", **parameters: Any
) -> Path:
    """A complete run, with the state that a command leaves."""
    folder = Path(shutil.copytree(tiny_run, results / name))
    state = RunState(SCHEMA, "params/tiny.yaml", {"level": "L2", **parameters}, {})
    for step in state.steps:
        step.status, step.started, step.key = "completed", started, "0"
    state.save(folder)
    return folder


def edit(folder: Path, name: str, change: Edit) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


def stop(folder: Path, number: int, status: str, message: str = "") -> None:
    """Leave the run as one that ended in that step: what follows is pending and gone."""

    def change(state: dict[str, Any]) -> None:
        state["steps"][number]["status"] = status
        for step in state["steps"][number + 1 :]:
            step |= {"status": "pending", "key": None, "started": None}
        if message:
            state["steps"][number]["failure"] = {
                "notebook": "n",
                "cell": 1,
                "error": "DataError",
                "message": message,
            }

    edit(folder, "run.json", change)
    records = ("setup.json", "quantize.json", "precision.json", "performance.json", "report.html")
    for name in records[number:]:
        (folder / name).unlink()


def states(results: Path) -> dict[str, tuple[str, str]]:
    return {row.folder.name: (row.kind, row.detail) for row in index_rows(results)}


def test_the_state_of_every_folder_is_told_truly(results: Path, tiny_run: Path) -> None:
    place(results, tiny_run, "whole")
    stop(place(results, tiny_run, "failed"), 2, "failed", "lines.jsonl, line 2: no input\nmore")
    first = place(results, tiny_run, "interrupted")
    stop(first, 0, "interrupted")
    (first / "01_setup.failed.html").write_text("<html></html>")
    stop(place(results, tiny_run, "killed"), 3, "running")
    stop(place(results, tiny_run, "begun"), 3, "pending")
    (place(results, tiny_run, "emptied") / "performance.json").unlink()
    by_hand = place(results, tiny_run, "hand-made")
    for name in ("run.json", "performance.json", "report.html"):
        (by_hand / name).unlink()
    (place(results, tiny_run, "damaged") / "precision.json").write_text("{")
    (place(results, tiny_run, "spoiled") / "run.json").write_text("[]")
    (results / "no-run").mkdir()
    assert states(results) == {
        "whole": ("complete", ""),
        "failed": ("failed", "in 03_precision: DataError: lines.jsonl, line 2: no input"),
        "interrupted": ("interrupted", "in 01_setup"),
        "killed": ("at work or killed", "in 04_performance"),
        "begun": ("incomplete", "not run: 04_performance, 05_report"),
        "emptied": ("incomplete", "performance.json missing"),
        "hand-made": ("by hand", "performance.json, report.html missing"),
        "damaged": ("damaged", folder_state(results / "damaged").detail),
        "spoiled": ("damaged", "run.json is no object"),
    }
    assert folder_state(results / "damaged").detail.startswith("precision.json is not valid JSON")
    text = write_index(results).read_text()
    lead = BeautifulSoup(text, "html.parser").select(".verdict")[0].get_text()
    assert lead.startswith("9 runs: ")
    assert "1 complete" in lead
    assert str(results) not in BeautifulSoup(text, "html.parser").find("section").get_text()  # type: ignore[union-attr]


def test_every_row_links_to_what_there_is(results: Path, tiny_run: Path) -> None:
    place(results, tiny_run, "whole")
    first = place(results, tiny_run, "interrupted")
    stop(first, 0, "interrupted")
    (first / "01_setup.failed.html").write_text("<html></html>")
    bare = place(results, tiny_run, "bare")
    stop(bare, 2, "pending")
    (bare / "02_quantize.html").write_text("<html></html>")
    page = write_index(results)
    links = {
        a.get_text(): str(a["href"]) for a in BeautifulSoup(page.read_text(), "html.parser").select("td a")
    }
    assert links == {
        "whole": "whole/report.html",
        "interrupted": "interrupted/01_setup.failed.html",
        "bare": "bare/02_quantize.html",
    }
    assert all((results / link).is_file() for link in links.values())


def cells(results: Path, section: int = 0) -> dict[str, dict[str, str]]:
    """The table of a section: run -> heading -> text."""
    soup = BeautifulSoup(write_index(results).read_text(), "html.parser")
    table = soup.find_all("section")[section]
    names = [cell.get_text() for cell in table.find_all("th")]
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in table.find_all("tr")[1:]]
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def test_the_newest_comes_first_and_what_differs_has_a_column(results: Path, tiny_run: Path) -> None:
    place(results, tiny_run, "old", "2026-01-01T10:00:00+00:00", level="L2", seed=1)
    place(results, tiny_run, "new", "2026-02-03T11:12:13+00:00", level="L0", seed=1)
    rows = cells(results)
    assert list(rows) == ["new", "old"]
    assert [row["started (UTC)"] for row in rows.values()] == ["2026-02-03 11:12", "2026-01-01 10:00"]
    assert [row["level"] for row in rows.values()] == ["L0", "L2"]
    assert "seed" not in rows["new"]
    assert "run_folder" not in rows["new"]


def test_figures_that_do_not_compare_give_place_to_the_reason(results: Path, tiny_run: Path) -> None:
    def other_text(record: dict[str, Any]) -> None:
        record["text_sha256"] = "another"

    def other_cases(record: dict[str, Any]) -> None:
        for case in record["cases"]:
            case["input_tokens"] *= 10

    place(results, tiny_run, "new", "2026-02-02T00:00:00+00:00")
    edit(place(results, tiny_run, "text"), "precision.json", other_text)
    edit(place(results, tiny_run, "cases"), "performance.json", other_cases)
    rows = cells(results)
    assert rows["new"]["mean KL, nats"][0].isdigit()
    assert rows["text"]["mean KL, nats"] == rows["text"]["same token"] == "other text"
    assert rows["text"]["W8A8, tokens/s"] == rows["new"]["W8A8, tokens/s"]
    assert rows["cases"]["W8A8, tokens/s"] == rows["cases"]["speed, times float"] == "no case in common"
    assert rows["cases"]["mean KL, nats"] == rows["new"]["mean KL, nats"]


def test_the_loss_on_the_worst_text_stands_first(results: Path, tiny_run: Path) -> None:
    def costly(record: dict[str, Any]) -> None:
        for kind in record["kinds"]:
            factor = 100 if kind["kind"] == "zh" else 0.01
            found = kind["figures"]["kl_mean"]
            kind["figures"]["kl_mean"] = {
                key: value * (1 if key == "coverage" else factor) for key, value in found.items()
            }

    edit(place(results, tiny_run, "one"), "precision.json", costly)
    headings = list(cells(results)["one"])
    assert headings.index("mean KL, Chinese, nats") < headings.index("perplexity, W8A8 / float")


def test_models_do_not_share_a_table(results: Path, tiny_run: Path) -> None:
    def other_model(record: dict[str, Any]) -> None:
        record["conditions"]["hashes"]["float_weights"] = "f" * 64

    place(results, tiny_run, "one")
    edit(place(results, tiny_run, "two"), "precision.json", other_model)
    assert [list(cells(results, number)) for number in (0, 1)] == [["one"], ["two"]]


def test_the_limits_of_a_complete_run_are_judged(results: Path, tiny_run: Path) -> None:
    place(results, tiny_run, "good", limits=["kl_mean < 1000"])
    place(results, tiny_run, "bad", limits=["top1_agreement > 1.5"])
    stop(place(results, tiny_run, "half", limits=["kl_mean < 1000"]), 3, "pending")
    assert {name: row["may be shipped"] for name, row in cells(results).items()} == {
        "good": "pass",
        "bad": "fail",
        "half": "–",
    }


def test_an_index_over_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no runs"):
        write_index(tmp_path)


def test_a_folder_whose_name_is_not_utf_8_is_a_row_that_says_so(results: Path, tiny_run: Path) -> None:
    """Linux takes any bytes for a name; a page holds UTF-8."""
    folder = place(results, tiny_run, os.fsdecode(b"a\xff"))
    (state,) = index_rows(results)
    assert state.folder == folder
    assert "is not UTF-8. Rename it" in str(state.detail)
    assert "a\\xff" in cells(results)
    assert 'href="a%FF/' in write_index(results).read_text()

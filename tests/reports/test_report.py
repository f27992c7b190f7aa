"""`report.html` and what stands beside it: languages, tables, summary, index, records that do not belong together."""

import base64
import csv
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from timed import timed

from telechat_kit.cli.run_commands import enforce_limits
from telechat_kit.comparison.run_data import read_run_data
from telechat_kit.comparison.verdict import SpeedGain, gain_title, loss_said, said, speed_said
from telechat_kit.comparison.verdict import verdict as judge
from telechat_kit.errors import KitError, ParameterError
from telechat_kit.reports import (
    charts,
    consistency_note,
    plain_text,
    precision_charts,
    precision_tables,
    read_run,
    write_report,
)
from telechat_kit.reports.plain_text import (
    csv_text,
    markdown_summary,
    markdown_text,
    page_tables,
    table_files,
    write_tables,
)
from telechat_kit.reports.tables import styled
from telechat_kit.runs.profile import Profile
from telechat_kit.statistics import Estimate
from telechat_kit.translation import speaking


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, free to be changed."""
    return Path(shutil.copytree(tiny_run, tmp_path / "results" / "tiny"))


def test_the_page_carries_its_record_and_stays_small(tiny_run: Path) -> None:
    page = tiny_run / "report.html"
    assert page.stat().st_size < 2_000_000
    assert read_run_data(page).quantize == read_run_data(tiny_run).quantize


def test_hostile_text_is_shown_and_never_run(tiny_run: Path) -> None:
    """A question of this run is `<script>alert(1)</script>`."""
    soup = BeautifulSoup((tiny_run / "report.html").read_text(), "html.parser")
    assert soup.find("script") is None
    assert "<script>alert(1)</script>" in soup.get_text()
    carried = soup.find("template")
    assert carried is not None
    assert carried.find(True) is None


def test_every_picture_has_words(tiny_run: Path) -> None:
    soup = BeautifulSoup((tiny_run / "report.html").read_text(), "html.parser")
    pictures = soup.select("figure > svg")
    assert len(pictures) >= 4
    assert all(len(str(picture.get("aria-label"))) > 20 for picture in pictures)


def test_paper_shows_every_cell(tiny_run: Path) -> None:
    """What is hidden in print is neither a table nor in one."""
    soup = BeautifulSoup((tiny_run / "report.html").read_text(), "html.parser")
    assert soup.style is not None
    printed = soup.style.get_text().partition("@media print {")[2]
    hidden = re.findall(r"^\s*([^{}]+?) \{ display: none; \}", printed, re.M)
    assert hidden
    gone = [tag for selector in hidden for tag in soup.select(selector)]
    assert gone
    assert [tag for tag in gone if tag.name in ("table", "tr", "th", "td") or tag.find_parent("table")] == []


@pytest.mark.parametrize("factor", [0.5, 1, 2])
def test_the_page_in_chinese_keeps_every_figure(tiny_run: Path, tmp_path: Path, factor: float) -> None:
    """Whether W8A8 was slower than float, as fast or faster: each is said by other words."""
    run = timed(tiny_run, tmp_path / "results" / "tiny", factor)
    english = BeautifulSoup(write_report(run, "en").read_text(), "html.parser")
    soup = BeautifulSoup(write_report(run, "zh").read_text(), "html.parser")
    assert soup.html is not None
    assert soup.html["lang"] == "zh-CN"
    headings = [heading.get_text() for heading in soup.find_all("h2")]
    assert headings[:2] == ["可以发布吗？", "概览"]
    assert "测试条件" in headings
    assert len(soup.find_all("td")) == len(english.find_all("td"))
    numbers = [[c.get_text() for c in page.find_all("td", class_="number")] for page in (english, soup)]
    assert [text.replace("times", "倍") for text in numbers[0]] == numbers[1]
    assert read_run_data(run / "report.html").precision == read_run_data(run).precision
    assert "困惑度" in (run / "report.md").read_text()


def test_a_reader_of_chinese_meets_no_english_sentence(run: Path) -> None:
    """Names, identifiers, units, and what people and models wrote stay as they are."""
    before = {path.name: path.read_bytes() for path in (run / "tables").glob("*.csv")}
    soup = BeautifulSoup(write_report(run, "zh").read_text(), "html.parser")
    for data in soup.select("template, style, code, .answers tbody"):
        data.decompose()
    texts = [" ".join(text.split()) for text in soup.find_all(string=True)]
    texts += [str(tag["aria-label"]) for tag in soup.select("[aria-label]")]
    english = re.compile(r"\b(the|of|is|are|not|times|with|than|and|to)\b")
    assert [
        text for text in texts if english.search(text) and not text.startswith("/")
    ] == []  # nor are paths
    after = {path.name: path.read_bytes() for path in (run / "tables").glob("*.csv")}
    assert after == before  # tables for programs are the same in every language


def test_energy_is_told_in_both_languages_where_it_was_read(run: Path) -> None:
    assert "Energy per token" not in (run / "report.html").read_text()
    path = run / "performance.json"
    record = json.loads(path.read_text())
    record["energy_basis"] = "the counter of 1 CPU package (RAPL)"
    for case in record["cases"]:
        case["joules_per_token"] = {"value": 0.25, "low": 0.2, "high": 0.3, "coverage": 0.75}
    path.write_text(json.dumps(record))
    english, chinese = (
        BeautifulSoup(write_report(run, language).read_text(), "html.parser") for language in ("en", "zh")
    )
    said = "Energy per token is that of the whole device, other programs included: the counter of 1 CPU package (RAPL)."
    assert said in " ".join(english.get_text().split())
    assert "包含其他程序的能耗：1 个 CPU 封装的计数器（RAPL）。" in chinese.get_text()
    for page, column in ((english, "energy per token, J"), (chinese, "每词元能耗，焦耳")):
        assert column in [cell.get_text(strip=True) for cell in page.find_all("th")]


def test_the_engines_are_named_in_both_languages() -> None:
    engines = {"float": "torch modules", "w8a8": "compiled engine"}
    found = SpeedGain(Estimate(11.0, 10.0, 12.0, 0.95), 5, 1, engines)
    assert speed_said(found, "AMD EPYC (2 threads)") == (
        "W8A8 generates 11.0 [10.0, 12.0] times the tokens per second of float on AMD EPYC (2 threads) (5 cases; 1 left "
        "out, its runs vary too much; float in the torch modules, W8A8 in the compiled engine: a part of it is the "
        "engine's, not int8's)."
    )
    with speaking("zh"):
        assert speed_said(found, "AMD EPYC (2 threads)") == (
            "W8A8 每秒生成的词元数为浮点的 11.0 [10.0, 12.0] 倍，设备：AMD EPYC（2 个线程）（5 个用例；另有 1 个因各次运行相差过大未计入；"
            "浮点由torch 模块执行，W8A8 由编译引擎执行：其中一部分来自引擎而非 int8）。"
        )


def test_every_page_says_the_verdict_in_the_same_words(tiny_run: Path) -> None:
    """Two generators of one sentence once said two things of one figure."""
    run = read_run(tiny_run)
    found = judge(run.precision, run.quantize, run.performance)
    soup = BeautifulSoup((tiny_run / "report.html").read_text(), "html.parser")
    sentences = [tag.get_text() for tag in soup.select(".verdict")]
    assert sentences[1:] == said(found)
    assert loss_said(found.worst) in str(precision_tables.verdict(run.precision))
    assert loss_said(found.worst) in precision_charts.texts(run.precision, run.quantize).alt
    assert found.speed is not None
    assert charts.speed(run.performance).alt.startswith(
        gain_title(found.speed, "W8A8 generates {ratio} times the tokens per second of float")
    )


def test_another_language_is_refused(tiny_run: Path) -> None:
    with pytest.raises(ParameterError, match=r'"fr" is unknown\. Use en or zh'):
        write_report(tiny_run, "fr")


def test_each_table_is_a_csv_and_the_summary_links_to_the_report(tiny_run: Path) -> None:
    paths = sorted((tiny_run / "tables").glob("*.csv"))
    assert [path.name[:2] for path in paths] == [f"{i:02d}" for i in range(1, len(paths) + 1)]
    lights, headline = (list(csv.reader(path.read_text().splitlines())) for path in paths[:2])
    assert lights[0][:5] == ["limit", "state", "figure", "figure, low", "figure, high"]
    assert headline[0][0] == "figure" and "W8A8 against float, low" in headline[0]
    places = [i for i, name in enumerate(headline[0]) if name.endswith((", low", ", high"))]
    assert all(not row[i] or float(row[i]) > 0 for row in headline[1:] for i in places)
    summary = (tiny_run / "report.md").read_text()
    assert summary.startswith("## ")
    assert "| perplexity" in summary
    assert summary.endswith("[report.html](report.html)\n")


def test_the_figures_of_each_table_are_a_link_away(tiny_run: Path) -> None:
    soup = BeautifulSoup((tiny_run / "report.html").read_text(), "html.parser")
    links = {str(link["download"]): str(link["href"]) for link in soup.select("a[download]")}
    assert sorted(links) == sorted(path.name for path in (tiny_run / "tables").glob("*.csv"))
    for name, address in links.items():
        start = "data:text/csv;charset=utf-8;base64,"
        assert address.startswith(start)
        assert base64.b64decode(address.removeprefix(start)) == (tiny_run / "tables" / name).read_bytes()


def test_contents_and_words_lead_where_they_say(tiny_run: Path) -> None:
    soup = BeautifulSoup((tiny_run / "report.html").read_text(), "html.parser")
    targets = [str(link["href"]) for link in soup.select(".contents a")]
    assert "#speed" in targets and "#words" in targets
    assert all(len(soup.select(target)) == 1 for target in targets)
    ids = [str(tag["id"]) for tag in soup.select("[id]")]
    assert len(ids) == len(set(ids))


def test_the_page_answers_first_whether_it_may_be_shipped(run: Path) -> None:
    limits = ["kl_mean <= 1000", "top1_agreement >= 1.5", "tokens_per_second >= 1x results/nowhere"]
    for language, words, states in (
        ("en", "May this be shipped? No: 1 of 3 limits are not kept, 1 are open.", ["pass", "fail", "look"]),
        ("zh", "可以发布吗？不可以：3 项限值中有 1 项不满足，1 项未定。", ["通过", "不通过", "查看"]),
    ):
        soup = BeautifulSoup(write_report(run, language, limits).read_text(), "html.parser")
        assert soup.select(".verdict")[0].get_text() == words
        assert [cell.get_text() for cell in soup.select("section td .light span")] == states
        assert words in (run / "report.md").read_text()
    without = BeautifulSoup(write_report(run, "en", []).read_text(), "html.parser")
    assert "Not judged: the profile sets no limits" in without.select(".verdict")[0].get_text()


def test_the_exit_code_of_a_run_is_that_of_its_limits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for limits, code in (
        (["kl_mean <= 1000"], 0),
        (["kl_mean <= 1000", "kl_mean[poems] <= 1"], 3),
        (["kl_mean[poems] <= 1", "top1_agreement >= 1.5"], 5),
        ([], 3),
    ):
        with pytest.raises(SystemExit) as ended:
            enforce_limits(Profile(Path("own.yaml"), {"run_folder": str(run), "limits": limits}))
        assert ended.value.code == code
        said = capsys.readouterr().out
        assert said.startswith("May this be shipped?")
        assert said.count("\n") == 1 + len(limits)


def test_text_that_a_model_wrote_is_no_formula_and_no_markdown(tmp_path: Path) -> None:
    page = (
        '<h1>a [b](c)</h1><p class="verdict">&lt;img&gt;</p><section><h2>T</h2>'
        "<table><tr><th>a|b</th></tr><tr><td>=1+1</td></tr><tr><td>-2.5</td></tr><tr><td>-x</td></tr></table></section>"
    )
    (path,) = write_tables(table_files(page), tmp_path)
    assert path.read_text() == "a|b\n'=1+1\n-2.5\n'-x\n"
    assert page_tables(page)[0].section == "T"
    text = markdown_summary(page, "report.html")
    assert r"a [b]\(c)" in text
    assert r"\<img>" in text
    assert r"a\|b" in text


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("+1+cmd|' /C calc'!A1", "'+1+cmd|' /C calc'!A1"),
        (" =1", "' =1"),
        ("\t@SUM(1)", "'\t@SUM(1)"),
        ("＝1+1", "'＝1+1"),
        ("-0.12 [-0.20, 1e-3] %", "-0.12 [-0.20, 1e-3] %"),
        ("+1.5", "+1.5"),
        ("a=1", "a=1"),
    ],
)
def test_a_cell_of_csv_is_no_formula_and_a_number_stays_one(cell: str, shown: str) -> None:
    assert next(csv.reader([csv_text([[cell]])])) == [shown]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>a</script>", r"\<script>a\</script>"),
        (r"\<img>", r"\\\<img>"),
        ("![x](http://e.example)", r"!\[x]\(http://e.example)"),
        ("a\x1b[31m\r\n`b`|", r"a\u001b[31m \`b\`\|"),
        ("a\u202eb", r"a\u202eb"),
        ("KL < 0.02, 95 % [0.1, 0.2]", "KL < 0.02, 95 % [0.1, 0.2]"),
    ],
)
def test_text_in_markdown_is_shown_as_it_is(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


def test_a_name_in_a_heading_of_a_table_is_no_element() -> None:
    hostile = '<meta http-equiv=refresh content="0;url=http:evil.example">'
    soup = BeautifulSoup(styled(pd.DataFrame([[hostile]], columns=[hostile])).to_html(), "html.parser")
    assert soup.find("meta") is None
    assert [cell.get_text() for cell in soup.find_all(["th", "td"])] == [hostile, hostile]


def test_a_record_with_words_that_nobody_knows_is_shown_with_them(run: Path) -> None:
    path = run / "quantize.json"
    record = json.loads(path.read_text())
    record["recipe"] |= {"calibration_format": "<b>new</b>", "act_method": 9}
    path.write_text(json.dumps(record))
    soup = BeautifulSoup(write_report(run).read_text(), "html.parser")
    assert "<b>new</b>" in soup.get_text()
    assert "static, unknown (9) range" in soup.get_text()


def test_a_report_that_cannot_be_written_keeps_the_old_tables(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = sorted(path.name for path in (run / "tables").iterdir())

    def full(*_: object) -> Path:
        raise KitError("cannot write: no space")

    monkeypatch.setattr(plain_text, "write_text", full)
    with pytest.raises(KitError, match="no space"):
        write_report(run)
    assert sorted(path.name for path in (run / "tables").iterdir()) == old


def test_tables_of_an_earlier_report_go_when_the_new_ones_are_there(tmp_path: Path) -> None:
    (tmp_path / "09-old.csv").write_text("old")
    page = "<section><h2>T</h2><table><tr><td>1</td></tr></table></section>"
    (path,) = write_tables(table_files(page), tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_records_of_one_run_belong_together(tiny_run: Path) -> None:
    assert consistency_note(read_run(tiny_run)).startswith("All records of this folder")


def test_a_record_of_another_profile_is_noticed_in_the_notebook_and_on_the_page(run: Path) -> None:
    path = run / "performance.json"
    record = json.loads(path.read_text())
    record["conditions"]["hashes"]["w8a8_weights"] = "0" * 64
    path.write_text(json.dumps(record))
    note = "performance.json is of other W8A8 weights than quantize.json: run 04_performance again."
    assert consistency_note(read_run(run)) == note
    page = write_report(run).read_text()
    assert 'role="alert"' in page
    assert note in page
    assert note in (run / "report.md").read_text()


def test_files_of_others_stay_among_the_tables(tmp_path: Path) -> None:
    for name in ("mine.csv", "99-of-an-older-report.csv", "2024.csv"):
        (tmp_path / name).touch()
    write_tables([("01-speed.csv", "a")], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-speed.csv", "2024.csv", "mine.csv"]

"""The command line in the language of its user: nothing English is left in Chinese but names, nothing Chinese in English."""

import ast
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import nbformat
import pytest
from bs4 import BeautifulSoup
from catalog import ROOT
from library_words import OF_CLICK, OF_SYSTEM

from telechat_kit.backends import Choice
from telechat_kit.cli import cli, main
from telechat_kit.cli.check_commands import as_table
from telechat_kit.comparison.alignment import Tolerances
from telechat_kit.comparison.side_by_side import compare
from telechat_kit.environment import Check
from telechat_kit.errors import DataError, KitError
from telechat_kit.messages import VARIABLE, Message, closed_up, joined, shown
from telechat_kit.precision import PrecisionRecord
from telechat_kit.records import parse_record
from telechat_kit.reports.comparison_page import write_comparison
from telechat_kit.reports.index_page import write_index
from telechat_kit.reports.notebook_page import export_notebook
from telechat_kit.reports.sweep_page import write_sweep
from telechat_kit.strict_json import parse
from telechat_kit.translation import speaking
from telechat_kit.widths import cut, padded, width, wrapped

REFERENCE = str(ROOT / "results" / "reference")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
#: Commands, paths, options, identifiers, versions and what stands in quotes are the same in every language
NAMES = re.compile(
    r"`[^`\n]*`|'[^'\n]{,60}'|\"[^\"\n]{,60}\"|\$\([^)]*\)|--?[\w-]+|[\w.~:-]*[/\\][\w./~*:{}-]*|\w+(?:[._=:]\w+)+|\w*_\w+|\w*\d\w*"
    r"|^ *(?:telechat-kit|eval|cd|echo|pip) .*$",
    re.MULTILINE,
)
#: Names of several words that stand in sentences and tables
ALLOWED = {"Intel(R) Xeon(R) Processor", "AMD EPYC Processor"}
_ENGLISH = re.compile(r"[A-Za-z][A-Za-z'’-]+(?: +[A-Za-z][A-Za-z'’-]+){2,}")


def english_in(text: str) -> list[str]:
    """Runs of three or more English words that are no names."""
    for name in ALLOWED:
        text = text.replace(name, "")
    return _ENGLISH.findall(NAMES.sub("\0", text))


def call(
    *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], locale: str
) -> tuple[int, str]:
    """Exit code and everything that `telechat-kit` says in a terminal of this locale."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANGUAGE", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", locale)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["telechat-kit", *arguments])
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_the_detector_finds_sentences_and_leaves_names() -> None:
    assert english_in("文件夹 a does not exist 不存在") == ["does not exist"]
    assert (
        english_in("请运行 `telechat-kit run it now`，见 docs/a.md 与 --fail-if\n  telechat-kit run a b c")
        == []
    )
    assert english_in("KL(float || W8A8)，平均，torch、torch_npu 与 CANN 不配套") == []


HELPS = [["--help"], *([name, "--help"] for name in cli.commands if name != "lm-eval")]


@pytest.mark.parametrize("arguments", [*HELPS, ["lm-eval", "--help"]], ids=lambda words: words[0])
def test_help_speaks_the_language_of_the_terminal(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, chinese = call(*arguments, monkeypatch=monkeypatch, capsys=capsys, locale="zh_CN.UTF-8")
    assert (code, english_in(chinese)) == (0, [])
    assert CHINESE.search(chinese)
    prose = [line for line in chinese.splitlines() if CHINESE.search(line) and not line.startswith("    ")]
    assert max(map(width, prose)) <= 92
    _, english = call(*arguments, monkeypatch=monkeypatch, capsys=capsys, locale="C")
    assert english_in(english)
    assert not CHINESE.search(english)


#: What users mistype and miss most, none of which needs anything to be there
WRONG = [
    ["runn"],
    ["run"],
    ["run", "params/tiny.yaml", "--nonsense"],
    ["run", "params/tiny.yaml", "-j", "x"],
    ["run", "params/tiny.yaml", "-j", "0"],
    ["run", "params/tiny.yaml", "-p", "seed", "[1"],
    ["run", "params/tiny.yaml", "-p", "run_folder", "/proc/x"],
    ["html", "nowhere"],
    ["html", "results/reference/precision.json"],
    ["check", "--profile", "nowhere"],
    ["run", "params/none.yaml"],
    ["run", "params/tiny.yaml", "-p", "levle", "L1"],
    ["run", "params/tiny.yaml", "-p", "repeats", "many"],
    ["run", "params/tiny.yaml", "--only", "7"],
    ["run", "params/tiny.yaml", "--timeout", "soon"],
    ["run", "params/tiny.yaml", "-p", "text_path", "nowhere.txt"],
    ["sweep", "params/none.yaml"],
    ["compare", "nowhere", "elsewhere"],
    ["compare", "results/reference", "published:x"],
    ["compare", "results/reference", "--fail-if", "perplexity"],
    ["compare", "results/reference", "--fail-if", "nothing > 1"],
    ["verify", "nowhere"],
    ["sign", "results/reference", "--key", "nowhere"],
    ["open", "nowhere"],
    ["list", "docs"],
    ["index", "docs"],
    ["hash", "nowhere"],
    ["check", "--device", "tpu:0"],
    ["export", "nowhere", "target", "--format", "numpy"],
    ["export", "nowhere", "target", "--format", "float16"],
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_input_is_told_in_the_language_of_the_terminal(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, chinese = call(*arguments, monkeypatch=monkeypatch, capsys=capsys, locale="zh_CN.UTF-8")
    assert (code, english_in(chinese)) == (2, [])
    assert "错误：" in chinese
    code, english = call(*arguments, monkeypatch=monkeypatch, capsys=capsys, locale="C")
    assert code == 2
    assert "Error: " in english
    assert not CHINESE.search(english)


#: Files that a user edits, with what YAML, JSON, pydantic or the system has against them
UNFIT = {
    "list.yaml": "level: [L0\nseed: 1\n",
    "map.yaml": "level: {a: 1\n",
    "tab.yaml": "level: L0\n\tseed: 1\n",
    "colon.yaml": "level: L0: L1\n",
    "alias.yaml": "level: *x\n",
    "quote.yaml": 'level: "abc\n',
    "escape.yaml": 'level: "\\q"\n',
    "sign.yaml": "level: @x\n",
    "date.yaml": "level: 2026-13-45\n",
    "tag.yaml": "level: !!python/object:os.system x\n",
    "width.yaml": "level：L0\nseed: 1\n",
    "indent.yaml": "level: L0\n  seed: 1\n",
    "two.yaml": "level: L0\n---\nseed: 1\n",
    "bytes.yaml": b"le\xffvel: 2\n",
    "type.yaml": "seed: ten\n",
    "key.yaml": "seeds: 1\n",
    "empty.yaml": "",
    "limit.yaml": 'limits: ["kl < 1"]\n',
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_wrong_with_a_profile_is_told_in_chinese(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = UNFIT[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, chinese = call(
        "run", str(tmp_path / name), monkeypatch=monkeypatch, capsys=capsys, locale="zh_CN.UTF-8"
    )
    assert (code, english_in(chinese)) == (2, [])


@pytest.mark.parametrize(
    "content",
    [
        '{"a" 1}',
        '{"a": }',
        '{"a": 1,}',
        "[1 2]",
        "{a: 1}",
        '"abc',
        '"\\q"',
        "[1] 2",
        '"\t"',
        "[NaN]",
        "[" * 9999,
    ],
    ids=lambda content: content[:8],
)
def test_what_is_wrong_with_json_is_told_in_chinese(content: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(content.encode(), "a.json", "Correct the file.")
    with speaking("zh"):
        assert english_in(caught.value.shown().replace("Correct the file.", "")) == []


@pytest.mark.parametrize(
    "change", [("seed", "x"), ("seed", None), ("blocks", 3), ("conditions", {}), ("text_source", 1)]
)
def test_what_is_wrong_with_a_record_is_told_in_chinese(change: tuple[str, object]) -> None:
    values = json.loads((ROOT / "results" / "reference" / "precision.json").read_bytes())
    with pytest.raises(DataError) as caught:
        parse_record(values | dict([change]), PrecisionRecord, values["schema"], "precision.json")
    with speaking("zh"):
        assert english_in(caught.value.shown()) == []


def test_what_the_system_says_is_in_the_catalog() -> None:
    assert set(OF_SYSTEM) <= {os.strerror(number) for number in errno.errorcode}
    error = KitError(
        "cannot write {path}: {strerror}. Free space or choose another folder.",
        path="x",
        strerror=os.strerror(errno.EACCES),
    )
    with speaking("zh"):
        assert error.shown() == "无法写入 x：没有权限。请腾出空间，或选择另一文件夹。"
        assert shown("[Errno 2] No such file or directory: 'x'") == "文件或文件夹不存在（错误码 2）：'x'"
        assert shown("No such file or directory (os error 2)") == "文件或文件夹不存在（错误码 2）"


def test_a_form_may_hold_braces() -> None:
    with speaking("zh"):
        assert (
            shown("expected ',' or '}', but got '<stream end>'")
            == "此处应为 ',' 或 '}'，实际为 '<stream end>'"
        )


WORKING = [
    ["run", "params/tiny.yaml", "--dry-run"],
    ["list"],
    ["params"],
    ["check", "--device", "npu:0", "--profile", "params/telechat-7b-310p.yaml"],
    ["check", "--device", "cpu"],
    ["check", "--device", "auto"],
    ["compare", "results/reference", "results/reference", "--all-conditions"],
    ["verify", "results/reference", "--hashes-only"],
    ["verify", "results/reference/report.html", "--hashes-only"],
]


@pytest.mark.parametrize("arguments", WORKING, ids=" ".join)
def test_commands_speak_the_language_of_the_terminal(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, chinese = call(*arguments, monkeypatch=monkeypatch, capsys=capsys, locale="zh_CN.UTF-8")
    assert code in (0, 1, 3)
    assert english_in(chinese) == []
    assert CHINESE.search(chinese)
    again, english = call(*arguments, monkeypatch=monkeypatch, capsys=capsys, locale="C.UTF-8")
    assert again == code
    assert not CHINESE.search(english)


def test_the_option_goes_before_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"monkeypatch": monkeypatch, "capsys": capsys}
    assert "错误：" in call("--language", "zh", "hash", "nowhere", locale="C", **told)[1]
    assert "用法" in call("--language=zh", "--help", locale="C", **told)[1]
    assert "Usage" in call("--language=en", "--help", locale="zh_CN.UTF-8", **told)[1]
    code, said = call("--language", "fr", "list", locale="C", **told)
    assert code == 2
    assert "'fr' is not one of 'en', 'zh'" in said


def test_an_error_is_english_in_records_and_chinese_for_people() -> None:
    error = DataError("{path} does not exist. Give a run folder or a report.html.", path="a b")
    nested = KitError("{place}: {error}", place="x.yaml", error=error)
    assert str(nested) == "x.yaml: a b does not exist. Give a run folder or a report.html."
    with speaking("zh"):
        assert error.shown() == "a b 不存在。请给出运行文件夹或 report.html。"
        assert nested.shown() == "x.yaml：a b 不存在。请给出运行文件夹或 report.html。"
        assert str(error) == "a b does not exist. Give a run folder or a report.html."
    assert DataError('Give {"a": 1}').shown() == 'Give {"a": 1}'


def test_a_text_of_a_record_is_known_again_by_its_form() -> None:
    with speaking("zh"):
        assert shown("reads a, b, which may change") == "读取的 a, b 可能改变"
        assert shown("results/x does not exist. Give a run folder or a report.html.").startswith(
            "results/x 不存在"
        )
        assert shown("no message of the kit") == "no message of the kit"
        assert shown("") == ""
        assert shown(joined("; ", [Message("not run yet"), "a/b"])) == "尚未运行; a/b"
    assert shown("not run yet") == "not run yet"


def test_chinese_has_no_spaces_between_its_signs() -> None:
    with speaking("zh"):
        assert closed_up("在 文档（2 个词元） 上。 在 x 上") == "在文档（2 个词元）上。在 x 上"
    assert closed_up("a （b） c") == "a （b） c"


def test_a_device_with_its_reasons_is_known_again_from_a_record() -> None:
    choice = Choice("cpu", ("torch_npu is not installed", "torch sees none"))
    said = choice.said("cpu: AMD EPYC (2 threads)")
    with speaking("zh"):
        told = "cpu: AMD EPYC（2 个线程）（npu 不可用：未安装 torch_npu；cuda 不可用：torch 没有找到设备）"
        assert [shown(said), shown(str.__str__(said))] == [told, told]


def test_what_is_wide_takes_two_columns() -> None:
    assert [width(text) for text in ("ab", "困惑度", "a困")] == [2, 6, 3]
    assert padded("困", 4) == "困  "
    assert [cut("困惑度", 6), cut("困惑度", 5)] == ["困惑度", "困惑…"]
    lines = wrapped("请用 npu-smi info 查看它是否正常、空闲，以及是否安装了该芯片的 kernels 包。", 20)
    assert all(width(line) <= 20 for line in lines)
    assert not any(line[0] in "，。、）" for line in lines)
    assert "".join(lines).replace(" ", "").startswith("请用npu-smiinfo查看")
    assert wrapped("one two three", 8) == ["one two", "three"]


def test_columns_of_a_table_stand_below_one_another() -> None:
    row = Check(
        "free memory",
        "1.0 GB",
        "2.0 GB",
        "warning",
        "close other programs, or use a machine with more memory",
    )
    with speaking("zh"):
        head, rule, line, *_ = as_table([row], columns=80).splitlines()
    places = [width(head[: head.index(word)]) for word in ("现有", "要求", "结论")]
    assert places == [width(line[: line.index(word)]) for word in ("1.0", "2.0", "警告")]
    assert width(rule) <= 80


ERRORS = {
    "KitError",
    "CheckpointError",
    "ParameterError",
    "DataError",
    "DeviceError",
    "LockedError",
    "Message",
}
#: Errors that hand on a text which was made elsewhere
HANDED_ON = 13


def _glued() -> Iterator[str]:
    """Messages that no catalog can hold: made of pieces before the error sees them."""
    for path in sorted((ROOT / "telechat_kit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                form = node.args[0] if node.args else None
                if isinstance(form, ast.JoinedStr | ast.BinOp):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}"
                elif form is not None and not isinstance(form, ast.Constant):
                    yield "handed on"


def test_every_message_can_be_translated() -> None:
    found = list(_glued())
    assert [place for place in found if place != "handed on"] == []
    assert found.count("handed on") <= HANDED_ON, "give a new error a form of its own"


def test_what_click_says_is_in_the_catalog() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(click.__file__).parent.glob("*.py"))
    texts = [text for entry in OF_CLICK for text in ([entry] if isinstance(entry, str) else entry)]
    assert [text for text in texts if text.split("{")[0].replace("\n\t", "\\n\\t") not in sources] == []


def _words_of(page: Path) -> str:
    """What a reader of a page meets: its texts and the charts' titles, without code and carried records."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    for tag in soup.find_all(["style", "code", "template"]):
        tag.decompose()
    return soup.get_text("\n")


def test_the_page_of_a_failed_step_says_why_in_chinese(tmp_path: Path) -> None:
    message = 'device "cuda:0" asked for, but torch sees 0 cuda device(s) here. Use device: auto, or install driver and torch build so that nvidia-smi and torch see the device.'
    cell = nbformat.v4.new_code_cell("open_it()", id="one")
    cell.outputs = [nbformat.v4.new_output("error", ename="DeviceError", evalue=message, traceback=[])]
    notebook = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    with speaking("zh"):
        page = export_notebook(
            notebook, tmp_path / "a.html", title="环境", failure=f"DeviceError: {shown(message)}"
        )
    assert english_in(_words_of(page)) == []
    assert _words_of(page).count("指定了设备") == 2
    assert english_in(_words_of(export_notebook(notebook, page, title="Set-up")))


def _write_pages(results: Path, runs: dict[str, Path]) -> dict[str, str]:
    found = compare([str(path) for path in runs.values()], Tolerances())
    pages = [write_index(results), write_sweep(runs, results), write_comparison(found, results / "c.html")]
    return {page.name: _words_of(page) for page in pages}


def test_pages_of_several_runs_speak_the_language_in_force(tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("one", "two")}
    for path in runs.values():
        shutil.copytree(REFERENCE, path)
    with speaking("zh"):
        chinese = _write_pages(tmp_path, runs)
    assert {name: english_in(text) for name, text in chinese.items()} == {name: [] for name in chinese}
    assert all(CHINESE.search(text) for text in chinese.values())
    assert "kl_mean" in (tmp_path / "sweep.csv").read_text(encoding="utf-8").splitlines()[0]
    english = _write_pages(tmp_path, runs)
    assert all(english_in(text) and not CHINESE.search(text) for text in english.values())

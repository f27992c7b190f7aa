"""The README is true: its code runs, its commands, files and parameters exist, both languages say the same."""

import re
from pathlib import Path

import pytest

from telechat_kit.cli import cli
from telechat_kit.runs.profile import all_parameters

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
#: Written from the docstrings, and a table of English messages: there is no Chinese form of them
ENGLISH_ONLY = {"api.md", "odd-inputs.md"}
PAGES = [
    ROOT / "README.md",
    *sorted(
        path
        for path in (ROOT / "docs").glob("*.md")
        if not path.name.endswith(".zh-CN.md") and path.name not in ENGLISH_ONLY
    ),
]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.M | re.S)


def test_python_example_runs(tiny_w8a8_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("README.md", "python")
    assert '"models/smollm2-135m-telechat-w8a8"' in example
    exec(example.replace("models/smollm2-135m-telechat-w8a8", str(tiny_w8a8_folder)), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", READMES)
def test_commands_and_files_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= set(targets)
    assert set(re.findall(r"bin/telechat-kit (\w+)", text)) <= set(cli.commands)
    for path in re.findall(r"\b((?:params|notebooks|environment|docs)/[\w./-]+\.\w+)", text):
        assert (ROOT / path).is_file() or path == "environment/my-constraints.txt", path
    for _, target in re.findall(r"\[([^\]]*)\]\(([^)#:]+)\)", text):
        assert (ROOT / target).is_file(), target
    known = all_parameters()
    assert set(re.findall(r"-p (\w+)", text)) | set(re.findall(r"--(\w+_path)", text)) <= set(known)


def chinese_of(page: Path) -> Path:
    return page.with_suffix(".zh-CN.md")


def shape(text: str) -> dict[str, object]:
    """What a page has besides its words, which is the same in every language.

    Of a line of code counts what stands before its comment, of a row of a table the number of cells and the figures.
    """
    indented = re.findall(r"^ {4}(?=\S).*", text, re.M)
    code = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```|^ {4}(?=\S).*?$", "", text, flags=re.M | re.S)
    lines = [line.strip() for block in [*code, *indented] for line in [*block.splitlines(), ""]]
    return {
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", prose, re.M)],
        "tables": [
            (row.count("|"), sorted(re.findall(r"\d(?:[\d.,]*\d)?", row)))
            for row in re.findall(r"^\|.*", prose, re.M)
        ],
        "code": [re.split(r"\s*# |  +|[\u4e00-\u9fff]", line)[0] for line in lines],
        "names": set(re.findall(r"`([^`\n]+)`", prose)),
        "links": sorted(target.replace(".zh-CN", "") for target in re.findall(r"\]\(([^)#]*)[^)]*\)", prose)),
        "items": len(re.findall(r"^- ", prose, re.M)),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_both_languages_hold_the_same(page: Path) -> None:
    english, chinese = (path.read_text(encoding="utf-8") for path in (page, chinese_of(page)))
    assert shape(english) == shape(chinese)


def test_every_chinese_page_has_its_english() -> None:
    assert {chinese_of(page) for page in PAGES} == {
        ROOT / "README.zh-CN.md",
        *(ROOT / "docs").glob("*.zh-CN.md"),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_chinese_pages_lead_to_chinese_pages(page: Path) -> None:
    links = re.findall(r"\[([^\]]+)\]\(([^)#:]+\.md)", chinese_of(page).read_text(encoding="utf-8"))
    assert ("English", page.name) in links
    astray = [
        target
        for told, target in links
        if told != "English"
        and not target.endswith(".zh-CN.md")
        and chinese_of(page.parent / target).exists()
    ]
    assert astray == []


@pytest.mark.parametrize(
    ("lost", "part"),
    [
        (r"^\|.*\n", "tables"),
        (r"(?<=\| )0\.\d+(?= \|)", "tables"),
        (r"^## .*\n", "headings"),
        (r"^make .*\n", "code"),
        (r"-p level L0", "code"),
        (r"`~/\.cache/telechat-kit`", "names"),
        (r"\]\(docs/weights\.zh-CN\.md\)", "links"),
        (r"^- .*\n", "items"),
    ],
)
def test_what_a_page_lost_is_found(lost: str, part: str) -> None:
    text = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    less, removed = re.subn(lost, "", text, count=1, flags=re.M)
    assert removed
    assert shape(less)[part] != shape(text)[part]

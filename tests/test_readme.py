"""The README is true: its code runs, its commands, files and parameters exist, both languages say the same."""

import re
from pathlib import Path

import pytest

from telechat_kit.cli import cli
from telechat_kit.runs.profile import all_parameters

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")


#: Pages that are there in both languages
PAIRS = [
    (path.with_name(path.name.replace(".zh-CN", "")), path)
    for path in sorted((ROOT / "docs").glob("*.zh-CN.md"))
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
    assert set(re.findall(r"\bmake ([a-z]+)", text)) - {"PYTHON"} <= set(targets)
    assert set(re.findall(r"bin/telechat-kit (\w+)", text)) <= set(cli.commands)
    for path in re.findall(r"\b((?:params|notebooks|environment|docs)/[\w./-]+\.\w+)", text):
        assert (ROOT / path).is_file() or path == "environment/my-constraints.txt", path
    for _, target in re.findall(r"\[([^\]]*)\]\(([^)#:]+)\)", text):
        assert (ROOT / target).is_file(), target
    known = all_parameters()
    assert set(re.findall(r"-p (\w+)", text)) | set(re.findall(r"--(\w+_path)", text)) <= set(known)


def test_both_languages_hold_the_same_commands_and_tables() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)

    def shape(text: str) -> tuple[int, ...]:
        return tuple(len(re.findall(pattern, text, re.M)) for pattern in (r"^## ", r"^\|", r"^```", r"^!\["))

    assert shape(english) == shape(chinese)
    commands = re.compile(r"^(?:make|\.venv/bin/\S+) [^#\n]*", re.M)
    assert [c.strip() for c in commands.findall(english)] == [c.strip() for c in commands.findall(chinese)]


def shape(text: str) -> dict[str, object]:
    """What a page has besides its words: headings, table rows with the figures in them, and the commands of its code."""
    code = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    lines = [
        re.split(r" +#(?= )|[\u4e00-\u9fff]", line)[0].rstrip()
        for block in code
        for line in block.splitlines()
    ]
    return {
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)],
        "tables": len(re.findall(r"^\|", text, re.M)),
        "code": [
            line for line in lines if re.match(r"(?:\.venv/bin/)?(?:telechat-kit|make|pip) |  - ", line)
        ],
    }


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda path: path.name)
def test_pages_in_both_languages_hold_the_same(english: Path, chinese: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (english, chinese)]
    assert shape(texts[0]) == shape(texts[1])


def test_a_page_that_lost_a_row_or_a_command_is_found() -> None:
    text = PAIRS[0][1].read_text(encoding="utf-8")
    assert shape(text) != shape(text.replace("\n|", "\n", 1))
    command = shape(text)["code"][0]
    assert shape(text) != shape(text.replace(command, "", 1))

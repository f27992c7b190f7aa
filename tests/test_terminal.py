"""What stands between the command line and the system: streams that are closed or full, names that command a terminal."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from telechat_kit.cli import main
from telechat_kit.cli.terminal import output_file, say_document
from telechat_kit.errors import DataError
from telechat_kit.widths import visible, width

ROOT = Path(__file__).resolve().parents[1]
TITLE = "\x1b]0;other\x07"


def shell(command: str, cwd: Path = ROOT, **variables: str) -> "subprocess.CompletedProcess[str]":
    """`command` in a shell that knows the kit as $KIT."""
    known = {"KIT": f"{sys.executable} -m telechat_kit", "PYTHONPATH": str(ROOT)}
    environment = os.environ | known | variables
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("$KIT --help > /dev/full", 2, "cannot be written: No space left on device. Free space"),
        ("PYTHONOPTIMIZE=2 $KIT list 2> /dev/full", 2, ""),
        ("PYTHONOPTIMIZE=2 $KIT list 2>&- <&-", 2, ""),
        ("PYTHONOPTIMIZE=2 $KIT list", 2, "PYTHONOPTIMIZE=2"),
        ("ulimit -v 300000; $KIT list", 2, "a package cannot be loaded: "),
        ("mkdir gone; cd gone; rmdir ../gone; $KIT init x", 2, "the current folder is gone. Change to one"),
    ],
)
def test_what_the_system_denies_is_told(command: str, code: int, told: str, tmp_path: Path) -> None:
    ended = shell(command, tmp_path)
    assert "Traceback" not in ended.stderr
    assert (ended.returncode, told in ended.stderr) == (code, True), ended.stderr


def test_a_closed_output_gets_nothing(tmp_path: Path) -> None:
    """And no file that is opened later takes its number."""
    (tmp_path / "results" / "mine").mkdir(parents=True)
    (tmp_path / "results" / "mine" / "run.json").write_text("[]")
    ended = shell(f"$KIT list {tmp_path} >&-")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("words", ["list {folder}", "report {run}", "run {run}.yaml"])
def test_no_name_commands_a_terminal(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / f"a{TITLE}\u202eb"
    run.mkdir()
    (run / "run.json").write_text("[]")
    arguments = [word.format(folder=tmp_path, run=run) for word in words.split()]
    monkeypatch.setattr(sys, "argv", ["telechat-kit", *arguments])
    with contextlib.suppress(SystemExit):
        main()
    told = "".join(capsys.readouterr())
    assert "\\u001b]0;other\\u0007\\u202eb" in told
    assert not set(told) & set(TITLE[0] + TITLE[-1] + "\u202e")


def test_commands_to_a_terminal_stand_there_by_their_codes() -> None:
    assert visible(f"a{TITLE}\r\u202eb\x9b\tc\n中😀") == (
        "a\\u001b]0;other\\u0007\\u000d\\u202eb\\u009b\tc\n中😀"
    )
    error = DataError("{path} is empty.", path=f"a{TITLE}")
    assert error.shown() == "a\\u001b]0;other\\u0007 is empty."
    assert str(error) == f"a{TITLE} is empty."


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("compare {run} {run} --page {weights}", "model.safetensors"),
        ("compare {run} {run} --page {run}/03_precision.html", "03_precision.html"),
        ("compare {run} {run} --csv {run}/run.json", "run.json"),
        ("report {run} --single {run}/run.json", "run.json"),
        ("pack {run} -o {run}/run.json", "run.json"),
    ],
)
def test_no_output_takes_the_place_of_another_kind_of_file(
    words: str, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, weights = tmp_path / "run", tmp_path / "model.safetensors"
    run.mkdir()
    for path in (weights, run / "run.json", run / "03_precision.html"):
        path.write_text("{}")
    arguments = [word.format(run=run, weights=weights) for word in words.split()]
    monkeypatch.setattr(sys, "argv", ["telechat-kit", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"{lost} is there, and would be lost. Name another file" in capsys.readouterr().err
    assert {path.read_text() for path in (weights, *run.iterdir())} == {"{}"}


def test_an_output_of_its_own_kind_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "a.HTML").touch()
    assert output_file(tmp_path / "a.HTML", ".html") == tmp_path / "a.HTML"
    assert output_file(tmp_path / "new", ".html") == tmp_path / "new"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_tables_fit_a_terminal_and_stay_markdown_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (
        "| figure | one | other |\n|---|---|---|\n"
        + f"| {'KL ' * 20}a \\|\\| b | {'0.1 ' * 9}| {'0.2 ' * 9}|"
    )
    document = f"## 比较 / demo\n\n{table}\n\n- " + "not checked " * 12
    shown = {}
    for stream in (Screen(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("COLUMNS", "80")
        say_document(document)
        shown[stream.isatty()] = click.unstyle(stream.getvalue())
    assert shown[False] == document + "\n"
    assert max(width(line) for line in shown[True].splitlines()) <= 80
    assert "a || b" in shown[True]
    assert "|---|" not in shown[True]

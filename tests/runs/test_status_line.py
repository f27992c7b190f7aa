"""What a run says: one line a cell in a log, one line overwritten in a terminal, long work in fifths."""

import io
import time

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from telechat_kit.progress import track
from telechat_kit.runs.status_line import StepProgress


class Terminal(io.StringIO):
    """A text stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


def in_log(progress: StepProgress) -> list[str]:
    assert isinstance(progress.stream, io.StringIO)
    return progress.stream.getvalue().splitlines()


@pytest.fixture
def log() -> StepProgress:
    return StepProgress("[2/5] 02_quantize", 9, io.StringIO())


@pytest.fixture
def terminal() -> StepProgress:
    return StepProgress("[2/5] 02_quantize", 9, Terminal())


def test_a_log_gets_a_line_for_each_code_cell_under_its_heading(log: StepProgress) -> None:
    log.cell_started(new_markdown_cell("# Quantize\n\nsome text"), 0)
    log.cell_started(new_code_cell("1"), 1)
    log.cell_started(new_markdown_cell("text\n\n## The second part\nmore"), 2)
    log.cell_started(new_code_cell("2"), 3)
    log.cell_started(new_markdown_cell("no heading"), 4)
    log.cell_started(new_code_cell("3"), 5)
    log.finish("completed")
    lines = in_log(log)
    assert [line.split("  ")[1] for line in lines] == ["cell 2/9", "cell 4/9", "cell 6/9", "cell 6/9"]
    assert [line.split(" s  ")[1] for line in lines[:3]] == ["Quantize", "The second part", "The second part"]
    assert all(line.startswith("[2/5] 02_quantize  cell ") for line in lines)
    assert "completed in " in lines[-1]


def test_long_work_is_told_in_fifths(log: StepProgress) -> None:
    log.cell_started(new_code_cell("work()"), 0)
    for percent in range(101):
        log.write(f"\rcalibration: {percent:3d}%|━━━·    | {percent}/100 [00:01<00:02]")
    assert [line.split(" s  ")[1] for line in in_log(log)[1:]] == [
        *(f"calibration {percent} %, about 00:02 left" for percent in (0, 20, 40, 60, 80)),
        "calibration 100 %",
    ]


def test_a_second_bar_in_a_cell_starts_anew(log: StepProgress) -> None:
    for name in ("first", "second"):
        log.write(f"{name}:  50%|━━  |")
    assert [line.split(" s  ")[1] for line in in_log(log)] == ["first 50 %", "second 50 %"]


def test_what_is_no_progress_bar_is_not_shown(log: StepProgress) -> None:
    assert log.write("UserWarning: 50% of the values are large\n") == 41
    assert in_log(log) == []


def test_a_terminal_has_one_line_that_is_written_over(terminal: StepProgress) -> None:
    terminal.cell_started(new_code_cell("1"), 0)
    for percent in (1, 2, 3):
        terminal.write(f"\rcalibration: {percent:3d}%|    |")
    terminal.finish("completed")
    assert isinstance(terminal.stream, io.StringIO)
    text = terminal.stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert [part.split(" s  ")[1] for part in text.split("\r\x1b[2K")[2:5]] == [
        f"calibration {percent} %" for percent in (1, 2, 3)
    ]


def test_the_bars_of_the_kit_are_understood(log: StepProgress, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(4), "answers of both models")) == [0, 1, 2, 3]
    log.write(capsys.readouterr().err)
    assert [line.split(" s  ")[1] for line in in_log(log)] == ["answers of both models 100 %"]


def test_in_a_terminal_the_clock_ticks_and_no_line_breaks(
    terminal: StepProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(StepProgress, "TICKS", (0.02, 60.0))
    terminal.cell_started(new_markdown_cell("# A heading that is longer than the terminal is wide"), 0)
    terminal.cell_started(new_code_cell("1"), 1)
    time.sleep(0.3)
    terminal.finish("completed")
    assert isinstance(terminal.stream, io.StringIO)
    lines = terminal.stream.getvalue().split("\r\x1b[2K")[1:]
    assert len(lines) > 3
    assert all(len(line.rstrip("\n")) < 40 for line in lines)


def test_a_log_gets_a_sign_of_life_in_long_silence(
    log: StepProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepProgress, "TICKS", (1.0, 0.02))
    log.start -= 100
    log.cell_started(new_markdown_cell("# Divergence"), 0)
    log.cell_started(new_code_cell("1"), 1)
    for _ in range(40):  # the line is the same within a second, and then not written again
        log.start -= 1
        time.sleep(0.03)
    log.finish("completed")
    lines = in_log(log)
    assert len(lines) > 3
    assert all(line.endswith("Divergence") for line in lines[:-1])
    ended = len(lines)
    time.sleep(0.1)
    assert len(in_log(log)) == ended

"""Progress: text on stderr for logs and headless runs, one bar a cell where a person works in JupyterLab."""

from pathlib import Path
from typing import Any

import IPython.display  # noqa: F401  (what the fixture stands in for)
import pytest
from transformers.utils import logging

from telechat_kit import load_model, progress
from telechat_kit.progress import track


class Shell:
    """What `get_ipython` gives in a cell."""

    execution_count = 3


class Screen:
    """Outputs as JupyterLab would show them: displays, each with its newest content."""

    def __init__(self) -> None:
        self.outputs: list[list[str]] = []

    def display(self, html: Any, display_id: bool = False) -> "Handle":
        assert display_id
        self.outputs.append([html.data])
        return Handle(self.outputs[-1])


class Handle:
    def __init__(self, output: list[str]) -> None:
        self.output = output

    def update(self, html: Any) -> None:
        self.output.append(html.data)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    found = Screen()
    monkeypatch.setenv("JPY_SESSION_NAME", "/work/02_quantize.ipynb")
    monkeypatch.setattr("IPython.get_ipython", Shell)
    monkeypatch.setattr("IPython.display.display", found.display)
    monkeypatch.setattr(progress._CellBar, "_shown", (-1, None))
    return found


def test_a_cell_has_one_bar_for_all_its_work(screen: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(4), "first <part>")) == [0, 1, 2, 3]
    assert list(track(range(2), "second", total=10, done=8)) == [0, 1]
    assert len(screen.outputs) == 1
    assert 'max="4" value="4"' in "".join(screen.outputs[0])
    assert "first &lt;part&gt;: 100 %" in "".join(screen.outputs[0])
    assert "second: 100 %" in screen.outputs[0][-1]
    assert capsys.readouterr().err == ""


def test_the_next_cell_has_a_bar_of_its_own(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    list(track(range(2), "one"))
    monkeypatch.setattr(Shell, "execution_count", 4)
    list(track(range(2), "two"))
    assert [output[-1].split(": ")[0].split("> ")[1] for output in screen.outputs] == ["one", "two"]


def test_work_of_unknown_length_is_counted(screen: Screen) -> None:
    list(track(iter(range(3)), "lines"))
    assert "lines: 3," in screen.outputs[0][-1]


def test_without_a_session_it_is_text_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    list(track(range(2), "blocks"))
    assert "blocks: 100%" in capsys.readouterr().err


def test_bars_of_transformers_are_the_cell_s_too(
    screen: Screen, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_model(tiny_folder)
    assert "Loading weights: 100 %" in screen.outputs[-1][-1]
    assert capsys.readouterr().err == ""
    list(logging.tqdm(range(3), desc="by others"))
    assert "by others" in capsys.readouterr().err


def stopped() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_in_jupyterlab_says_what_is_kept(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = progress.resumable("Ten of twelve are kept.")(stopped)
    with pytest.raises(progress.Interrupted, match=r"^Interrupted\. Ten of twelve are kept\.$") as found:
        work()
    assert found.value._render_traceback_() == [str(found.value)]
    monkeypatch.delenv("JPY_SESSION_NAME")  # a headless run ends as others do
    with pytest.raises(KeyboardInterrupt) as plain:
        work()
    assert not isinstance(plain.value, progress.Interrupted)

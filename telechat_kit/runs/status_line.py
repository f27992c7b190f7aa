"""What a run says while it works: which notebook, which cell, what share of the cell is done."""

import contextlib
import re
import shutil
import sys
import threading
import time
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from telechat_kit.messages import gettext as _
from telechat_kit.widths import cut

_MESSAGE = re.compile(r"(Error|failed|interrupted|\w*Error:)")
_BAR = re.compile(
    r"(?P<what>[^\r\n:]*): +(?P<share>\d+)%\|(?:[^\r\n|]*\|[^\r\n|\[]*\[[\d:]+<(?P<left>[\d:]+))?"
)
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


class StepProgress:
    """Follows one notebook: cells as they start, progress bars from its stderr.

    In a terminal one line is written over, and its clock ticks; in a log each cell gets a line, and so do start and each
    fifth of long work, and a minute in which nothing else was said.
    """

    #: Seconds between two lines that say nothing new: in a terminal, in a log
    TICKS = (1.0, 60.0)

    def __init__(self, label: str, cells: int, stream: TextIO | None = None) -> None:
        self.label, self.cells = label, cells
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.start = time.monotonic()
        self.cell, self.heading = 0, ""
        self._last, self._what = "", ""
        self._fifth: tuple[str, int] = ("", 0)
        self._lock, self._ended, self._said = threading.Lock(), threading.Event(), self.start
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def cell_started(self, cell: Any, cell_index: int) -> None:
        """Called by nbclient for every cell. A markdown heading names what its code cells do."""
        if cell.cell_type == "markdown":
            heading = _HEADING.search(cell.source)
            self.heading = heading[1] if heading else self.heading
            return
        self.cell = cell_index + 1
        self._show(self.heading)

    def write(self, text: str) -> int:
        """Called by papermill with what the notebook writes to stderr; progress bars are picked out of it."""
        bars = list(_BAR.finditer(text))
        if bars:
            self._share(bars[-1]["what"].strip(), int(bars[-1]["share"]), bars[-1]["left"])
        return len(text)

    def flush(self) -> None:
        """Part of the file interface."""
        self.stream.flush()

    def finish(self, outcome: str) -> None:
        """End the step's line."""
        self._ended.set()
        seconds = f"{time.monotonic() - self.start:.1f}"
        self._show(_("{outcome} in {seconds} s").format(outcome=_(outcome), seconds=seconds), end="\n")

    def _share(self, what: str, percent: int, left: str | None) -> None:
        fifth = (what, percent // 20)
        text = f"{what} {percent} %"
        if left and percent < 100:
            text = _("{done}, about {time} left").format(done=text, time=left)
        if self.live or fifth != self._fifth:
            self._show(text)
        self._what, self._fifth = text, fifth

    def _tick(self) -> None:
        """Say the newest again, with the time, where nothing else was said for a while: all is well, it only takes long."""
        wait = self.TICKS[0] if self.live else self.TICKS[1]
        while not self._ended.wait(min(wait, 1.0)):
            if time.monotonic() - self._said >= wait:
                self._show(self._what)

    def _show(self, what: str, end: str = "") -> None:
        with self._lock:
            if self._ended.is_set() and not end:
                return
            if not end and not self._clock.is_alive():
                self._clock.start()
            self._what, self._said = what, time.monotonic()
            seconds = self._said - self.start
            cell = _("cell {cell}/{cells}").format(cell=self.cell, cells=self.cells)
            text = f"{self.label}  {cell}  {seconds:5.0f} s  {what}"
            shown = (
                f"\r\x1b[2K{_fitting(text)}{end}" if self.live else f"{text}\n" if text != self._last else ""
            )
            self._last = text
            with contextlib.suppress(OSError):  # who read it has gone, or its disk is full: the run goes on
                self.stream.write(shown)
                self.stream.flush()


def _fitting(text: str) -> str:
    """`text` cut to the terminal: a line that breaks cannot be written over."""
    return cut(text, shutil.get_terminal_size().columns - 1)


class Board:
    """The lines of several runs: in a terminal the last one of each, redrawn in place; in a log all of them."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._last: dict[str, str] = {}
        self._live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def line(self, label: str, text: str) -> None:
        """Show the newest line of a run; a message that is no progress stays above in a terminal too."""
        self._last[label] = text
        if self._live is None:
            self.console.file.write(f"{label} | {text}\n")
            self.console.file.flush()
            return
        if _MESSAGE.match(text):
            self.console.print(Text(f"{label} | {text}"))
        rows = Table.grid(padding=(0, 2))
        for name, last in self._last.items():
            rows.add_row(Text(name, style="bold"), Text(last, no_wrap=True, overflow="ellipsis"))
        self._live.update(rows)

"""What a run says while it works: which notebook, which cell, what share of the cell is done."""

import contextlib
import re
import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_MESSAGE = re.compile(r"(Error|failed|interrupted|\w*Error:)")
_BAR = re.compile(r"(?P<what>[^\r\n:]*): +(?P<share>\d+)%\|")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


class StepProgress:
    """Follows one notebook: cells as they start, progress bars from its stderr.

    In a terminal one line is written over; in a log each cell gets a line, and so do start and each fifth of long work.
    """

    def __init__(self, label: str, cells: int, stream: TextIO | None = None) -> None:
        self.label, self.cells = label, cells
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.start = time.monotonic()
        self.cell, self.heading = 0, ""
        self._last = ""
        self._fifth: tuple[str, int] = ("", 0)

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
            self._share(bars[-1]["what"].strip(), int(bars[-1]["share"]))
        return len(text)

    def flush(self) -> None:
        """Part of the file interface."""
        self.stream.flush()

    def finish(self, outcome: str) -> None:
        """End the step's line."""
        self._show(f"{outcome} in {time.monotonic() - self.start:.1f} s", end="\n")

    def _share(self, what: str, percent: int) -> None:
        fifth = (what, percent // 20)
        if self.live or fifth != self._fifth:
            self._show(f"{what} {percent} %")
        self._fifth = fifth

    def _show(self, what: str, end: str = "") -> None:
        seconds = time.monotonic() - self.start
        text = f"{self.label}  cell {self.cell}/{self.cells}  {seconds:5.0f} s  {what}"
        shown = f"\r\x1b[2K{text}{end}" if self.live else f"{text}\n" if text != self._last else ""
        self._last = text
        with contextlib.suppress(OSError):  # who read it has gone, or its disk is full: the run goes on
            self.stream.write(shown)
            self.stream.flush()


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

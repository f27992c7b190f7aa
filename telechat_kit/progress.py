"""Progress of long work: a line on stderr in a terminal, a log and a headless run; in JupyterLab one calm bar a cell."""

import os
import sys
from collections.abc import Iterable
from html import escape
from typing import Any, ClassVar, TypeVar

from tqdm.std import tqdm

from telechat_kit.messages import gettext as _
from telechat_kit.messages import shown

Item = TypeVar("Item")

#: Set by a Jupyter server for the kernels that people work in, not by papermill, whose runs read stderr
_SESSION = "JPY_SESSION_NAME"


def track(items: Iterable[Item], description: str, total: int | None = None, done: int = 0) -> Iterable[Item]:
    """Yield `items` and show the share done, the time gone and the time left.

    Of `total`, `done` were finished before and are not among the items.
    """
    options: dict[str, Any] = {
        "desc": shown(description),
        "total": total,
        "initial": done,
        "mininterval": 0.5,
    }
    if _SESSION in os.environ and "IPython" in sys.modules:
        return _CellBar(items, gui=True, **options)
    return tqdm(items, ascii=" ·━", ncols=88, **options)


class _CellBar(tqdm):
    """A bar below the cell that runs, in the place of the one before: JupyterLab paints stderr as an error."""

    _shown: ClassVar[tuple[int, Any]] = (-1, None)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002  (tqdm's signature)
        """Draw the state of now."""
        from IPython import get_ipython  # noqa: PLC0415  (there where a cell runs; needed nowhere else)
        from IPython.display import HTML, display  # noqa: PLC0415

        cell, handle = _CellBar._shown
        bar = HTML(self._html())
        current = getattr(get_ipython(), "execution_count", 0)
        if handle is not None and cell == current:
            handle.update(bar)
        else:
            _CellBar._shown = (current, display(bar, display_id=True))

    def close(self) -> None:
        """Leave the last state."""
        if not self.disable:
            self.display()
        super().close()

    def _html(self) -> str:
        state = self.format_dict
        total, n, rate = state["total"] or 0, state["n"], state["rate"]
        left = tqdm.format_interval((total - n) / rate) if rate and 0 < n < total else ""
        gone = tqdm.format_interval(state["elapsed"])
        name = escape(self.desc.removesuffix(": "))
        share = f"{100 * n // total} %" if total else f"{n}"
        told = (
            _("{name}: {share}, {gone} gone, about {left} left")
            if left
            else _("{name}: {share}, {gone} gone")
        )
        return (
            f'<progress max="{total or 1}" value="{n}" aria-label="{name}" style="width:16em"></progress> '
            f"{told.format(name=name, share=share, gone=gone, left=left)}"
        )

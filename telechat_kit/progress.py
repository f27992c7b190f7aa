"""Progress of long work: a line on stderr in a terminal, a log and a headless run; in JupyterLab one calm bar a cell."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from html import escape
from typing import Any, ClassVar, ParamSpec, TypeVar

from tqdm.std import tqdm

from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, shown

Item = TypeVar("Item")
Given = ParamSpec("Given")
Made = TypeVar("Made")

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
    if _in_jupyterlab():
        return _CellBar(items, gui=True, **options)
    return tqdm(items, ascii=" ·━", ncols=88, **options)


class Interrupted(KeyboardInterrupt):
    """An interrupt by a person in JupyterLab: what is kept of the work, in the place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it."""
        return [str(self)]


def resumable(kept: str) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """A function that goes on where it was stopped: an interrupt in JupyterLab says `kept`, what is there already."""

    def decorated(work: Callable[Given, Made]) -> Callable[Given, Made]:
        @wraps(work)
        def working(*args: Given.args, **options: Given.kwargs) -> Made:
            try:
                return work(*args, **options)
            except KeyboardInterrupt as signal:
                if isinstance(signal, Interrupted) or not _in_jupyterlab():
                    raise
                raise Interrupted(_("Interrupted. {kept}").format(kept=_(kept))) from signal

        return working

    return decorated


@contextmanager
def bars_of_transformers() -> Iterator[None]:
    """Meanwhile transformers' own bars (loading, writing) speak and look like those of `track`."""
    from transformers.utils import logging  # noqa: PLC0415  (loaded by whoever calls this)

    set_hook = getattr(logging, "set_tqdm_hook", None)  # older ones cannot be told
    if set_hook is None:
        yield
        return
    before = set_hook(_as_ours)
    try:
        yield
    finally:
        set_hook(before)


#: What transformers calls its work
_OF_TRANSFORMERS = (marked("Loading weights"), marked("Writing model shards"))


def _as_ours(made: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A bar of transformers in the language in force; in JupyterLab below the cell."""
    options = {**options, "desc": shown(options.get("desc") or "")}
    return _CellBar(*args, **{**options, "gui": True}) if _in_jupyterlab() else made(*args, **options)


def _in_jupyterlab() -> bool:
    return _SESSION in os.environ and "IPython" in sys.modules


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

"""Progress of long work as text: the same line in a terminal, a JupyterLab cell, a log and an HTML page."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm.std import tqdm

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, total: int | None = None, done: int = 0) -> Iterable[Item]:
    """Yield `items` and show the share done, the time gone and the time left on stderr.

    Of `total`, `done` were finished before and are not among the items.
    """
    return tqdm(items, desc=description, total=total, initial=done, mininterval=0.5, ascii=" ·━", ncols=88)

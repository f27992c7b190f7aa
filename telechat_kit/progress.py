"""Progress of long work as text: the same line in a terminal, a JupyterLab cell, a log and an HTML page."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm.std import tqdm

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Yield `items` and show the share done, the time gone and the time left on stderr."""
    return tqdm(items, desc=description, total=total, mininterval=0.5, ascii=" ·━", ncols=88)

"""Signals that end a run: Ctrl-C, SIGTERM and a closed terminal all leave an orderly state behind."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

#: Set for a run that another one started: the process that it must not outlive
PARENT = "TELECHAT_KIT_PARENT"


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived. What handles Ctrl-C handles it too."""


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `Terminated`, once: the end itself is not broken off by a second one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = [
        number for number in known if signal.getsignal(number) != signal.SIG_IGN
    ]  # nohup stays in force
    before = {number: signal.signal(number, _end) for number in signals}
    _follow_parent()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(signal.Signals(number).name)


def _follow_parent() -> None:
    """End as by SIGTERM when the run that started this one is gone, killed perhaps."""
    parent = os.environ.get(PARENT)
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)

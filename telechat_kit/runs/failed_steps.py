"""What went wrong in a step, in the user's terms, and what to do about it."""

from pathlib import Path

from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from telechat_kit.messages import Message, marked
from telechat_kit.runs.signals import Terminated
from telechat_kit.runs.state import Failure, Step

_OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


def describe_failure(
    step: Step, error: BaseException, limit: float | None = None, oom_before: int = 0
) -> Failure:
    """The failure of a step; `limit` is its time-out in seconds, `oom_before` what `oom_kills` gave at its start."""
    notebook = f"{step.name}.ipynb"
    if isinstance(error, PapermillExecutionError):
        return Failure(notebook, error.cell_index + 1, error.ename, error.evalue)
    if isinstance(error, DeadKernelError):
        return Failure(notebook, None, "DeadKernelError", _dead_kernel(oom_kills() - oom_before))
    if isinstance(error, CellTimeoutError):
        message = Message(
            "the step took longer than the {limit:g} s that --timeout allows. Allow more, or use a smaller "
            "case.",
            limit=limit or 0,
        )
        return Failure(notebook, None, "TimeoutError", message)
    if isinstance(error, Terminated):
        return Failure(
            notebook,
            None,
            "Terminated",
            Message("ended by {error}. Run again: finished steps are kept.", error=error),
        )
    if isinstance(error, KeyboardInterrupt):
        return Failure(
            notebook, None, "Interrupted", marked("by the user. Run again: finished steps are kept.")
        )
    return Failure(notebook, None, type(error).__name__, str(error))


def _dead_kernel(oom_kills_since: int) -> str:
    cause = (
        marked("the kernel was killed because the machine ran out of memory.")
        if oom_kills_since > 0
        else marked("the kernel died: it was killed, or the machine ran out of memory.")
    )
    return Message(
        "{cause} Free memory or use a smaller case, and run again: finished steps are kept.", cause=cause
    )


def oom_kills() -> int:
    """How often the system has ended a process for lack of memory so far; 0 where it does not tell."""
    for path in _OOM_COUNTERS:
        if path.is_file():
            rows = (line.split() for line in path.read_text(encoding="ascii").splitlines())
            return next((int(row[1]) for row in rows if row[0] == "oom_kill"), 0)
    return 0

"""Each operator that a run will call, tried on the device before a run trips over it: `telechat-kit check --operators`.

Each way of each operation has a process of its own, so that a crashed core does not take the rest with it: it opens the
device, makes its calls (`backends.operator_trials`) and says a line for each. A process that ends or falls silent is
judged for the call it was at, and a new one goes on behind it.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from telechat_kit.backends import require_device, split_devices
from telechat_kit.backends.operator_trials import MARK
from telechat_kit.backends.probes import Sizes
from telechat_kit.environment.operator_results import OperatorTest, OperatorTests, Verdict
from telechat_kit.errors import DeviceError, ParameterError
from telechat_kit.files import resolve
from telechat_kit.messages import Message, marked
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import read_config

#: A token in decode, and prompts on both sides of what operators pad, block and switch at
ROWS = (1, 10, 17, 100, 500, 1000, 1024, 2000)
#: A device may take a minute to open, or hang while it is reset
OPEN_SECONDS = 180.0
WHEN = ("npu", "always", "never")
#: The first call of a process loads its operator; the slowest one, plain products of 2000 rows, takes some seconds
CALL_SECONDS = 90.0
#: A way that cost so many processes is not tried further
LOST_PROCESSES = 3


def check_operators(
    checkpoint_path: str | Path,
    device: str = "auto",
    operators: str = "npu",
    *,
    rows: Sequence[int] = ROWS,
    call_seconds: float = CALL_SECONDS,
    progress: Callable[[str], None] = lambda _: None,
) -> OperatorTests | None:
    """Try every way of every operation that a model of these shapes calls on `device`, each in its own process.

    Args:
        checkpoint_path: folder whose config.json gives the shapes; weights are not read.
        device: as in a profile; of several the first one.
        operators: when to try: "npu" (where the device is one), "always" or "never"; else None comes back.
        rows: numbers of rows to try each call at.
        call_seconds: time that one call has, its reference included.
        progress: is told the name of each operation and way before it is tried.

    Raises:
        DeviceError: the device cannot be opened, or takes too long to.
        CheckpointError: there is no config.json.
        ParameterError: `operators` is another word.

    Example:
        >>> check_operators("models/tiny", "cpu") is None  # no NPU
        True
    """
    if operators not in WHEN:
        raise ParameterError(
            'operators is "{operators}". Use one of {when}.', operators=operators, when=", ".join(WHEN)
        )
    if operators == "never" or (operators == "npu" and require_device(split_devices(device)[0])[0] != "npu"):
        return None
    config = read_config(resolve(checkpoint_path))
    trials = Trials(split_devices(device)[0], _sizes(config), _dtype(config), call_seconds)
    told, operations = trials.listed()
    tests = list[OperatorTest]()
    for operation, ways in operations.items():
        for i, way in enumerate(ways):
            progress(f"{operation}: {way}")
            tests += trials.of(operation, way, rows, _avoiding(tests, operation, ways[:i]))
    return OperatorTests(trials.device, told["device"], told["dtype"], asdict(trials.sizes), tests)


def _sizes(config: TelechatConfig) -> Sizes:
    return Sizes(config.hidden_size, config.n_head, config.kv_heads, config.head_dim, config.ffn_hidden_size)


def _dtype(config: TelechatConfig) -> str:
    return str(config.dtype or "").removeprefix("torch.")


def _avoiding(tests: list[OperatorTest], operation: str, before: Sequence[str]) -> dict[str, list[str]]:
    """The ways to set aside for a trial: the better ones of the operation, and what failed elsewhere."""
    failed = OperatorTests("", "", "", {}, tests).avoided() if tests else {}
    elsewhere = {name: list(ways) for name, ways in failed.items() if name != operation}
    return elsewhere | ({operation: list(before)} if before else {})


@dataclass(frozen=True)
class Trials:
    """Starts the processes and judges what they say."""

    device: str
    sizes: Sizes
    dtype: str
    call_seconds: float

    def listed(self) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """What the device is, and what can be tried on it."""
        with _Process(self._request()) as process:
            told = process.opened()
            if (line := process.line(OPEN_SECONDS)) is None:
                raise DeviceError(process.end(marked("the process that opened it")))
        return told, line["operations"]

    def of(
        self, operation: str, way: str, rows: Sequence[int], aside: Mapping[str, list[str]]
    ) -> Iterator[OperatorTest]:
        """One way at each number of rows; a process that is lost costs the call it was at."""
        left, lost = list(rows), 0
        while left and lost < LOST_PROCESSES:
            with _Process(self._request(operation, way, left, aside)) as process:
                process.opened()
                while left:
                    line = process.line(self.call_seconds)
                    if line is None:
                        verdict: Verdict = "timed out" if process.silent else "crashed"
                        yield OperatorTest(operation, way, left.pop(0), verdict, message=process.end(""))
                        lost += 1
                        break
                    test = OperatorTest(operation, way, **line)
                    left.pop(0)
                    yield test
                    if test.verdict == "crashed":
                        lost += 1
                        break
        for count in left:
            yield OperatorTest(
                operation,
                way,
                count,
                "not tried",
                message=Message("{lost} processes were lost to it", lost=lost),
            )

    def _request(
        self,
        operation: str = "",
        way: str = "",
        rows: Sequence[int] = (),
        aside: Mapping[str, list[str]] | None = None,
    ) -> dict[str, Any]:
        return {
            "device": self.device,
            "dtype": self.dtype,
            "sizes": asdict(self.sizes),
            "operation": operation,
            "way": way,
            "rows": list(rows),
            "aside": dict(aside or {}),
        }


class _Process:
    """A process of `backends.operator_trials`, read line by line with patience that ends."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        command = [sys.executable, "-m", "telechat_kit.backends.operator_trials", json.dumps(request)]
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), root]))
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # what it starts ends with it
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._errors = list[str]()
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()
        #: it said nothing for too long
        self.silent = False

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for thread in self._threads:
            thread.join(5)

    def opened(self) -> dict[str, Any]:
        """Its first line: what the device is.

        Raises:
            DeviceError: the device cannot be opened.
        """
        line = self.line(OPEN_SECONDS)
        if line is None:
            raise DeviceError("no process can open the device: {end}.", end=self.end(Message("it")))
        if problem := line.get("problem"):
            raise DeviceError(problem)
        return line

    def line(self, seconds: float) -> dict[str, Any] | None:
        """The next line that it says, None if it ended or said nothing for so long."""
        try:
            text = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.silent = True
            return None
        return None if text is None else json.loads(text)

    def end(self, who: str) -> str:
        """Why there is no further line, in words."""
        if self.silent:
            self._kill()
            return (
                Message("{who} said nothing for too long", who=who)
                if who
                else marked("said nothing for too long")
            )
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else Message("exit code {code}", code=code)
        self._threads[1].join(5)
        last = next((line for line in reversed(self._errors) if line.strip()), "")
        end = (
            Message("{who} ended with {name}", who=who, name=name)
            if who
            else Message("ended with {name}", name=name)
        )
        return Message("{end}: {said}", end=end, said=last.strip()[:200]) if last.strip() else end

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._lines.put(line.removeprefix(MARK))
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors += self._process.stderr

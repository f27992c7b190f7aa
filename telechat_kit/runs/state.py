"""`run.json`: the state of every step of a run, written at each change."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from telechat_kit.errors import DataError
from telechat_kit.files import read_json, write_json
from telechat_kit.messages import Message, marked

SCHEMA = "telechat-kit/run/1"
#: What a step can be, for the catalog
_STATES = (
    marked("pending"),
    marked("running"),
    marked("completed"),
    marked("failed"),
    marked("interrupted"),
    marked("skipped"),
)


@dataclass(frozen=True)
class Step:
    """A notebook as a step of a run: what decides its result and what it leaves.

    `reads` and `makes` name parameters that hold paths; `needs` and `writes` are files of the run folder.
    """

    name: str
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


STEPS = (
    Step("01_setup", reads=("checkpoint_path",), makes=("checkpoint_path",), writes=("setup.json",)),
    Step(
        "02_quantize",
        reads=("checkpoint_path", "calibration_path", "jsonl_path"),
        makes=("quant_path",),
        writes=("quantize.json",),
    ),
    Step(
        "03_precision",
        reads=(
            "model_path",
            "quant_path",
            "jsonl_path",
            "text_path",
            "kinds_path",
            "languages_path",
            "tasks_path",
            "compare_with",
        ),
        writes=("precision.json", "answers.jsonl", "infer_float.jsonl", "infer_w8a8.jsonl"),
    ),
    Step(
        "04_performance",
        reads=("model_path", "quant_path", "text_path"),
        writes=("performance.json", "samples.jsonl"),
    ),
    Step(
        "05_report",
        needs=("setup.json", "quantize.json", "precision.json", "performance.json"),
        writes=("report.html", "report.md"),
    ),
)


@dataclass
class Failure:
    """Where and why a step failed."""

    notebook: str
    cell: int | None
    error: str
    message: str


@dataclass
class StepState:
    """State of one step: pending, running, completed, failed, interrupted or skipped.

    `key` hashes `parts`, all that decided the result; `left` holds the SHA-256 of each file that the step left.
    """

    name: str
    status: str = "pending"
    started: str | None = None
    seconds: float | None = None
    key: str | None = None
    failure: Failure | None = None
    parts: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def take_over(self, done: "StepState") -> None:
        """Keep the result of an earlier run."""
        self.key, self.started, self.seconds = done.key, done.started, done.seconds
        self.parts, self.left = done.parts, done.left


@dataclass
class RunState:
    """State of a run. `save` writes it; `load_state` reads what an earlier run left."""

    schema: str
    profile: str
    parameters: dict[str, Any]
    versions: dict[str, str]
    runs_at_once: int = 1  # of this machine's; the others slow this one's timings
    edited_notebooks: list[str] = field(default_factory=list)  # not as committed
    manifest: bool = False  # the run came to its end and wrote one
    steps: list[StepState] = field(default_factory=lambda: [StepState(step.name) for step in STEPS])

    def save(self, folder: Path) -> None:
        """Write `run.json`, whole or not at all."""
        write_json(folder / "run.json", asdict(self))

    def step(self, name: str) -> StepState:
        """State of the step `name`."""
        return next(step for step in self.steps if step.name == name)


def load_state(folder: Path) -> RunState | None:
    """The state that an earlier run left in `folder`; None if there is none.

    Raises:
        DataError: `run.json` is damaged or of another version of the kit.
    """
    path = folder / "run.json"
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        if values.get("schema") != SCHEMA:
            raise ValueError(
                Message(
                    'its schema is "{values}", this kit reads "{schema}"',
                    values=values.get("schema"),
                    schema=SCHEMA,
                )
            )
        state = TypeAdapter(RunState).validate_python(values)
        if [step.name for step in state.steps] != [step.name for step in STEPS]:
            raise ValueError("other steps")
    except (AttributeError, ValueError, ValidationError) as error:
        raise DataError(
            "{path} is damaged or of another version of the kit ({error}). Remove it to run all steps again.",
            path=path,
            error=str(error).splitlines()[0],
        ) from error
    return state

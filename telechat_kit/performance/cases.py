"""Which cases can be timed on a device, and how long they will take: known before the first one starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from telechat_kit.errors import DeviceError, ParameterError
from telechat_kit.inference.generation import Generation
from telechat_kit.messages import Message
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.records import require_types

#: The guide's grid: batch 1, every input length with every output length
GUIDE_LENGTHS = (10, 100, 500, 1000, 2000)


class Case(NamedTuple):
    """Tokens of a prompt, tokens generated behind it, and copies of the prompt at a time."""

    input_tokens: int
    output_tokens: int
    batch: int = 1


@dataclass(frozen=True)
class SkippedCase:
    """A case that was not run, and why."""

    input_tokens: int
    output_tokens: int
    reason: str
    batch: int = 1


@dataclass(frozen=True)
class Grid:
    """Which cases are timed and how often, by the names of the parameters of `04_performance`.

    Lists become tuples. The guide's 25 cases are `Grid(GUIDE_LENGTHS, GUIDE_LENGTHS)`.

    Attributes:
        input_lengths: tokens in the prompt.
        output_lengths: tokens to generate.
        batch_sizes: copies of the prompt that go through the model at once.
        thread_counts: CPU threads that one case is timed with as well; empty: none.
        repeats: timed runs of each case and precision.
        check_tokens: ids behind each prompt compared with generate() of transformers; 0: none.
        text_path: text that is read: a text file, a .jsonl file or pydoc_data.topics. Its first tokens are the prompts.

    Example:
        >>> grid = Grid([4, 16], [2], repeats=1)
        >>> grid.batch_sizes
        (1,)
    """

    input_lengths: Sequence[int] = (10, 100, 500)
    output_lengths: Sequence[int] = (10, 50)
    batch_sizes: Sequence[int] = (1,)
    thread_counts: Sequence[int] = ()
    repeats: int = 3
    check_tokens: int = 16
    text_path: str = "pydoc_data.topics"

    def __post_init__(self) -> None:
        for name in ("input_lengths", "output_lengths", "batch_sizes", "thread_counts"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, Iterable) else value)
        require_types(self)

    def cases(self, context: int) -> list[Case]:
        """All cases, batch by batch, for a model of that context in tokens.

        Raises:
            ParameterError: there is none, or one is impossible; the first such length or batch size is named.
        """
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ParameterError(
                "batch_sizes is {batch_sizes}: name at least one, each 1 or more.",
                batch_sizes=list(self.batch_sizes),
            )
        cases = [
            Case(i, o, batch)
            for batch in self.batch_sizes
            for i in self.input_lengths
            for o in self.output_lengths
        ]
        for i, o, _ in cases:
            if i < 1 or o < 1 or i + o > context:
                raise ParameterError(
                    "input {i} and output {o} tokens: each must be at least 1 and both together at most {context}, "
                    "the context of the model. Change input_lengths or output_lengths.",
                    i=i,
                    o=o,
                    context=context,
                )
        if not cases:
            raise ParameterError(
                "input_lengths and output_lengths give no case. Name at least one length in each."
            )
        return cases


def case_bytes(config: TelechatConfig, case: Case, float_bytes: int) -> int:
    """Bytes that a case needs beside the weights: its cache, and the widest activations of its prompt.

    Those are gate, up and their product, or query, keys, values and what attention gives.
    """
    inputs, outputs, batch = case
    cache = 2 * config.n_layer * config.hidden_size * (inputs + outputs)
    widest = max(3 * config.ffn_hidden_size, 4 * config.hidden_size) + 2 * config.hidden_size
    return batch * (cache + widest * inputs) * float_bytes


def fitting(
    cases: Iterable[Case], config: TelechatConfig, float_bytes: int, free: int
) -> tuple[list[Case], list[SkippedCase]]:
    """The cases that fit into `free` bytes, and the others with their reason.

    Raises:
        DeviceError: not one of them fits.
    """
    run: list[Case] = []
    skipped = []
    for case in cases:
        needed = case_bytes(config, case, float_bytes)
        if needed <= free:
            run.append(case)
        else:
            reason = Message(
                "needs {needed:.2f} GB beside the weights, {free:.2f} GB are free",
                needed=needed / 1e9,
                free=free / 1e9,
            )
            skipped.append(SkippedCase(case.input_tokens, case.output_tokens, reason, case.batch))
    if not run:
        first = skipped[0]
        raise DeviceError(
            "no case fits: input {input_tokens}, output {output_tokens} {reason}. Ask for shorter lengths, "
            "or end other programs on the device.",
            input_tokens=first.input_tokens,
            output_tokens=first.output_tokens,
            reason=first.reason,
        )
    return run, skipped


def estimated_seconds(cases: Sequence[Case], repeats: int, warm_up: Mapping[str, Generation]) -> float:
    """Time of all runs, from one short run of each precision: its time per prompt token and per further token.

    Rough: a long prompt takes less per token than a short one, a long context more, and the rows of a batch count
    as if one came after the other.
    """
    seconds = 0.0
    for run in warm_up.values():
        prompt = run.time_to_first_token / run.prompt_tokens
        step = run.time_per_output_token or run.time_to_first_token
        seconds += sum(batch * (inputs * prompt + outputs * step) for inputs, outputs, batch in cases)
    return repeats * seconds


def duration(seconds: float) -> str:
    """`seconds` in words, rounded to what an estimate is worth."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

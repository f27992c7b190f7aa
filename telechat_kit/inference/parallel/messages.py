"""What the first process of a team tells the others, and what they answer; pickled through their pipes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Start:
    """Join the team as `rank` of `devices`, whose store listens on `port`, with so many `threads` on a CPU.

    Answered by a `Done` before the process waits for the others.
    """

    devices: tuple[str, ...]
    rank: int
    port: int
    threads: int


@dataclass(frozen=True)
class Load:
    """Make the model number `model` by `load(*arguments, device, shard)`; answered by a `Done`.

    `set_aside`: ways of operations that are not to be taken, and why, as in the first process: weights prepared for
    another way would be added up in another form.
    """

    model: int
    load: Callable[..., Any]
    arguments: tuple[Any, ...]
    set_aside: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Join:
    """Every part is there: call `join(model, shard)`, in which the parts may wait for each other. Answered by a `Done`."""

    model: int
    join: Callable[..., None]


@dataclass(frozen=True)
class Step:
    """One forward call of the model on `input_ids [B, T]`, after the first `start` positions of the cache `cache`.

    A cache that is not known yet is made: of `capacity` positions, or growing if that is None. `attention_mask` as
    the network takes it; without a number no cache is used.
    """

    model: int
    input_ids: Tensor
    attention_mask: Tensor | None
    cache: int | None
    capacity: int | None
    start: int


@dataclass(frozen=True)
class Forget:
    """Models and caches that the first process has given up."""

    models: tuple[int, ...]
    caches: tuple[int, ...]


@dataclass(frozen=True)
class Done:
    """The answer to a `Load`, or the last word of a process: `error` is empty if all went well."""

    error: str = ""

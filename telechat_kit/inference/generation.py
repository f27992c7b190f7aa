"""Prefill and greedy decode on a preallocated cache, timed token by token."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from telechat_kit.backends import backend_for
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.inference.engine import Engine, EngineBatch, EngineRun, engine_for
from telechat_kit.inference.graph import GraphRun, require_graph
from telechat_kit.inference.memory import explained
from telechat_kit.inference.network_run import (
    NetworkRun,
    PreallocatedCache,
    logits_behind,
    without_nan,
)
from telechat_kit.messages import marked
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.network import TelechatForCausalLM

Run = EngineRun | NetworkRun | GraphRun

#: Names in records, and on pages in their language: the engine of the CPU's kernels, the network as it is, a graph of it
COMPILED, MODULES, CAPTURED = marked("compiled engine"), marked("torch modules"), marked("captured graph")


def start_run(model: TelechatForCausalLM, capacity: int, graph: str = "none") -> Run:
    """The fastest run of `model` over up to `capacity` positions: the engine's where it has one and may go so far.

    With `graph` "capture" a graph of the device decodes, and a device that has none is refused.
    """
    require_graph(graph)
    if graph != "none":
        return GraphRun(NetworkRun(model, capacity))
    engine = engine_for(model)
    if engine is not None and engine.fits(capacity):
        return engine.run(capacity)
    return NetworkRun(model, capacity)


def engine_name(model: TelechatForCausalLM, graph: str = "none") -> str:
    """What `start_run` gives a sequence of `model` to, in words for records and pages."""
    if graph != "none":
        return CAPTURED
    return MODULES if engine_for(model) is None else COMPILED


@dataclass(frozen=True)
class Generation:
    """New ids of one greedy run, and when each was there: seconds after the start of the prefill."""

    prompt_tokens: int
    token_ids: list[int]
    token_times: list[float]
    #: ids of the further rows, where copies of the prompt went through the model at once
    other_rows: list[list[int]] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """Number of prompts at a time."""
        return 1 + len(self.other_rows)

    @property
    def seconds(self) -> float:
        """From the start of the prefill to the last token."""
        return self.token_times[-1]

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the start of the prefill to the first token."""
        return self.token_times[0]

    @property
    def time_per_output_token(self) -> float | None:
        """Mean seconds per token after the first one; None where there is only one."""
        after_first = len(self.token_times) - 1
        return (self.seconds - self.time_to_first_token) / after_first if after_first else None

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all rows per second of wall time, prefill included: the published tables' meaning."""
        return self.batch * len(self.token_ids) / self.seconds


@torch.inference_mode()
def generate(
    model: TelechatForCausalLM,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    repetition_penalty: float = 1.0,
    stop_ids: Sequence[int] = (),
    on_token: Callable[[int], None] | None = None,
    graph: str = "none",
) -> Generation:
    """Greedy continuation of one prompt: up to `max_new_tokens` ids, the stop id included if one comes.

    `graph` "capture" decodes with a graph of the device, captured before the clock starts.

    Raises:
        DataError: the prompt is empty or holds an id outside the vocabulary.
        DeviceError: the device ran out of memory, or has no such graph.
        ParameterError: the penalty is not above 0, or `graph` is unknown or cannot go so far.
    """
    _check_prompt(model.config, prompt_ids, max_new_tokens)
    _check_penalty(repetition_penalty)
    case = f"input {len(prompt_ids)}, output {max_new_tokens} tokens"
    with explained(case, backend_for(model.device.type)):
        run = start_run(model, len(prompt_ids) + max_new_tokens, graph)
        backend_for(model.device.type).synchronize()
        return _generate(run, prompt_ids, max_new_tokens, repetition_penalty, stop_ids, on_token)


def _generate(
    run: Run,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    repetition_penalty: float,
    stop_ids: Sequence[int],
    on_token: Callable[[int], None] | None,
) -> Generation:
    new_ids: list[int] = []
    times: list[float] = []
    start, step = time.perf_counter(), list(prompt_ids)
    while len(new_ids) < max_new_tokens:
        token = _next_id(run, step, [*prompt_ids, *new_ids], repetition_penalty)
        step = [token]
        new_ids.append(token)
        times.append(time.perf_counter() - start)
        if on_token is not None:
            on_token(token)
        if token in stop_ids:
            break
    return Generation(len(prompt_ids), new_ids, times)


@torch.inference_mode()
def generate_batch(
    model: TelechatForCausalLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    repetition_penalty: float = 1.0,
    stop_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Greedy continuations of several prompts at a time.

    The engine gives each the ids that `generate` gives it. The network's modules take the prompts padded on the left,
    and positions count the padding, as in the published code: where two tokens are equally likely to some digits,
    the choice may be another one than for the prompt alone.

    Raises:
        DataError: a prompt is empty or holds an id outside the vocabulary.
        DeviceError: the device ran out of memory.
        ParameterError: the penalty is not above 0.
    """
    for prompt in prompts:
        _check_prompt(model.config, prompt, max_new_tokens)
    _check_penalty(repetition_penalty)
    longest = max(map(len, prompts), default=0)
    if (engine := _batch_engine(model, longest + max_new_tokens)) is not None:
        return _extend_in_engine(engine, prompts, max_new_tokens, repetition_penalty, stop_ids)
    # pads repeat an id of the prompt: the penalty counts an id once
    seen = torch.tensor([[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    case = f"batch {len(prompts)}, input {longest}, output {max_new_tokens} tokens"
    with explained(case, backend_for(model.device.type)):
        seen = _extend(
            model, seen.to(model.device), mask.to(model.device), max_new_tokens, repetition_penalty, stop_ids
        )
    return [_until_stop(row, stop_ids) for row in seen[:, longest:].tolist()]


@torch.inference_mode()
def generate_copies(
    model: TelechatForCausalLM, prompt_ids: Sequence[int], batch: int, max_new_tokens: int
) -> Generation:
    """Greedy continuations of `batch` copies of a prompt at a time, timed; no id ends them.

    The engine reads every copy. Graphs run one sequence. The time includes that of allocating the cache.

    Raises:
        DataError: the prompt is empty or holds an id outside the vocabulary.
        DeviceError: the device ran out of memory.
    """
    _check_prompt(model.config, prompt_ids, max_new_tokens)
    backend, times = backend_for(model.device.type), []
    case = f"batch {batch}, input {len(prompt_ids)}, output {max_new_tokens} tokens"
    if (engine := _batch_engine(model, len(prompt_ids) + max_new_tokens)) is not None:
        start = time.perf_counter()
        first, *others = _extend_in_engine(
            engine,
            [prompt_ids] * batch,
            max_new_tokens,
            1.0,
            (),
            lambda: times.append(time.perf_counter() - start),
        )
        return Generation(len(prompt_ids), first, times, others)
    with explained(case, backend):
        prompts = torch.tensor([list(prompt_ids)] * batch, device=model.device)
        backend.synchronize()
        start = time.perf_counter()
        seen = _extend(
            model, prompts, None, max_new_tokens, 1.0, (), lambda: times.append(time.perf_counter() - start)
        )
    first, *others = seen[:, len(prompt_ids) :].tolist()
    return Generation(len(prompt_ids), first, times, others)


def _batch_engine(model: TelechatForCausalLM, positions: int) -> Engine | None:
    """The engine of `model`, if it has one and the longest sequence may go so far."""
    engine = engine_for(model)
    return engine if engine is not None and engine.fits(positions) else None


def _extend_in_engine(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    penalty: float,
    stop_ids: Sequence[int],
    on_step: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """New ids of every prompt, its stop id included; a row that has one leaves the batch."""
    batch = engine.batch([len(prompt) + max_new_tokens for prompt in prompts])
    found: list[list[int]] = [[] for _ in prompts]
    step: dict[int, Sequence[int]] = dict(enumerate(prompts))
    while step:
        seen = [[*prompts[row], *found[row]] for row in step]
        for row, token in zip(step, _next_ids(batch, step, seen, penalty), strict=True):
            found[row].append(token)
        on_step()
        going = (row for row in step if len(found[row]) < max_new_tokens and found[row][-1] not in stop_ids)
        step = {row: found[row][-1:] for row in going}
    return found


def _next_ids(
    batch: EngineBatch, step: Mapping[int, Sequence[int]], seen: Sequence[Sequence[int]], penalty: float
) -> list[int]:
    """The greedy choices behind `step`, with the penalty on the ids `seen` so far of each of its rows."""
    if penalty == 1.0:
        return batch.best(step)
    logits = batch.logits(step)
    return [
        int(penalized(row[None], torch.tensor([ids]), penalty).argmax())
        for row, ids in zip(logits, seen, strict=True)
    ]


@torch.inference_mode()
def generate_by_transformers(
    model: TelechatForCausalLM, prompt_ids: Sequence[int], max_new_tokens: int
) -> Generation:
    """What transformers' own `generate()` gives, greedily and timed; a stop id that no token has keeps it going."""
    ids, clock = torch.tensor([list(prompt_ids)], device=model.device), _Clock()
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_length=len(prompt_ids) + max_new_tokens,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=model.config.vocab_size,
        pad_token_id=0,
        streamer=clock,
    )
    return Generation(len(prompt_ids), found[0, len(prompt_ids) :].tolist(), clock.times)


class _Clock(BaseStreamer):
    """Seconds from its making to each new token."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._start = time.perf_counter()

    def put(self, value: Tensor) -> None:
        """Called with the prompt `[1, T]` first, then with each id `[1]` as soon as it is on the host."""
        if value.ndim == 1:
            self.times.append(time.perf_counter() - self._start)

    def end(self) -> None:
        """Nothing is left to do behind the last token."""


def _extend(
    model: TelechatForCausalLM,
    seen: Tensor,
    mask: Tensor | None,
    max_new_tokens: int,
    penalty: float,
    stop_ids: Sequence[int],
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """The ids `seen [B, T]` and up to `max_new_tokens` more, fewer if a stop id has come in every row.

    `on_step` is called as soon as an id of every row is there.
    """
    cache = PreallocatedCache.of(model, len(seen), seen.shape[1] + max_new_tokens)
    stops, step = torch.tensor(stop_ids, device=seen.device), seen
    stopped = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
    for _ in range(max_new_tokens):
        logits = logits_behind(model, cache, step, mask)
        step = penalized(without_nan(model, logits(), logits), seen, penalty).argmax(dim=1, keepdim=True)
        seen = torch.cat([seen, step], dim=1)
        mask = None if mask is None else torch.cat([mask, torch.ones_like(step)], dim=1)
        stopped |= torch.isin(step[:, 0], stops)
        ended = bool(stopped.all())  # waits for the device
        on_step()
        if ended:
            break
    return seen


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The ids up to the first stop id, which is kept."""
    end = next((i for i, token in enumerate(ids, start=1) if token in stop_ids), len(ids))
    return ids[:end]


def _next_id(run: Run, step: Sequence[int], seen: Sequence[int], penalty: float) -> int:
    """The greedy choice after `step`, with the penalty on the ids `seen` so far."""
    if penalty == 1.0:
        return run.best(step)
    logits = run.logits(step)
    return int(penalized(logits, torch.tensor([seen], device=logits.device), penalty).argmax())


def penalized(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """`logits [B, vocab]` with those of the `ids [B, T]` already there divided by `penalty` if positive, else multiplied.

    The rule of CTRL (Keskar et al. 2019) as transformers applies it: once per distinct id.
    """
    if penalty == 1.0:
        return logits
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def stop_ids(model: TelechatForCausalLM) -> tuple[int, ...]:
    """Ids that end an answer, from the generation config, which wins over the model's own; none if neither has one."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    eos = model.config.eos_token_id if eos is None else eos
    ids = eos if isinstance(eos, list) else [eos]
    return tuple(token for token in ids if token is not None)


def _check_penalty(penalty: float) -> None:
    if not 0 < penalty < math.inf:
        raise ParameterError(
            "repetition_penalty is {penalty}: give a finite number above 0; 1 changes nothing, more makes "
            "repeated tokens less likely.",
            penalty=penalty,
        )


def _check_prompt(config: TelechatConfig, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
    if not prompt_ids or max_new_tokens < 1:
        raise DataError(
            "{count} prompt tokens and {max_new_tokens} new tokens: both must be at least 1.",
            count=len(prompt_ids),
            max_new_tokens=max_new_tokens,
        )
    outside = [token for token in prompt_ids if not 0 <= token < config.vocab_size]
    if outside:
        raise DataError(
            "token id {outside} is outside the model's vocabulary of {vocab_size}: tokenizer and weights do "
            "not belong together.",
            outside=outside[0],
            vocab_size=config.vocab_size,
        )

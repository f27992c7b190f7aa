"""The fast way through a model on the CPU, W8A8 or float: a whole prompt, or a whole token, in one call of the kernels.

Greedy runs of one sequence or of several, up to the trained length; all else goes through the network's modules. Results are those
of the modules to float rounding. One saving is exact: an int8 copy of the head finds the few rows that can hold the
largest logit, which alone are computed in float.
"""

from collections.abc import Callable, Mapping, Sequence
from ctypes import Array, addressof, c_double, c_int32, c_int64
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from telechat_kit.backends import cpu
from telechat_kit.backends.cores import keep_to_granted_cores
from telechat_kit.backends.cpu_kernels.huge_pages import empty
from telechat_kit.backends.cpu_kernels.library import PHASES, Batch, Cache, Extent, library
from telechat_kit.backends.cpu_kernels.operators import kernels
from telechat_kit.backends.cpu_kernels.panels import LANES
from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.inference.network_record import NetworkRecord, blocks_of, dtype_name, linears_of, readable
from telechat_kit.messages import Message
from telechat_kit.model.network import TelechatForCausalLM

#: Positions per vector of the key cache, and per tile: capacities are multiples of it
BLOCK = 64

#: Of the float tensors, all of one
DTYPES = (torch.float32, torch.bfloat16)

#: What keys and values are kept in: "auto" as what runs the model computes, which is float32 in the engine
CACHE_DTYPES = ("auto", "bfloat16", "float16")

_engines: WeakKeyDictionary[TelechatForCausalLM, "Engine"] = WeakKeyDictionary()
_cache_dtypes: WeakKeyDictionary[TelechatForCausalLM, str] = WeakKeyDictionary()


def engine_for(model: TelechatForCausalLM) -> "Engine | None":
    """The engine of `model`, built at the first call; None where the network's modules must run.

    It reads the model's own tensors, and keeps keys and values as `set_cache_dtype` has said. It is built again when
    one of both was replaced, or the head was changed in place, of which it has an int8 copy.
    """
    if unsuited(model):
        return None
    engine, cache_dtype = _engines.get(model), _cache_dtypes.get(model, CACHE_DTYPES[0])
    if engine is None or engine.state != _state(model) or engine.cache_dtype != cache_dtype:
        engine = _engines[model] = Engine(model, cache_dtype=cache_dtype)
    return engine


def set_cache_dtype(model: TelechatForCausalLM, cache_dtype: str) -> None:
    """What the engine keeps keys and values of `model` in, from now on: one of `CACHE_DTYPES`.

    Raises:
        ParameterError: no such type, or one of half the size for a model that the engine does not run.
    """
    require_cache_dtype(cache_dtype)
    if cache_dtype != CACHE_DTYPES[0] and (reason := unsuited(model)):
        raise ParameterError(
            'cache_dtype "{cache_dtype}" is for the compiled engine of the CPU, which cannot run this model: {reason}. '
            "Set cache_dtype to auto.",
            cache_dtype=cache_dtype,
            reason=reason,
        )
    _cache_dtypes[model] = cache_dtype


def require_cache_dtype(cache_dtype: str) -> None:
    """Refuse a type that is not one of `CACHE_DTYPES`."""
    if cache_dtype not in CACHE_DTYPES:
        raise ParameterError(
            'cache_dtype "{cache_dtype}" is unknown. Use one of {choices}.',
            cache_dtype=cache_dtype,
            choices=", ".join(CACHE_DTYPES),
        )


def unsuited(model: TelechatForCausalLM) -> str | None:
    """Why the engine cannot run `model`; None if it can."""
    linears = [linear for block in blocks_of(model) for linear in linears_of(block)]
    floats = [*model.parameters()]
    reasons = {
        "no compiled kernels": library() is None,
        "a compiled kernel is set aside": any(
            cpu.KERNELS in ways for ways in cpu.operations.set_aside().values()
        ),
        "linears of another kind, or not prepared": not all(map(readable, [*linears, model.lm_head])),
        f"float tensors not {' or '.join(map(dtype_name, DTYPES))} on the CPU": not _one_dtype(floats),
        f"head_dim no multiple of {LANES}": model.config.head_dim % LANES != 0,
        "hooks on modules": any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _one_dtype(floats: Sequence[Tensor]) -> bool:
    dtypes, devices = {p.dtype for p in floats}, {p.device.type for p in floats}
    return len(dtypes) == 1 and dtypes <= set(DTYPES) and devices == {"cpu"}


def _state(model: TelechatForCausalLM) -> tuple[int, ...]:
    """Where the tensors lie, and how often the head was changed in place; tensors of inference mode count no changes."""
    head = model.lm_head.weight
    changes = 0 if head.is_inference() else head._version
    return changes, *(t.data_ptr() for t in (*model.parameters(), *model.buffers()))


class Engine:
    """A model as the kernels read it, and what it shares between its runs."""

    def __init__(
        self, model: TelechatForCausalLM, screened_head: bool = True, cache_dtype: str = CACHE_DTYPES[0]
    ) -> None:
        """`screened_head=False` computes every logit in float for every token; the ids are the same.

        `cache_dtype`: one of `CACHE_DTYPES`. Keys and values are rounded to it once, as they are stored. Attention
        computes in float32, but with bfloat16, whose products processors know, it rounds queries and the terms of the
        softmax to it, too, and sums in float32.
        """
        config = model.config
        self.config, self.state, self.cache_dtype = config, _state(model), cache_dtype
        self.slot_dtype = getattr(torch, cache_dtype) if cache_dtype != CACHE_DTYPES[0] else torch.float32
        self._record = NetworkRecord(model, self.slot_dtype, screened_head)
        self.network, self.screen = self._record.network, self._record.screen

    @property
    def read_bytes_per_token(self) -> int:
        """Bytes of weights that a decode step reads, without what is in a cache of the processor anyway."""
        return self._record.read_bytes_per_token

    @property
    def cache_bytes_per_position(self) -> int:
        """Bytes of keys and values that a decode step reads for each position."""
        size = self.slot_dtype.itemsize
        return 2 * size * self.config.n_layer * self.config.kv_heads * self.config.head_dim

    def run(self, capacity: int) -> "EngineRun":
        """A new sequence of up to `capacity` positions."""
        return EngineRun(self, capacity)

    def batch(self, capacities: Sequence[int]) -> "EngineBatch":
        """New sequences of up to so many positions each."""
        return EngineBatch(self, capacities)

    def fits(self, positions: int) -> bool:
        """Whether a run of so many positions stays in the trained length, where a cache and its tables hold."""
        return positions <= self.config.training_seqlen


class EngineBatch:
    """Several sequences, each with a cache of its own: prompts together, then single tokens of those that go on.

    Every row is what it is alone: integer sums, and for float weights sums in an order that only the sizes decide; of
    bfloat16 linears the order depends on the number of rows, too.
    """

    def __init__(self, engine: Engine, capacities: Sequence[int]) -> None:
        """`capacities`: of each sequence, in positions."""
        keep_to_granted_cores()
        config = engine.config
        self.capacities = [-(-capacity // BLOCK) * BLOCK for capacity in capacities]
        self.lengths = [0] * len(capacities)
        shape, dtype = (2, config.n_layer, config.kv_heads), engine.slot_dtype
        self._slots = [empty((*shape, capacity, config.head_dim), dtype) for capacity in self.capacities]
        self._logits = torch.empty(len(capacities), config.vocab_size)
        self._ids = (c_int32 * len(capacities))()
        self._profile = (c_double * len(PHASES))()
        self._engine, self._kernels = engine, kernels()
        self._most_rows, self._steps = self._kernels.step_rows(), dict[int, _Step]()

    def best(self, ids: Mapping[int, Sequence[int]]) -> list[int]:
        """The id of the largest logit behind the ids of each of these sequences, which follow those given before."""
        return self._feed(ids, full=False)

    def logits(self, ids: Mapping[int, Sequence[int]]) -> Tensor:
        """All logits `[len(ids), vocab]` behind them; overwritten by the next call."""
        self._feed(ids, full=True)
        return self._logits[: len(ids)]

    def states(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Hidden states `[length, hidden]` behind the final norm, of whole new sequences."""
        found = torch.empty(sum(map(len, prompts)), self._engine.config.hidden_size)
        self._prefill(dict(enumerate(prompts)), full=False, states=found.data_ptr())
        return list(found.split([len(ids) for ids in prompts]))

    def profile(self) -> dict[str, float]:
        """Seconds of all decode steps so far by what they went into, on the first thread."""
        return dict(zip(PHASES, self._profile, strict=True))

    def _feed(self, ids: Mapping[int, Sequence[int]], full: bool) -> list[int]:
        for row, new in ids.items():
            if self.lengths[row] + len(new) > self.capacities[row]:
                raise ValueError(
                    Message(
                        "{lengths} + {count} positions do not fit into {capacities}",
                        lengths=self.lengths[row],
                        count=len(new),
                        capacities=self.capacities[row],
                    )
                )
        if not any(self.lengths[row] for row in ids):
            return self._sound(self._prefill(ids, full))
        steps = max(map(len, ids.values()))
        assert all(len(new) == steps for new in ids.values())
        rows = ({row: new[i] for row, new in ids.items()} for i in range(steps))
        return [self._sound(self._step(tokens, full)) for tokens in rows][-1]

    def _prefill(self, ids: Mapping[int, Sequence[int]], full: bool, states: int = 0) -> list[int]:
        rows = [(row, position) for row, new in ids.items() for position in range(len(new))]
        batch = _rows(list(ids), rows, [token for new in ids.values() for token in new], self._cache)
        for row, new in ids.items():
            self.lengths[row] = len(new)
        extent, scratch = self._room(list(ids), len(rows))
        output = full, self._logits.data_ptr(), states, self._ids, scratch.data_ptr(), extent
        self._kernels.prefill(self._engine.network, batch.record, *output)
        return self._ids[: len(ids)]

    def _step(self, tokens: Mapping[int, int], full: bool) -> list[int]:
        """One token of each sequence, so many sequences at a time as the kernels take."""
        found: list[int] = []
        sequences, most = list(tokens), self._most_rows
        for first in range(0, len(sequences), most):
            own = sequences[first : first + most]
            step = self._prepared(first, own)
            for i, row in enumerate(own):
                step.rows.tokens[i], step.rows.positions[i] = tokens[row], self.lengths[row]
                self.lengths[row] += 1
            self._kernels.decode(self._engine.network, step.rows.record, full, *step.output)
            found += self._ids[: len(own)]
        return found

    def _prepared(self, first: int, own: list[int]) -> "_Step":
        """The step of these sequences, the same one as long as they go on: to make it takes longer than a thread waits awake."""
        step, threads = self._steps.get(first), torch.get_num_threads()
        if step is None or step.sequences != own or step.threads != threads:
            rows = _rows(own, [(row, 0) for row in own], [0] * len(own), self._cache)
            extent, scratch = self._room(own, len(own))
            output = self._logits[first:].data_ptr(), self._ids, scratch.data_ptr(), extent, self._profile
            step = self._steps[first] = _Step(own, threads, rows, output, scratch)
        return step

    def _sound(self, found: list[int]) -> list[int]:
        """The ids that the kernels chose; where no logit is a number there is none."""
        if min(found) >= 0:
            return found
        if self._engine.slot_dtype == torch.float16:
            raise CheckpointError(
                "no logit of the model is a number: its weights hold NaN, its activations overflow, or its keys and "
                "values do, for which float16 reaches to 65504: set cache_dtype to bfloat16 or auto."
            )
        raise CheckpointError(
            "no logit of the model is a number: its weights hold NaN or its activations overflow. "
            "Get the checkpoint again, or quantize again with another anti_outlier."
        )

    def _cache(self, row: int) -> Cache:
        keys, values = (slots.data_ptr() for slots in self._slots[row])
        return Cache(keys, values, self.capacities[row])

    def _room(self, sequences: Sequence[int], rows: int) -> tuple[Extent, Tensor]:
        """Sizes of a call, and scratch for all that the caches can hold."""
        capacities = [self.capacities[row] for row in sequences]
        parts = sum(-(-capacity // self._kernels.part_positions()) for capacity in capacities)
        extent = Extent(len(sequences), rows, max(capacities), parts, torch.get_num_threads())
        size = self._kernels.scratch_bytes(self._engine.network, extent)
        return extent, torch.empty(size, dtype=torch.uint8)


class EngineRun:
    """One sequence: its cache, and where it stands."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self._batch = EngineBatch(engine, [capacity])

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self._batch.lengths[0]

    @property
    def slots(self) -> Tensor:
        """Keys and values as the kernels lay them out, `[2, layer, kv_heads, capacity, head_dim]` in bytes."""
        return self._batch._slots[0]

    def best(self, ids: Sequence[int]) -> int:
        """The id of the largest logit after `ids`, which follow those given before."""
        return self._batch.best({0: ids})[0]

    def logits(self, ids: Sequence[int]) -> Tensor:
        """All logits `[1, vocab]` after `ids`, which follow those given before; overwritten by the next call."""
        return self._batch.logits({0: ids})

    def profile(self) -> dict[str, float]:
        """Seconds of all decode steps so far by what they went into, on the first thread."""
        return self._batch.profile()


@dataclass(frozen=True)
class _Rows:
    """A batch as the kernels read it, the tokens and positions of its rows, and what else it points to."""

    record: Batch
    tokens: Array[c_int64]
    positions: Array[c_int32]
    kept: tuple[object, ...]


@dataclass(frozen=True)
class _Step:
    """A call of `decode` for one token of each of `sequences`, whose tokens and positions are written anew each time."""

    sequences: list[int]
    threads: int
    rows: _Rows
    output: tuple[object, ...]
    scratch: Tensor


def _rows(
    sequences: Sequence[int],
    rows: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    cache: Callable[[int], Cache],
) -> _Rows:
    """`rows`: sequence and position of each of `tokens`, sequence by sequence."""
    place = {row: index for index, row in enumerate(sequences)}
    caches = (Cache * len(sequences))(*map(cache, sequences))
    ids = (c_int64 * len(rows))(*tokens)
    sequence = (c_int32 * len(rows))(*(place[row] for row, _ in rows))
    position = (c_int32 * len(rows))(*(position for _, position in rows))
    ends = {row: index for index, (row, _) in enumerate(rows)}
    last = (c_int32 * len(sequences))(*(ends[row] for row in sequences))
    addresses = (addressof(part) for part in (ids, sequence, position, last))
    record = Batch(len(sequences), len(rows), caches, *addresses)
    return _Rows(record, ids, position, (caches, sequence, last))

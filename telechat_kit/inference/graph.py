"""Decode as a captured graph: one step whose shapes and addresses never change, recorded once and then replayed.

The position is a value on the device, not a length: keys are stored and tables are looked up by it, and attention sees
the whole cache through a mask made from it. Nothing in a step is calculated on the host.
"""

from collections.abc import Sequence
from math import isnan

import torch
from torch import Tensor

from telechat_kit.backends import backend_for
from telechat_kit.errors import ParameterError
from telechat_kit.inference.network_run import NetworkRun
from telechat_kit.messages import Message
from telechat_kit.model.network import TelechatBlock, TelechatForCausalLM

#: How a decode step is given to the device: operator by operator, or as a graph captured once for each run
GRAPHS = ("none", "capture")


class _Positioned:
    """A cache `[layer, 2, B, kv_heads, capacity, d]` for the network, written at a position that the device knows."""

    def __init__(self, slots: Tensor, position: Tensor) -> None:
        self._slots, self._position = slots, position

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store `[B, kv_heads, 1, d]` at the position; give keys and values of all positions, filled or not."""
        keys, values = self._slots[layer]
        return keys.index_copy_(2, self._position, key), values.index_copy_(2, self._position, value)


class StaticStep:
    """One token through the network on top of a preallocated cache: reads `token` and `position`, writes `logits`."""

    def __init__(self, model: TelechatForCausalLM, slots: Tensor) -> None:
        self._model, self._slots = model, slots
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=slots.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=slots.device)
        self.logits = torch.empty(1, model.config.vocab_size, dtype=slots.dtype, device=slots.device)
        self._every = torch.arange(slots.shape[-2], device=slots.device)
        self._tables = model.transformer.rotary.rows(0, slots.shape[-2], slots)

    def __call__(self) -> Tensor:
        """Run the step; the position must be one that the cache has room for."""
        network, x = self._model.transformer, self._model.transformer.word_embeddings(self.token)
        if self._model.config.embed_layernorm:
            x = network.word_embeddings_layernorm(x)
        cos, sin = (table.index_select(0, self.position) for table in self._tables)
        past, mask = _Positioned(self._slots, self.position), self._mask(x.dtype)
        normed = network.normed(x, (cos, sin), mask, past)
        return self.logits.copy_(self._model.lm_head(normed)[:, -1])

    def _mask(self, dtype: torch.dtype) -> Tensor:
        """Additive mask `[1, 1, 1, capacity]` that hides what comes after the position."""
        hidden = (self._every > self.position)[None, None, None]
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)


class GraphRun:
    """One sequence through the network: prompts go as in `run`, single tokens through the captured graph.

    Raises:
        DeviceError: device or release captures no graphs.
        ParameterError: several devices share the model, or the capacity goes past the trained length, where every
            step has tables of its own.
    """

    def __init__(self, run: NetworkRun) -> None:
        model, capacity = run.model, run.cache.capacity
        require_graph("capture", shared=_heads_here(model) != model.config.n_head)
        if capacity > (longest := model.config.training_seqlen):
            raise ParameterError(
                'graph "capture" goes up to the trained length of {longest} positions, not {capacity}: beyond it '
                "every token changes the rotary tables. Use graph: none, or shorter prompts and answers.",
                longest=longest,
                capacity=capacity,
            )
        self._run, self._step = run, StaticStep(model, run.cache.slots)
        self._replay = backend_for(model.device.type).capture(self._step)

    def best(self, ids: Sequence[int]) -> int:
        """The id of the largest logit after `ids`, which follow those given before."""
        return int(self.logits(ids).argmax())

    def logits(self, ids: Sequence[int]) -> Tensor:
        """All logits `[1, vocab]` after `ids`, which follow those given before; overwritten by the next call."""
        cache = self._run.cache
        if len(ids) > 1 or cache.length == 0:
            return self._run.logits(ids)
        if cache.length == cache.capacity:
            raise ValueError(
                Message(
                    "{length} + 1 positions do not fit into {capacity}",
                    length=cache.length,
                    capacity=cache.capacity,
                )
            )
        self._step.token.fill_(ids[0])
        self._step.position.fill_(cache.length)
        self._replay()
        if isnan(float(self._step.logits[0, 0])):
            self._repair()
        cache.length += 1
        return self._step.logits

    def _repair(self) -> None:
        """The step again, its operators watched; those that make NaN are replaced in a new graph."""
        backend = backend_for(self._step.logits.device.type)
        before = backend.operations.set_aside()
        backend.operations.repaired(self._step)
        if backend.operations.set_aside() != before:
            self._replay = backend.capture(self._step)


def _heads_here(model: TelechatForCausalLM) -> int:
    block = model.transformer.h[0]
    assert isinstance(block, TelechatBlock)
    return block.self_attention.n_head


def require_graph(graph: str, shared: bool = False) -> None:
    """Refuse a `graph` that the kit does not know, or one of a model that several devices share.

    Raises:
        ParameterError: as said.
    """
    if graph not in GRAPHS:
        raise ParameterError(
            'graph "{graph}" is unknown. Use one of {graphs}.', graph=graph, graphs=", ".join(GRAPHS)
        )
    if graph != "none" and shared:
        raise ParameterError(
            'graph "{graph}" is for one device, several share the model here. Use graph: none.', graph=graph
        )

"""One sequence through the network's modules, and the preallocated cache of keys and values that it fills."""

from collections.abc import Callable, Sequence
from math import isnan

import torch
from torch import Tensor

from telechat_kit.backends import backend_for
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.network import TelechatBlock, TelechatForCausalLM


class PreallocatedCache:
    """Keys and values of one sequence batch, `[layer, 2, B, kv_heads, capacity, d]`, allocated once.

    It offers what the network uses of transformers' `Cache`.
    """

    def __init__(
        self, config: TelechatConfig, batch: int, capacity: int, like: Tensor, heads: int | None = None
    ) -> None:
        """`heads`: how many of the model's key/value heads are here, if the others are on other devices."""
        shape = (config.n_layer, 2, batch, heads or config.kv_heads, capacity, config.head_dim)
        # an operator that is given whole slots may multiply what is not filled by shares of 0: it must be finite
        self.slots = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.length = 0
        self.token_ids: Tensor | None = None

    @classmethod
    def of(cls, model: TelechatForCausalLM, batch: int, capacity: int) -> "PreallocatedCache":
        """A cache for `model`, or for the part of it that is here."""
        block = model.transformer.h[0]
        assert isinstance(block, TelechatBlock)
        like = model.get_input_embeddings().weight
        return cls(model.config, batch, capacity, like, block.self_attention.kv_heads)

    @property
    def capacity(self) -> int:
        """Number of positions that there is room for."""
        return self.slots.shape[-2]

    def get_seq_length(self) -> int:
        """Number of positions filled in all layers."""
        return self.length

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store `[B, kv_heads, T, d]` behind the filled positions of `layer`; give all of its keys and values."""
        stop = self.length + key.shape[2]
        keys, values = self.slots[layer, 0, :, :, :stop], self.slots[layer, 1, :, :, :stop]
        keys[:, :, self.length :], values[:, :, self.length :] = key, value
        if layer == len(self.slots) - 1:
            self.length = stop
        return keys, values

    def crop(self, remove: int) -> None:
        """Forget the last `-remove` positions (negative, as in transformers)."""
        self.length += remove


class NetworkRun:
    """One sequence through the network's modules, on any device. `EngineRun` offers the same."""

    def __init__(self, model: TelechatForCausalLM, capacity: int) -> None:
        self.model = model
        self.cache = PreallocatedCache.of(model, 1, capacity)

    def best(self, ids: Sequence[int]) -> int:
        """The id of the largest logit after `ids`, which follow those given before."""
        step = self._step(ids)
        logits = step()
        best = logits.argmax()  # started before anybody waits for the logits
        sound = without_nan(self.model, logits, step)
        return int(best if sound is logits else sound.argmax())

    def logits(self, ids: Sequence[int]) -> Tensor:
        """All logits `[1, vocab]` after `ids`, which follow those given before."""
        step = self._step(ids)
        return without_nan(self.model, step(), step)

    def _step(self, ids: Sequence[int]) -> Callable[[], Tensor]:
        return logits_behind(self.model, self.cache, torch.tensor([ids], device=self.model.device))


def logits_behind(
    model: TelechatForCausalLM, cache: PreallocatedCache, ids: Tensor, mask: Tensor | None = None
) -> Callable[[], Tensor]:
    """A step that gives the logits `[B, vocab]` after `ids [B, T]`, from where the cache is now, however often it is asked."""
    start, known = cache.length, cache.token_ids

    def step() -> Tensor:
        cache.length, cache.token_ids = start, known
        found = model(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        logits: Tensor = found.logits[:, -1]
        return logits

    return step


def without_nan(model: TelechatForCausalLM, found: Tensor, step: Callable[[], Tensor]) -> Tensor:
    """`found [rows, size]`, the result of `step`; if a row of it is NaN, what the step gives with its operators watched.

    An operator that makes NaN is then replaced. Norm and head read all of a state, so NaN is in all of its row or none.
    """
    if not bool(found[:, 0].isnan().any() if len(found) > 1 else isnan(float(found[0, 0]))):
        return found
    return backend_for(model.device.type).operations.repaired(step)

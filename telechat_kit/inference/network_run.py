"""One sequence through the network's modules, and the preallocated cache of keys and values that it fills."""

from collections.abc import Sequence

import torch
from torch import Tensor

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
        return int(self.logits(ids).argmax())

    def logits(self, ids: Sequence[int]) -> Tensor:
        """All logits `[1, vocab]` after `ids`, which follow those given before."""
        step = torch.tensor([ids], device=self.model.device)
        return self.model(step, past_key_values=self.cache, logits_to_keep=1).logits[:, -1]

"""A process that holds one part of a model and does what the first process of its team does.

    python -m telechat_kit.parallel.follower

It reads messages from its standard input until that is closed, so it never outlives the process that started it.
"""

import os
import pickle
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from transformers.cache_utils import DynamicCache

from telechat_kit.backends import backend_for, resolve_device
from telechat_kit.errors import KitError
from telechat_kit.inference.network_run import PreallocatedCache
from telechat_kit.inference.parallel.group import join_group
from telechat_kit.inference.parallel.messages import Done, Forget, Join, Load, Start, Step
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.sharding import Shard


class Follower:
    """The models of one process, and the caches of what runs through them."""

    def __init__(self, device: str, shard: Shard) -> None:
        self.device, self.shard = device, shard
        self.models: dict[int, TelechatForCausalLM] = {}
        self.caches: dict[int, Any] = {}

    def obey(self, message: object) -> Done | None:
        """Do what `message` says; the answer if it wants one."""
        if isinstance(message, Load):
            return self._load(message)
        if isinstance(message, Join):
            message.join(self.models[message.model], self.shard)
            return Done()
        if isinstance(message, Step):
            self._step(message)
        if isinstance(message, Forget):
            self._forget(message)
        return None

    def _load(self, message: Load) -> Done:
        operations = backend_for(resolve_device(self.device).type).operations
        for name, ways in message.set_aside.items():
            for way, reason in ways.items():
                operations.use_slower(name, reason, way)
        try:
            self.models[message.model] = message.load(*message.arguments, self.device, self.shard)
        except KitError as error:
            return Done(str(error))
        return Done()

    @torch.inference_mode()
    def _step(self, message: Step) -> None:
        """Run the blocks on this part; what comes out is the same everywhere, and only the first process reads it."""
        model = self.models[message.model]
        cache = self._cache(message, model)
        if cache is not None and (beyond := cache.get_seq_length() - message.start) > 0:
            cache.crop(-beyond)
        model.transformer(
            input_ids=message.input_ids.to(model.device),
            attention_mask=message.attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )

    def _cache(self, message: Step, model: TelechatForCausalLM) -> Any:
        if message.cache is None:
            return None
        if message.cache not in self.caches:
            batch, capacity = len(message.input_ids), message.capacity
            self.caches[message.cache] = new_cache(model, batch, capacity)
        return self.caches[message.cache]

    def _forget(self, message: Forget) -> None:
        for number in message.models:
            self.models.pop(number, None)
        for number in message.caches:
            self.caches.pop(number, None)


def new_cache(model: TelechatForCausalLM, batch: int, capacity: int | None) -> Any:
    """A cache like the one of the first process: preallocated, or transformers' growing one."""
    return DynamicCache() if capacity is None else PreallocatedCache.of(model, batch, capacity)


def follow(source: BinaryIO, answer: Callable[[Done], None]) -> None:
    """Obey the messages of `source` until it is closed."""
    start: Start = pickle.load(source)
    torch.set_num_threads(start.threads)
    device = start.devices[start.rank]
    answer(Done())
    follower = Follower(device, join_group(start.devices, start.rank, start.port))
    while True:
        try:
            message = pickle.load(source)
        except EOFError:
            return
        answered = follower.obey(message)
        if answered is not None:
            answer(answered)


def main() -> None:
    """Obey standard input. What libraries print must not come between the answers: it goes to standard error."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)

        def answer(message: Done) -> None:
            pickle.dump(message, answers)
            answers.flush()

        try:
            follow(sys.stdin.buffer, answer)
        except Exception as error:
            answer(Done(str(error) if isinstance(error, KitError) else f"{type(error).__name__}: {error}"))
            raise


if __name__ == "__main__":
    main()

"""The first process of a team: it starts the others, loads with them, and hands every forward call on."""

import atexit
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import cache, partial
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from telechat_kit.backends import backend_for, require_device
from telechat_kit.errors import DeviceError
from telechat_kit.inference.network_run import PreallocatedCache
from telechat_kit.inference.parallel.group import join_group, leave_group, open_store
from telechat_kit.inference.parallel.messages import Done, Forget, Join, Load, Start, Step
from telechat_kit.messages import Message
from telechat_kit.model.network import TelechatForCausalLM


@cache
def team_of(devices: tuple[str, ...]) -> "Team":
    """The team of `devices` of this process, started at the first call; it ends with the process."""
    return Team(devices)


class Team:
    """One process for each of `devices`, this one for the first. A process can be in one team at a time.

    Raises:
        DeviceError: a device is not there, or the devices cannot work together.
    """

    def __init__(self, devices: tuple[str, ...]) -> None:
        if len({require_device(device)[0] for device in devices}) > 1:
            raise DeviceError(
                "{devices}: only devices of one kind can share a model.", devices=", ".join(devices)
            )
        if dist.is_initialized():
            raise DeviceError(
                "this process shares its models over other devices than {devices} already. Start another one.",
                devices=", ".join(devices),
            )
        self.devices, self._numbers = devices, count()
        self._models: list[int] = []  # given up, and not yet told
        self._caches: list[int] = []
        self._cache_numbers: weakref.WeakKeyDictionary[Cache | PreallocatedCache, int] = (
            weakref.WeakKeyDictionary()
        )
        store = open_store(len(devices))
        self._others = [_start() for _ in devices[1:]]
        atexit.register(self.close)
        threads = max(1, torch.get_num_threads() // len(devices))
        for rank, other in enumerate(self._others, start=1):
            _send(other, Start(devices, rank, store.port, threads))
        self._require_answers()
        self.shard = join_group(devices, 0, store.port, store)

    def load(
        self,
        load: Callable[..., TelechatForCausalLM],
        join: Callable[..., None],
        *arguments: Any,
    ) -> TelechatForCausalLM:
        """The model of `load(*arguments, device, shard)` in every process, brought together by `join(model, shard)`.

        Raises:
            DeviceError: a part could not be loaded, with its process's message.
        """
        number = next(self._numbers)
        self._tell_forgotten()
        aside = backend_for(require_device(self.devices[0])[0]).operations.set_aside()
        self._tell(Load(number, load, arguments, aside))
        try:
            model = load(*arguments, self.devices[0], self.shard)
        finally:
            problem = self._answers()
        if problem:
            raise DeviceError(problem)
        self._tell(Join(number, join))
        join(model, self.shard)
        self._require_answers()
        model.transformer.register_forward_pre_hook(partial(self._hand_on, number), with_kwargs=True)
        weakref.finalize(model, self._models.append, number)
        return model

    def _hand_on(
        self, number: int, _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a forward call of the blocks: tell the others to make it too."""
        ids, past = args[0] if args else options.get("input_ids"), options.get("past_key_values")
        if ids is None:
            raise DeviceError(
                "{devices}: a model on several devices takes token ids only.", devices=", ".join(self.devices)
            )
        if options.get("position_ids") is not None or getattr(past, "is_compileable", False):
            raise DeviceError(
                "{devices}: a model on several devices takes no position_ids and no static cache.",
                devices=", ".join(self.devices),
            )
        if past is None and options.get("use_cache") is not False:
            past = DynamicCache()
            options = {**options, "past_key_values": past}
        self._tell_forgotten()
        mask = options.get("attention_mask")
        self._tell(
            Step(
                model=number,
                input_ids=ids.cpu(),
                attention_mask=None if mask is None else mask.cpu(),
                cache=None if past is None else self._number_of(past),
                capacity=past.capacity if isinstance(past, PreallocatedCache) else None,
                start=0 if past is None else past.get_seq_length(),
            )
        )
        return args, options

    def _number_of(self, past: Cache | PreallocatedCache) -> int:
        if past not in self._cache_numbers:
            self._cache_numbers[past] = number = next(self._numbers)
            weakref.finalize(past, self._caches.append, number)
        return self._cache_numbers[past]

    def _tell_forgotten(self) -> None:
        if self._models or self._caches:
            message = Forget(tuple(self._models), tuple(self._caches))
            del self._models[: len(message.models)], self._caches[: len(message.caches)]
            self._tell(message)

    def _tell(self, message: object) -> None:
        for other in self._others:
            _send(other, message)

    def _require_answers(self) -> None:
        if problem := self._answers():
            self.close()
            raise DeviceError(problem)

    def _answers(self) -> str:
        """What went wrong in the other processes, each of which answers once; empty if nothing did."""
        problems = [
            (device, _answer(other)) for device, other in zip(self.devices[1:], self._others, strict=True)
        ]
        return "; ".join(f"{device}: {problem}" for device, problem in problems if problem)

    def close(self) -> None:
        """End the other processes; the models of this team cannot be used any more."""
        for other in self._others:
            other.kill()
            other.wait()
        leave_group()
        atexit.unregister(self.close)


def _start() -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "telechat_kit.inference.parallel.follower"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _send(process: "subprocess.Popen[bytes]", message: object) -> None:
    assert process.stdin is not None
    try:
        pickle.dump(message, process.stdin)
        process.stdin.flush()
    except BrokenPipeError as error:
        raise DeviceError(
            "a process that holds a part of the model is gone: {answer}", answer=_answer(process)
        ) from error


def _answer(process: "subprocess.Popen[bytes]") -> str:
    """The problem that a process tells; empty if all went well there."""
    assert process.stdout is not None
    try:
        answer: Done = pickle.load(process.stdout)
    except EOFError:
        return Message("ended with {wait} and without a word", wait=process.wait())
    return answer.error

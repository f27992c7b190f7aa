"""What a model needs of a device's memory, from its shapes: before it is loaded, and said when it was too much."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from telechat_kit.backends import Backend, backend_for
from telechat_kit.backends.data_sheets import SHEETS, DataSheet
from telechat_kit.backends.failures import is_lost, is_out_of_memory
from telechat_kit.errors import DeviceError
from telechat_kit.messages import Message
from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.sharding import Shard

#: A model that leaves no room for the cache of so many tokens is not worth loading
LEAST_CONTEXT = 1024
#: What a linear keeps for each output besides its int8 weight: bias int32, scale float32, the operator's int64 scale
BYTES_PER_OUTPUT = 4 + 4 + 8

#: Operators that one NPU starts for a token in each block, by whether linears are int8, and besides: `inference.launches` counts them
LAUNCHES_PER_BLOCK, LAUNCHES_BESIDES = {False: 12, True: 16}, 7
#: An assumption, to set beside what is measured: nobody has told the time to start an operator on a 310P
ASSUMED_LAUNCH_SECONDS = 20e-6

#: Shapes of the published models
TELECHAT = {
    "TeleChat-7B": TelechatConfig(vocab_size=160256, hidden_size=4096, n_layer=30, ffn_hidden_size=12288),
    "TeleChat-12B": TelechatConfig(
        vocab_size=120000, hidden_size=5120, n_layer=38, ffn_hidden_size=12288, tie_word_embeddings=False
    ),
}


@dataclass(frozen=True)
class Needs:
    """Bytes of a model: its weights, those read for every token, and what one token adds to the cache."""

    weight_bytes: int
    read_bytes_per_token: int
    cache_bytes_per_token: int

    def bytes_for(self, tokens: int) -> int:
        """Weights and the cache of one sequence of `tokens`."""
        return self.weight_bytes + tokens * self.cache_bytes_per_token

    def tokens_per_second(self, bandwidth: float, context: int = 0) -> float:
        """Fastest possible decode with `context` tokens in the cache: every byte is read once for a token."""
        return bandwidth / (self.read_bytes_per_token + context * self.cache_bytes_per_token)


def needs(config: TelechatConfig, w8a8: bool, float_bytes: int = 2, devices: int = 1) -> Needs:
    """Needs of a model of these shapes; `w8a8` means all linears but the head in int8, else in float.

    Those of each device, where `devices` share the model: they split the linears and the cache, and each has
    embedding, norms and head.
    """
    hidden, own, wide = config.hidden_size, config.hidden_size // devices, config.ffn_hidden_size // devices
    shared = len(Shard(0, devices).kv_heads(config)) * config.head_dim
    # query, key and value, dense, gate_proj, up_proj, down_proj: [out, in]
    linears = [(own, hidden), (2 * shared, hidden), (hidden, own)]
    linears += [(wide, hidden), (wide, hidden), (hidden, wide)]
    elements, outputs = sum(out * size for out, size in linears), sum(out for out, _ in linears)
    biases = 0 if isinstance(config, Telechat3Config) else 2 * hidden
    block = elements + outputs * BYTES_PER_OUTPUT if w8a8 else (elements + biases) * float_bytes
    norms = (2 * config.n_layer + 1) * hidden * float_bytes
    embedding = config.vocab_size * hidden * float_bytes
    read = config.n_layer * block + norms + embedding  # one of both tables: the head
    looked_up = 0 if config.tie_word_embeddings else embedding
    return Needs(read + looked_up, read, 2 * config.n_layer * shared * float_bytes)


def require_room(
    config: TelechatConfig, w8a8: bool, dtype: torch.dtype, device: torch.device, devices: int = 1
) -> None:
    """Refuse a model whose part cannot fit into what is free on `device`; the CPU may swap and is not asked.

    Raises:
        DeviceError: with the bytes needed and those free.
    """
    if device.type == "cpu":
        return
    backend, model = backend_for(device.type), needs(config, w8a8, dtype.itemsize, devices)
    needed, free = model.bytes_for(LEAST_CONTEXT), backend.free_memory_bytes()
    if needed > free:
        kind = "W8A8" if w8a8 else str(dtype).removeprefix("torch.")
        part = "its" if devices == 1 else Message("each of {devices} parts of its", devices=devices)
        raise DeviceError(
            "the model does not fit: {part} {kind} weights take {weight_bytes:.2f} GB and the cache of "
            "{least_context} tokens {needed:.2f} GB, {free:.2f} GB are free on {device_name}. End other "
            "programs there, use W8A8 instead of float weights, a larger card, or several as in device: "
            "{type}:0,{type}:1.",
            part=part,
            kind=kind,
            weight_bytes=model.weight_bytes / 1e9,
            least_context=LEAST_CONTEXT,
            needed=(needed - model.weight_bytes) / 1e9,
            free=free / 1e9,
            device_name=backend.device_name(),
            type=device.type,
        )


@contextlib.contextmanager
def explained(case: str, backend: Backend) -> Iterator[None]:
    """Turn an error of a device into one that says what to do: too little memory for `case`, or a device that is lost.

    Raises:
        DeviceError: in place of the device's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if is_lost(error) and not is_out_of_memory(error):
            raise backend.operations.lost(error) from error
        if not is_out_of_memory(error):
            raise
        peak, free = backend.peak_memory_bytes(), backend.free_memory_bytes()
        raise DeviceError(
            "{case}: {device_name} is out of memory ({error}). This process held up to {peak:.2f} GB, "
            "{free:.2f} GB are free. Use a smaller case, or a card with more memory.",
            case=case,
            device_name=backend.device_name(),
            error=str(error).splitlines()[0],
            peak=peak / 1e9,
            free=free / 1e9,
        ) from error


@dataclass(frozen=True)
class Fit:
    """Whether and how a model fits `devices` like a card, which share it; bytes are those of each.

    `largest_context` is in tokens, 0 if not even the weights fit.
    """

    model: str
    precision: str
    devices: int
    weight_bytes: int
    cache_bytes_per_token: int
    largest_context: int
    limit_tokens_per_second: float
    #: operators started for a token; None where devices share the model, whose sums between them are not counted
    launches: int | None = None


def fits(card: DataSheet = SHEETS[0], devices: Sequence[int] = (1, 2)) -> list[Fit]:
    """The published models in float16 and W8A8 on `card`, batch 1; the longest context ends at the trained length.

    The limit is that of an empty cache, from the card's bandwidth; a longer context and the sums over devices lower it.

    Example:
        >>> [(row.model, row.precision, row.devices) for row in fits() if row.largest_context == 0]
        [('TeleChat-12B', 'float16', 1)]
    """
    return [
        _fit(name, precision, card, count)
        for count in devices
        for name in TELECHAT
        for precision in ("float16", "W8A8")
    ]


def _fit(name: str, precision: str, card: DataSheet, devices: int) -> Fit:
    config = TELECHAT[name]
    own = needs(config, precision == "W8A8", devices=devices)
    room = max(card.memory_bytes - own.weight_bytes, 0) // own.cache_bytes_per_token
    return Fit(
        name,
        precision,
        devices,
        own.weight_bytes,
        own.cache_bytes_per_token,
        min(room, config.training_seqlen),
        own.tokens_per_second(card.bandwidth),
        config.n_layer * LAUNCHES_PER_BLOCK[precision == "W8A8"] + LAUNCHES_BESIDES if devices == 1 else None,
    )

"""TeleChat's rotary tables: an NTK base and a log-length factor that depend on the length of the forward call."""

import math

import torch
from torch import Tensor

from telechat_kit.model.configuration import TelechatConfig


def ntk_alpha(length: int, config: TelechatConfig) -> float:
    """Growth of the rotary base for a call of `length` tokens: 1, 3, 7, 15 ... (TeleChat's published code)."""
    seen = max(length, config.training_seqlen)
    return max(2.0 ** math.ceil(math.log2(seen / config.ntk_base_context) + 1) - 1, 1.0)


def length_factor(length: int, config: TelechatConfig) -> float:
    """The factor on cos and sin: 1 up to the trained length, then 1 + 0.1 ln(length / trained length)."""
    ratio = max(length, config.training_seqlen) / config.training_seqlen
    return 1.0 if ratio <= 1 else 1.0 + 0.1 * math.log(ratio)


def rotary_tables(length: int, config: TelechatConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin `[max(length, training_seqlen), head_dim]`, float32 values rounded to `rope_table_dtype`.

    The published code rounds cos and sin to float16, multiplies by the length factor and rounds again,
    whatever the dtype of the model. Calculated on the CPU, so that every device gets the same tables.
    """
    dim, table_dtype = config.head_dim, getattr(torch, config.rope_table_dtype)
    base = config.rope_theta * ntk_alpha(length, config) ** (dim / (dim - 2))
    exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    rows = torch.arange(max(length, config.training_seqlen), dtype=torch.float32)
    angle = torch.outer(rows, 1.0 / base**exponent).repeat(1, 2)
    factor = length_factor(length, config)
    cos, sin = ((table.to(table_dtype) * factor).float() for table in (angle.cos(), angle.sin()))
    return cos.to(device), sin.to(device)


class Rotary:
    """Tables for the calls of one model. Up to the trained length they are the same and built once."""

    def __init__(self, config: TelechatConfig) -> None:
        self.config = config
        self._key: tuple[int, torch.device, torch.dtype] | None = None
        self._tables: tuple[Tensor, Tensor] | None = None

    def rows(self, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin `[stop - start, head_dim]` for the slots `start .. stop` of a sequence of `stop` tokens."""
        dtype = torch.float16 if like.dtype == torch.float16 else torch.float32
        key = (max(stop, self.config.training_seqlen), like.device, dtype)
        if self._tables is None or self._key != key:
            cos, sin = rotary_tables(stop, self.config, like.device)
            self._key, self._tables = key, (cos.to(dtype), sin.to(dtype))
        cos, sin = self._tables
        return cos[start:stop], sin[start:stop]

"""The family's rotary tables.

TeleChat and TeleChat2 have an NTK base and a log-length factor that depend on the length of the sequence at the
call, TeleChat3 a yarn of its own that does not.
"""

import math

import torch
from torch import Tensor

from telechat_kit.model.configuration import Telechat3Config, TelechatConfig


def ntk_alpha(length: int, config: TelechatConfig) -> float:
    """Growth of the rotary base for a call of `length` tokens: 1, 3, 7, 15 ... (TeleChat's published code)."""
    seen = max(length, config.training_seqlen)
    return max(2.0 ** math.ceil(math.log2(seen / config.ntk_base_context) + 1) - 1, 1.0)


def length_factor(length: int, config: TelechatConfig) -> float:
    """The factor on cos and sin: 1 up to the trained length, then 1 + 0.1 ln(length / trained length)."""
    ratio = max(length, config.training_seqlen) / config.training_seqlen
    return 1.0 if ratio <= 1 else 1.0 + 0.1 * math.log(ratio)


def yarn_factor(config: Telechat3Config) -> float:
    """TeleChat3's factor on cos and sin: 0.07 ln(ratio) + 1, where the common yarn has 0.1."""
    yarn, ratio = config.rope_scaling, config.yarn_ratio
    if yarn.get("attention_factor") is not None:
        return float(yarn["attention_factor"])
    strengths = yarn.get("mscale"), yarn.get("mscale_all_dim")
    one, all_dim = strengths if all(strengths) else (1.0, 0.0)

    def grown(strength: float) -> float:
        return 0.07 * strength * math.log(max(ratio, 1.0)) + 1.0

    return grown(one) / grown(all_dim)


def yarn_frequencies(config: Telechat3Config) -> Tensor:
    """float32 `[head_dim / 2]`: high frequencies as trained, low ones divided by the ratio, a ramp in between."""
    dim, yarn = config.head_dim, config.rope_scaling
    trained = yarn["original_max_position_embeddings"]

    def index(rotations: float) -> float:
        """Of the frequency that turns so often over the trained length."""
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(index(yarn.get("beta_fast") or 32)), 0)
    high = min(math.ceil(index(yarn.get("beta_slow") or 1)), dim - 1)
    width = max(high - low, 0.001)  # as in the common code: no division by zero
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    periods = config.rope_theta ** _exponents(dim)
    kept = 1 - ramp
    return 1.0 / (config.yarn_ratio * periods) * (1 - kept) + 1.0 / periods * kept


def rotary_tables(
    length: int, config: TelechatConfig, device: torch.device, rows: slice | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin `[max(length, training_seqlen), head_dim]`, or some `rows` of them, for a call of `length` tokens.

    TeleChat's published code rounds cos and sin to float16, multiplies by the length factor and rounds again,
    whatever the dtype of the model; here it is `rope_table_dtype`. All are calculated on the CPU, so that every
    device gets the same ones.
    """
    positions = torch.arange(max(length, config.training_seqlen), dtype=torch.float32)[rows or slice(None)]
    cos, sin = tables_at(positions, length, config)
    return cos.to(device), sin.to(device)


def tables_at(positions: Tensor, length: int, config: TelechatConfig) -> tuple[Tensor, Tensor]:
    """float32 cos and sin `[..., head_dim]` of float32 `positions [...]` in a call of `length` tokens."""
    if isinstance(config, Telechat3Config):
        frequencies, factor, table_dtype = yarn_frequencies(config), yarn_factor(config), torch.float32
    else:
        dim, table_dtype = config.head_dim, getattr(torch, config.rope_table_dtype)
        base = config.rope_theta * ntk_alpha(length, config) ** (dim / (dim - 2))
        frequencies, factor = 1.0 / base ** _exponents(dim), length_factor(length, config)
    half = positions[..., None] * frequencies.to(positions.device)
    angle = torch.cat((half, half), dim=-1)
    cos, sin = ((table.to(table_dtype) * factor).float() for table in (angle.cos(), angle.sin()))
    return cos, sin


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.float32) / dim


class Rotary:
    """Tables for the calls of one model. Up to the trained length they are the same and built once."""

    def __init__(self, config: TelechatConfig) -> None:
        self.config = config
        self._key: tuple[int, torch.device, torch.dtype] | None = None
        self._tables: tuple[Tensor, Tensor] | None = None

    def tables(self, start: int | Tensor, x: Tensor, position_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """cos and sin for the new positions `x [B, T, H]` behind `start` others: `[T, d]`, or `[B, 1, T, d]` of `position_ids`."""
        if position_ids is None and isinstance(start, int):
            return self.rows(start, start + x.shape[1], x)
        if position_ids is None:
            position_ids = (torch.arange(x.shape[1], device=x.device) + start)[None]
        longest = self.config.training_seqlen
        if not torch.compiler.is_compiling():
            longest = max(longest, int(position_ids.max()) + 1)
        elif not isinstance(self.config, Telechat3Config):
            within = (
                "a compiled network is right up to the trained length only: its tables are made beforehand"
            )
            torch._assert_async((position_ids < longest).all(), within)
        dtype = self._dtype(x)
        cos, sin = tables_at(position_ids.to(torch.float32), longest, self.config)
        return cos.to(dtype)[:, None], sin.to(dtype)[:, None]

    def rows(self, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin `[stop - start, head_dim]` for the slots `start .. stop` of a sequence of `stop` tokens."""
        dtype = self._dtype(like)
        if start and stop > self.config.training_seqlen:  # a step whose tables no other one has
            cos, sin = rotary_tables(stop, self.config, like.device, slice(start, stop))
            return cos.to(dtype), sin.to(dtype)
        key = (max(stop, self.config.training_seqlen), like.device, dtype)
        if self._tables is None or self._key != key:
            cos, sin = rotary_tables(stop, self.config, like.device)
            self._key, self._tables = key, (cos.to(dtype), sin.to(dtype))
        cos, sin = self._tables
        return cos[start:stop], sin[start:stop]

    def _dtype(self, like: Tensor) -> torch.dtype:
        """TeleChat multiplies with wider tables than bfloat16, TeleChat3 in the dtype of the model."""
        if isinstance(self.config, Telechat3Config):
            return like.dtype
        return torch.float16 if like.dtype == torch.float16 else torch.float32

"""Attention and rotary embedding of the NPU backend: each in the forms that chip and release have.

Prompts and single tokens have operators of their own. Both read whole, contiguous tensors: a 310P wants prompts padded
with zeros, and keys and values of a single token are handed over as the whole slot of the cache with its length, since a
slice of it would be copied for every token.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from telechat_kit.backends import plain
from telechat_kit.backends.npu.chips import LEAST_PROMPT, PAIR_HEAD_DIMS, PAIR_HEADS, ROTARY_HEAD_DIM
from telechat_kit.backends.npu.forms import PLAIN, Way, form
from telechat_kit.backends.npu.runtime import current_chip, has, operator

#: Size of the fixed causal mask that sparse_mode 2 of the attention operators takes
TRIANGLE = 2048
_ALL_TOKENS = 2**31 - 1
#: What CANN calls npu_prompt_flash_attention
_PROMPT_KERNELS = ("PromptFlashAttention",)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `query [B, heads, T, d]` over `key` and `value [B, kv_heads, S, d]`, scaled by 1/sqrt(d).

    `mask` as in `plain.attention`. With one, the slower way is taken: what the operators give for a row that may
    see nothing is not documented, and such rows (padding) must stay finite.
    """
    if mask is not None:
        return plain.attention_in_products(query, key, value, mask)
    own = decode_attention if query.shape[2] == 1 else prompt_attention
    mixed: Tensor = own(query, key, value)
    return mixed


def _padded_prompt(multiple: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """With zeros up to a multiple of `multiple`: a masked key still multiplies its value by 0, so nothing else will do."""
    length = query.shape[2]
    more = max(LEAST_PROMPT, -(-length // multiple) * multiple) - length
    query, key, value = (functional.pad(part, (0, 0, 0, more)) for part in (query, key, value))
    mask = _hidden(length + more, query.device)
    return _prompt(query, key, value, mask)[:, :, :length]


def _triangular_prompt(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _prompt(query, key, value, _hidden(TRIANGLE, query.device), sparse_mode=2)


def _prompt(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any) -> Tensor:
    # the operator of a 310P knows no groups
    key, value = (plain.expanded(shared, query.shape[1]).contiguous() for shared in (key, value))
    mixed: Tensor = operator("npu_prompt_flash_attention")(
        query.contiguous(),
        key,
        value,
        atten_mask=mask,
        pre_tokens=_ALL_TOKENS,
        next_tokens=0,
        **options,
        **_attention_options(query),
    )
    return mixed


def _decode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    lengths = [key.shape[2]] * len(query)
    groups = {} if key.shape[1] == query.shape[1] else {"num_key_value_heads": key.shape[1]}
    mixed: Tensor = operator("npu_incre_flash_attention")(
        query.contiguous(),
        whole_slot(key),
        whole_slot(value),
        actual_seq_lengths=lengths,
        **groups,
        **_attention_options(query),
    )
    return mixed


def whole_slot(part: Tensor) -> Tensor:
    """The whole contiguous `[B, heads, capacity, d]` of which `part [B, heads, S, d]` is the front; else a copy of it.

    A slot of the cache is contiguous, its filled part is not, and only the strides tell how much there is behind it.
    """
    batch, heads, _, size = part.shape
    to_batch, to_head, to_row, to_value = part.stride()
    if part.is_contiguous() or to_value != 1 or to_row != size or to_head % size:
        return part.contiguous()
    capacity = to_head // size
    behind = part.storage_offset() + batch * heads * capacity * size
    fits = (
        batch == 1 or to_batch == heads * to_head
    ) and behind * part.element_size() <= part.untyped_storage().nbytes()
    if not fits:
        return part.contiguous()
    return part.as_strided((batch, heads, capacity, size), (heads * to_head, to_head, size, 1))


def _attention_options(query: Tensor) -> dict[str, Any]:
    return {
        "num_heads": query.shape[1],
        "scale_value": query.shape[-1] ** -0.5,
        "input_layout": "BNSD",
    }


@lru_cache(maxsize=8)
def _hidden(size: int, device: torch.device) -> Tensor:
    """Causal mask `[size, size]` of the attention operators: True where a key must not be seen."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)


def _prompt_fits(query: Tensor, key: Tensor, value: Tensor) -> bool:  # noqa: ARG001  (what a form is given)
    return query.shape[2] == key.shape[2] and current_chip().prompt_attention.allow(query, key)


def _decode_fits(query: Tensor, key: Tensor, value: Tensor) -> bool:  # noqa: ARG001
    return current_chip().decode_attention.allow(query, key)


def _prompt_is_there(multiple: int | None = None) -> bool:
    multiples = current_chip().prompt_multiples
    return has("npu_prompt_flash_attention") and (multiple in multiples if multiple else not multiples)


def _padded_way(multiple: int) -> Way:
    return Way(
        f"npu_prompt_flash_attention, padded to {multiple}",
        partial(_padded_prompt, multiple),
        partial(_prompt_is_there, multiple),
        _prompt_fits,
        _PROMPT_KERNELS,
    )


def _in_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return plain.attention_in_products(query, key, value, None)


prompt_attention = form(
    "prompt_attention",
    _padded_way(16),
    _padded_way(128),
    Way("npu_prompt_flash_attention", _triangular_prompt, _prompt_is_there, _prompt_fits, _PROMPT_KERNELS),
    Way(PLAIN, _in_products),
)
decode_attention = form(
    "decode_attention",
    Way(
        "npu_incre_flash_attention",
        _decode,
        lambda: has("npu_incre_flash_attention"),
        _decode_fits,
        ("IncreFlashAttention",),
    ),
    Way(PLAIN, _in_products),
)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of `query [B, heads, T, d]` and `key [B, kv_heads, T, d]` with tables `[T, d]`.

    Halves are split as in GPT-NeoX. Both may be overwritten.
    """
    both: tuple[Tensor, Tensor] = _rotate(query, key, cos, sin)
    return both


def _rotate_pair(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """In place, in the order `[B, T, heads, d]` that projections leave."""
    query, key = (part.transpose(1, 2).contiguous() for part in (query, key))
    tables = (table[None, :, None].expand(len(query), -1, -1, -1).contiguous() for table in (cos, sin))
    query, key = operator("npu_apply_rotary_pos_emb")(query, key, *tables)
    return query.transpose(1, 2), key.transpose(1, 2)


def _rotate_each(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    rotate_one: Callable[..., Tensor] = operator("npu_rotary_mul")
    return rotate_one(query, cos[None, None], sin[None, None]), rotate_one(
        key, cos[None, None], sin[None, None]
    )


def _pair_fits(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> bool:  # noqa: ARG001
    """One dtype, a head size of 64 or 128, 255 heads, and five times those of a token in a core's buffer (its tiling)."""
    size, count, chip = query.shape[-1], query.shape[1] + key.shape[1], current_chip()
    heads = count * size * (2 if query.dtype == torch.float16 else 4)
    tables = 6 * size * 4
    dtypes = query.dtype == key.dtype == cos.dtype and query.dtype in chip.dtypes
    sizes = size in PAIR_HEAD_DIMS and count <= PAIR_HEADS
    return dtypes and sizes and 5 * heads + tables <= chip.buffer_bytes


def _each_fits(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> bool:  # noqa: ARG001
    size = query.shape[-1]
    sizes = size % 2 == 0 and size <= ROTARY_HEAD_DIM and len(query) * query.shape[1] < 1000
    return sizes and query.dtype == cos.dtype and query.dtype in current_chip().dtypes


_rotate = form(
    "rotate",
    Way(
        "npu_apply_rotary_pos_emb",
        _rotate_pair,
        lambda: has("npu_apply_rotary_pos_emb"),
        _pair_fits,
        ("ApplyRotaryPosEmb",),
    ),
    Way(
        "npu_rotary_mul",
        _rotate_each,
        lambda: has("npu_rotary_mul"),
        _each_fits,
        ("RotaryPositionEmbedding", "RotaryMul"),
    ),
    Way(PLAIN, plain.rotate),
)

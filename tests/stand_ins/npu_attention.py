"""Stand-ins for attention and rotary embedding: in float32 on half-precision operands, shares rounded to half."""

from collections.abc import Sequence

import torch
from npu_chip import Chip, demand, floats, halves, to_half
from torch import Tensor

_ALL_TOKENS = 2**31 - 1
_UNIFIED_BUFFER = {True: 256 << 10, False: 192 << 10}  # bytes, by is_310p

_PROMPT = "ops-transformer attention/prompt_flash_attention/op_host/prompt_flash_attention_tiling.cpp"
_PROMPT_INNER = (
    "ops-transformer attention/prompt_flash_attention/op_host/op_api/aclnn_prompt_flash_attention_inner.cpp"
)
_DECODE = "ops-transformer attention/incre_flash_attention/op_host/incre_flash_attention_tiling_check.cpp"
_DECODE_DEF = "ops-transformer attention/incre_flash_attention/op_host/incre_flash_attention_def.cpp"
_ROTARY = "ops-transformer posembedding/apply_rotary_pos_emb/op_host/apply_rotary_pos_emb_tiling.cpp"
_ROTARY_MUL = "op-plugin op_plugin/ops/opapi/RotaryMulKernelNpuOpApi.cpp"
_ROTATE_HALF = "ops-transformer posembedding/rotary_position_embedding/op_host/rope_rotate_half_tiling.cpp"
_FROM_A_CARD = "reported from a card: an AI core exception, after which the process cannot use the device"


def npu_rotary_mul(x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half") -> Tensor:
    """x * r1 + cat(-second half, first half) * r2."""
    op, size = "npu_rotary_mul", x.shape[-1]
    compiled = "below soc 220 it takes the old way, documented with jit_compile=True only"
    demand(not Chip.is_310p(), op, compiled, _ROTARY_MUL)
    demand(
        rotary_mode == "half" and x.ndim == r1.ndim == r2.ndim == 4,
        op,
        "half mode on four axes only",
        _ROTATE_HALF,
    )
    same = x.dtype in floats() and r1.dtype == r2.dtype == x.dtype
    demand(same, op, f"{x.dtype} with tables {r1.dtype}", _ROTATE_HALF)
    demand(
        r1.shape == r2.shape and r1.shape[-1] == size, op, f"tables of shape {tuple(r1.shape)}", _ROTATE_HALF
    )
    demand(all(one in (1, own) for one, own in zip(r1.shape, x.shape, strict=True)), op, "tables do not fit")
    demand(sum(length > 1 for length in r1.shape[:-1]) <= 1, op, "tables must be 11SD, 1S1D or S11D")
    demand(size % 2 == 0 and size < 896, op, f"head size {size}", _ROTATE_HALF)
    return _rotated(x, r1, r2)


def npu_apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str = "BSND", rotary_mode: str = "half"
) -> tuple[Tensor, Tensor]:
    """Rotate query [B, S, N, D] and key [B, S, M, D] in place by tables [B, S, 1, D], and give both."""
    op, size = "npu_apply_rotary_pos_emb", query.shape[-1]
    tensors = (query, key, cos, sin)
    demand(layout == "BSND" and rotary_mode == "half", op, f"layout {layout}, mode {rotary_mode}", _ROTARY)
    demand(
        all(tensor.ndim == 4 and tensor.numel() for tensor in tensors), op, "four axes, not empty", _ROTARY
    )
    demand(
        query.dtype in floats() and all(t.dtype == query.dtype for t in tensors), op, "dtypes differ", _ROTARY
    )
    demand(cos.shape == sin.shape and cos.shape[2] == 1, op, f"tables of shape {tuple(cos.shape)}", _ROTARY)
    demand(
        key.shape[:2] == query.shape[:2] == cos.shape[:2], op, "B and S must be those of the query", _ROTARY
    )
    demand(key.shape[-1] == size == cos.shape[-1], op, "D must be that of the query", _ROTARY)
    demand(size in (64, 128), op, f"head size {size}, not 64 or 128", _ROTARY)
    count = query.shape[2] + key.shape[2]
    demand(count <= 255, op, f"qkcNum exceeds the maximum range of uint8_t: {count} heads", _ROTARY)
    wide = 4 if query.dtype != torch.float16 else 2
    rows = (query.shape[2] + key.shape[2]) * size * wide
    needed = 4 * rows if query.shape[0] * query.shape[1] <= 8 else 5 * rows  # up to one row for a core
    demand(
        needed < _UNIFIED_BUFFER[Chip.is_310p()], op, f"{needed} bytes do not fit a core's buffer", _ROTARY
    )
    return query.copy_(_rotated(query, cos, sin)), key.copy_(_rotated(key, cos, sin))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return to_half(x.float() * cos.float() + torch.cat((-second, first), -1) * sin.float(), x.dtype)


def npu_prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    pre_tokens: int = _ALL_TOKENS,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
) -> Tensor:
    """Attention of many positions, `[B, N, S, d]`; a mask hides where it is True."""
    op = "npu_prompt_flash_attention"
    _check_attention(op, query, key, value, num_heads, input_layout, _PROMPT_INNER)
    demand(len(query) <= 128, op, f"batch of {len(query)}", _PROMPT)
    demand(num_key_value_heads == 0, op, "num_key_value_heads must stay 0")
    demand(query.shape[1] == key.shape[1], op, "query and key have unlike heads")
    demand(
        atten_mask is not None and atten_mask.dtype == torch.bool,
        op,
        "a causal prompt needs a bool mask",
        _PROMPT,
    )
    assert atten_mask is not None
    (queries, keys), given = (query.shape[2], key.shape[2]), tuple(atten_mask.shape)
    tokens = pre_tokens >= queries and (next_tokens == 0 or next_tokens >= keys)
    demand(tokens, op, f"pre_tokens {pre_tokens}, next_tokens {next_tokens}", _PROMPT)
    if Chip.is_310p():
        aligned = queries % 16 == 0 and queries == keys
        unaligned = "attention mask must be NULL, when Qs,Kvs is unAlign or Qs is not equal to Kvs"
        demand(aligned, op, f"{unaligned}, Qs = {queries}, Kvs = {keys}", _PROMPT)
        demand(queries >= 32, op, f"{queries} positions with a mask, fewer than 32", _FROM_A_CARD)
    if sparse_mode == 2:
        demand(not Chip.is_310p() and given == (2048, 2048), op, f"sparse_mode 2, mask {given}")
        demand(bool((atten_mask == torch.ones(2048, 2048).triu(1).bool()).all()), op, "mask is no triangle")
        hidden = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    else:
        fits = sparse_mode == 0 and given[-2:] == (queries, keys)
        demand(fits, op, f"sparse_mode {sparse_mode}, mask {given}", _PROMPT)
        hidden = atten_mask
    return _attend(query, key, value, scale_value, hidden)


def npu_incre_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    actual_seq_lengths: Sequence[int] | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
) -> Tensor:
    """Attention of one new position, `[B, N, 1, d]`, over the first `actual_seq_lengths` keys of each sequence."""
    op = "npu_incre_flash_attention"
    _check_attention(op, query, key, value, num_heads, input_layout, _DECODE_DEF)
    demand(query.shape[2] == 1, op, f"{query.shape[2]} queries instead of one")
    heads, size = num_key_value_heads or num_heads, query.shape[-1]
    demand(key.shape[1] == heads, op, f"keys have {key.shape[1]} heads, {heads} are said", _DECODE)
    demand(num_heads % heads == 0, op, f"{num_heads} heads in groups of {heads}", _DECODE)
    if Chip.is_310p():
        demand(len(query) <= 256, op, f"batch of {len(query)}", _DECODE)
        demand(size % 16 == 0, op, f"in 310P, headDim:{size} need align to 16", _DECODE)
        grouped = heads == num_heads or (num_heads // heads <= 32 and size <= 128)
        demand(grouped, op, "when gqa > 1, it requires that gqa * qlen <= 32 and headDim <=128", _DECODE)
    lengths = [key.shape[2]] * len(query) if actual_seq_lengths is None else list(actual_seq_lengths)
    good = len(lengths) == len(query) and all(0 < length <= key.shape[2] for length in lengths)
    demand(good, op, f"actual_seq_lengths {lengths} for keys of shape {tuple(key.shape)}", _DECODE)
    positions = torch.arange(key.shape[2])
    hidden = positions[None, None, None] >= torch.tensor(lengths)[:, None, None, None]
    keys, values = (shared.repeat_interleave(num_heads // heads, dim=1) for shared in (key, value))
    return _attend(query, keys, values, scale_value, hidden)


def _check_attention(
    op: str, query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str, copying: str
) -> None:
    demand(layout == "BNSD" and query.ndim == key.ndim == value.ndim == 4, op, f"layout {layout}")
    demand(query.dtype == key.dtype == value.dtype and query.dtype in halves(), op, f"query is {query.dtype}")
    demand(query.shape[1] == heads, op, f"num_heads {heads}, query has {query.shape[1]}")
    demand(key.shape == value.shape, op, "key and value differ in shape")
    whole = query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
    demand(
        whole, op, "query, key and value must be contiguous: else each is copied whole at every call", copying
    )
    _, count, _, size = query.shape
    sizes = count <= 256 and key.shape[2] <= 65535 and size <= 512
    demand(sizes, op, f"shape {tuple(query.shape)} is out of bounds")


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor) -> Tensor:
    scores = (query.float() @ key.float().transpose(-1, -2)) * scale
    shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return to_half(shares.to(query.dtype).float() @ value.float(), query.dtype)

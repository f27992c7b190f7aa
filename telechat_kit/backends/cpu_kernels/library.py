"""The compiled kernels behind their C interface: the library and its records.

The records mirror the structs of `kernels.c`, field by field.
"""

import ctypes
import os
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

from telechat_kit.backends.cpu_kernels.build import BuildError, built_library
from telechat_kit.messages import Message, marked

#: Set to 1, the backend multiplies with torch alone
OFF = "TELECHAT_KIT_NO_KERNEL"


class Linear(Structure):
    """An int8 linear in panels, with static activations or (`shift`) dynamic ones, or one of float32 or bfloat16 as on disk (`deq_scale` None)."""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("deq_scale", c_void_p),
        ("shift", c_void_p),
        ("input_scale", c_float),
        ("input_offset", c_float),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("bfloat16", c_int32),
    )


class Norm(Structure):
    """Weight and, where channels were shifted, bias of an RMS norm."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Turn(Structure):
    """The orthogonal matrix `base [order, order]` times Hadamard's of order `2^power`, by Kronecker."""

    _fields_ = (("base", c_void_p), ("order", c_int32), ("power", c_int32))


class Block(Structure):
    """A block of the network."""

    _fields_ = (
        ("input_norm", Norm),
        ("post_norm", Norm),
        ("query", Linear),
        ("key_value", Linear),
        ("dense", Linear),
        ("gate", Linear),
        ("up", Linear),
        ("down", Linear),
    )


class Network(Structure):
    """A whole network."""

    _fields_ = (
        *((name, c_int32) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab")),
        ("residual_after_norm", c_int32),
        ("epsilon", c_float),
        ("products", Turn),
        ("blocks", POINTER(Block)),
        ("embedding", Linear),
        ("embedding_norm", Norm),
        ("final_norm", Norm),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("head", Linear),
        ("screen", Linear),
        ("screen_error", c_void_p),
        ("head_norm", c_void_p),
        ("cache_type", c_int32),
    )


#: Types of keys and values, as the kernels number them
CACHE_TYPES = ("float32", "bfloat16", "float16")

#: Phases of a decode step, as its profile counts them
PHASES = (marked("norms and quantization"), "linears", "attention", marked("waiting for each other"), "head")


class Cache(Structure):
    """Keys and values, of the network's `cache_type`; `capacity` in positions."""

    _fields_ = (("keys", c_void_p), ("values", c_void_p), ("capacity", c_int64))


class Batch(Structure):
    """Rows of tokens that go through the network together."""

    _fields_ = (
        ("sequences", c_int32),
        ("rows", c_int32),
        ("caches", POINTER(Cache)),
        *((name, c_void_p) for name in ("tokens", "sequence", "position", "last")),
    )


class Extent(Structure):
    """Sizes of a call; `parts` of the caches are of `part_positions` positions."""

    _fields_ = tuple((name, c_int32) for name in ("sequences", "rows", "positions", "parts", "threads"))


class AttentionShape(Structure):
    """Sizes, and strides of batch, head and position, of one attention."""

    _fields_ = (
        *((name, c_int32) for name in ("batch", "heads", "kv_heads", "queries", "positions", "dim")),
        *((name, c_int64 * 3) for name in ("query", "key", "value")),
    )


@cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    """The library and what it is, or None and why."""
    if os.environ.get(OFF, "0") not in ("", "0"):
        return None, Message("{off} is set", off=OFF)
    try:
        found = ctypes.CDLL(str(built_library()))
    except (BuildError, OSError) as error:
        return None, str(error)
    _declare(found)
    return found, Message("compiled kernel ({decode})", decode=found.isa().decode())


def _declare(found: ctypes.CDLL) -> None:
    run: list[Any] = [POINTER(Network), POINTER(Batch), c_int32, c_void_p]  # full, logits
    found.isa.restype, found.isa.argtypes = c_char_p, []
    found.activation_shift.restype, found.activation_shift.argtypes = c_int32, []
    for limit in (found.step_rows, found.part_positions):
        limit.restype, limit.argtypes = c_int32, []
    found.scratch_bytes.restype = c_int64
    found.scratch_bytes.argtypes = [POINTER(Network), POINTER(Extent)]
    # states, ids, scratch
    found.prefill.restype, found.prefill.argtypes = None, [*run, *[c_void_p] * 3, POINTER(Extent)]
    found.decode.restype, found.decode.argtypes = None, [*run, *[c_void_p] * 2, POINTER(Extent), c_void_p]
    found.linear_rows.restype = None
    found.linear_rows.argtypes = [POINTER(Linear), c_void_p, c_int32, *[c_void_p] * 4, c_int32]
    found.rms_norm_rows.restype = None
    found.rms_norm_rows.argtypes = [c_void_p, c_void_p, c_int64, c_int32, c_float, c_void_p, c_int32]
    found.silu_product.restype = None
    found.silu_product.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int32]
    found.turn_rows.restype = None
    found.turn_rows.argtypes = [POINTER(Turn), c_void_p, c_int64, c_void_p, c_int32]
    # count, type, plain
    for row in (found.widen_row, found.store_row):
        row.restype, row.argtypes = None, [c_void_p, c_int64, c_int32, c_int32, c_void_p]
    found.attention_scratch.restype, found.attention_scratch.argtypes = c_int64, [POINTER(AttentionShape)]
    found.attention.restype = None
    found.attention.argtypes = [POINTER(AttentionShape), *[c_void_p] * 5, c_int32]


def library() -> ctypes.CDLL | None:
    """The compiled kernels, built at the first call; None where they cannot be or are switched off."""
    return _loaded()[0]


def description() -> str:
    """For records: "compiled kernel (avx512_vnni)", or why there is none: "no C compiler" ..."""
    return _loaded()[1]


def activation_shift() -> int:
    """What the kernels add to a quantized activation."""
    found = library()
    return found.activation_shift() if found is not None else 0

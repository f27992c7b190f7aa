"""Rows of bfloat16 and float16 in the kernels: every number there is, the fast form beside the plain one, and torch's."""

import pytest
import torch
from torch import Tensor

from telechat_kit.backends.cpu_kernels import library
from telechat_kit.backends.cpu_kernels.library import CACHE_TYPES
from telechat_kit.backends.cpu_kernels.operators import kernels

pytestmark = pytest.mark.skipif(library.library() is None, reason=library.description())

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FAST, PLAIN = 0, 1


def every_half(dtype: torch.dtype) -> Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)


def widened(halves: Tensor, name: str, form: int) -> Tensor:
    found = torch.empty(len(halves))
    kernels().widen_row(halves.data_ptr(), len(halves), CACHE_TYPES.index(name), form, found.data_ptr())
    return found


def stored(x: Tensor, name: str, form: int) -> Tensor:
    found = torch.empty(len(x), dtype=HALVES[name])
    kernels().store_row(x.data_ptr(), len(x), CACHE_TYPES.index(name), form, found.data_ptr())
    return found


def equal_bits(one: Tensor, other: Tensor) -> bool:
    kinds = {2: torch.int16, 4: torch.int32}
    return torch.equal(one.view(kinds[one.itemsize]), other.view(kinds[other.itemsize]))


@pytest.mark.parametrize("name", HALVES)
def test_every_half_is_widened_to_itself(name: str) -> None:
    halves = every_half(HALVES[name])
    fast, plain = widened(halves, name, FAST), widened(halves, name, PLAIN)
    assert equal_bits(fast, plain)
    torch.testing.assert_close(plain, halves.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", HALVES)
def test_floats_are_rounded_to_the_nearest_half_to_even(name: str) -> None:
    halves = every_half(HALVES[name]).float()
    middles = (halves[:-1] + halves[1:]) / 2
    beside = [torch.nextafter(middles, torch.full_like(middles, to)) for to in (-torch.inf, torch.inf)]
    seeded = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(1 << 31), 1 << 31, (1 << 18,), generator=seeded).to(torch.int32)
    x = torch.cat([halves, middles, *beside, patterns.view(torch.float32), torch.tensor([65519.9, 65520.0])])
    fast, plain = stored(x, name, FAST), stored(x, name, PLAIN)
    assert equal_bits(fast, plain)
    torch.testing.assert_close(plain, x.to(HALVES[name]), rtol=0, atol=0, equal_nan=True)


def test_the_comparison_sees_one_wrong_bit() -> None:
    halves = every_half(torch.float16)
    other = halves.clone()
    other.view(torch.int16)[7] ^= 1
    assert not equal_bits(widened(halves, "float16", FAST), widened(other, "float16", PLAIN))

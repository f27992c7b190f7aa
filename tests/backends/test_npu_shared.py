"""Products that two NPUs share, their parts added up here: exact where the operator gives integers, rounded parts elsewhere."""

from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor

from telechat_kit.backends import npu
from telechat_kit.model.int8_linears import W8A8Linear, offset_correction
from telechat_kit.quantization.int8.packing import int8_linear, pack_linear


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def halves(packed: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The linear of each of two chips: half of the columns, and a share of the bias."""
    left, right = (part.contiguous() for part in packed["weight"].chunk(2, 1))
    own = -offset_correction(right, packed["input_offset"]).to(torch.int32)
    return [
        dict(
            W8A8Linear({**packed, "weight": left, "quant_bias": packed["quant_bias"] - own}).named_buffers()
        ),
        dict(W8A8Linear({**packed, "weight": right, "quant_bias": own}).named_buffers()),
    ]


def shared(x: Tensor, packed: dict[str, Tensor]) -> Tensor:
    """What both chips give for `x`: the first pass collects their parts, the second has the sum."""
    parts: list[Tensor] = []
    columns, linears = x.chunk(2, -1), [npu.prepare_sharded_linear(half) for half in halves(packed)]

    def run(add_up: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        pairs = zip(columns, linears, strict=True)
        return [npu.sharded_int8_linear(own, add_up, **linear) for own, linear in pairs]

    def collect(part: Tensor) -> Tensor:
        parts.append(part.clone())
        return part

    run(collect)
    first, second = run(lambda _: parts[0] + parts[1])
    assert torch.equal(first, second)
    return first


def packed_linear(offset: float) -> dict[str, Tensor]:
    return pack_linear(normal(1, 48, 512) / 16, normal(2, 48), torch.tensor([0.0371]), torch.tensor([offset]))


@pytest.mark.parametrize("offset", [-90.0, 0.0, 7.0])
def test_a_910b_adds_integers_and_gives_what_one_chip_gives(chip_910b: ModuleType, offset: float) -> None:
    x, packed = normal(3, 5, 512), packed_linear(offset)
    for dtype in (torch.float16, torch.bfloat16):
        whole = npu.prepare_linear(dict(W8A8Linear(packed).named_buffers()))
        y = shared(x.to(dtype), packed)
        assert torch.equal(y, npu.int8_linear(x.to(dtype), **whole))
        assert y.dtype == dtype


@pytest.mark.parametrize("offset", [-90.0, 0.0, 7.0])
def test_a_310p_adds_half_precision_parts_that_are_near_zero(chip_310p: ModuleType, offset: float) -> None:
    x, packed = normal(3, 5, 512).half(), packed_linear(offset)
    y, exact = shared(x, packed).float(), int8_linear(x.float(), packed)
    # scale, both parts and their sum are rounded to 10 bits each; without a share of the bias, parts of -90 would be far larger
    assert float((y - exact).abs().max()) < 4 * 2**-11 * float(exact.abs().max())
    assert npu.operators()["int8_linear"] == "npu_quant_matmul"

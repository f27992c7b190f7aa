"""The CUDA backend: its padding on any machine, its products on one with a GPU."""

import pytest
import torch
from torch import Tensor

from telechat_kit.backends import cuda
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.quantization.int8.packing import int8_linear, pack_linear

SHAPES = [(m, k, n) for m in (1, 2, 16, 17, 64) for k in (8, 33, 96) for n in (8, 30, 576)]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def int8(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def packed_linear(k: int, n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(n, k, generator=generator), torch.randn(n, generator=generator)
    return pack_linear(weight, bias, torch.tensor([0.037]), torch.tensor([7.0]))


def strict_int_mm(x: Tensor, weight: Tensor) -> Tensor:
    """The shape rules of torch._int_mm on CUDA, and the exact product."""
    assert x.shape[0] > 16
    assert x.shape[1] % 8 == weight.shape[1] % 8 == 0
    assert x.is_contiguous()
    assert weight.t().is_contiguous()
    return (x.long() @ weight.long()).to(torch.int32)


@pytest.fixture
def shape_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_int_mm", strict_int_mm)


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_padded_products_keep_the_shape_rules_and_are_exact(
    shape_rules: None, m: int, k: int, n: int
) -> None:
    x, weight = int8(m, m, k), int8(n, n, k)
    assert torch.equal(cuda.accumulate(x, weight), (x.long() @ weight.long().T).int())


@pytest.mark.parametrize("shape", [(33,), (1, 33), (2, 3, 33)])
def test_a_prepared_linear_is_the_reference_s(shape_rules: None, shape: tuple[int, ...]) -> None:
    packed = packed_linear(33, 30)
    prepared = cuda.prepare_linear(dict(W8A8Linear(packed).named_buffers()))
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    assert prepared["weight"].shape == (32, 40)
    assert torch.equal(cuda.int8_linear(x, **prepared), int8_linear(x, packed))


def test_what_fits_is_not_copied() -> None:
    matrix = int8(0, 24, 16)
    assert cuda.padded(matrix, 24, 16) is matrix
    assert [cuda.padded_size(size, cuda.LEAST_ROWS) for size in (1, 17, 24, 25)] == [24, 24, 24, 32]


@gpu
def test_products_on_a_gpu_are_exact() -> None:
    for m, k, n in SHAPES:
        x, weight = int8(m, m, k), int8(n, n, k)
        product = cuda.accumulate(x.cuda(), weight.cuda()).cpu()
        assert torch.equal(product, (x.long() @ weight.long().T).int()), (m, k, n)


@gpu
@pytest.mark.parametrize("rows", [1, 17])
def test_a_linear_on_a_gpu_is_the_reference_s(rows: int) -> None:
    packed = packed_linear(96, 64)
    linear = W8A8Linear(packed).cuda()
    linear.prepare()
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(1)).half()
    assert torch.equal(linear(x.cuda()).cpu(), int8_linear(x, packed))

"""Int8 linears as modules: what they keep of the tensors on disk, and how they show themselves."""

import pytest
import torch
from torch import Tensor, nn

from telechat_kit.model.int8_linears import DYNAMIC_TENSORS, DynamicW8A8Linear
from telechat_kit.model.w8a8 import linear_names
from telechat_kit.quantization.int8.packing import dynamic_int8_linear, pack_dynamic_linear


def random_linear(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Input `[3, 24]`, weight `[7, 24]`, bias `[7]`."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((3, 24), (7, 24), (7,)))
    return x, weight.to(dtype), bias.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_dynamic_linear_computes_with_float32_scales_of_any_stored_dtype(dtype: torch.dtype) -> None:
    x, weight, bias = random_linear(dtype)
    packed = pack_dynamic_linear(weight, bias)
    assert set(packed) == set(DYNAMIC_TENSORS)
    linear = DynamicW8A8Linear(packed)
    kept = {name: (buffer.dtype, tuple(buffer.shape)) for name, buffer in linear.named_buffers()}
    assert kept == {
        "weight": (torch.int8, (7, 24)),
        "weight_scale": (torch.float32, (7,)),
        "bias": (torch.float32, (7,)),
    }
    assert torch.equal(linear(x), dynamic_int8_linear(x, packed))


def test_a_dynamic_linear_without_bias_keeps_none() -> None:
    x, weight, _ = random_linear()
    linear = DynamicW8A8Linear(pack_dynamic_linear(weight, None))
    assert linear.bias is None
    assert linear(torch.zeros_like(x)).tolist() == [[0.0] * 7] * 3


def test_a_dynamic_linear_is_named_and_shown_as_a_linear() -> None:
    _, weight, bias = random_linear()
    model = nn.ModuleDict(
        {"dense": DynamicW8A8Linear(pack_dynamic_linear(weight, bias)), "norm": nn.Identity()}
    )
    assert linear_names(model) == ["dense"]
    assert "in_features=24, out_features=7" in repr(model)

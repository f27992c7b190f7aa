"""Packed linears: golden tensors of msModelSlim's saver, the integer reference against arithmetic in Python."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from telechat_kit.errors import CheckpointError
from telechat_kit.model.int8_linears import decode_scale
from telechat_kit.quantization.int8.observers import EPS, activation_range, fake_quantize
from telechat_kit.quantization.int8.packing import (
    dynamic_int8_linear,
    fake_quantize_weight,
    int8_accumulator,
    int8_linear,
    pack_dynamic_linear,
    pack_linear,
    quantize_weight,
)

GOLDEN = Path(__file__).parents[2] / "data" / "quantization"
CASES = sorted(path.stem for path in GOLDEN.glob("linear_*.json"))


def golden(case: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{case}.safetensors")


def saved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the reference's saver wrote for the linear."""
    return {
        name[4:]: value
        for name, value in tensors.items()
        if name.startswith("out.") and name != "out.fakequant_y"
    }


def random_linear(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Input `[2, 5, 24]`, weight `[7, 24]`, bias `[7]`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 5, 24), (7, 24), (7,))
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("case", CASES)
def test_packed_tensors_are_the_reference_s(case: str) -> None:
    tensors = golden(case)
    samples = [tensors[f"in.sample{i}"] for i in range(3)]
    packed = pack_linear(tensors["in.W"], tensors.get("in.bias"), *activation_range(samples, 1))
    expected = saved(tensors)
    assert packed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert packed[name].dtype == tensor.dtype, name
        assert torch.equal(packed[name], tensor), name


@pytest.mark.parametrize("case", CASES)
def test_fake_quantized_linear_is_the_reference_s(case: str) -> None:
    tensors = golden(case)
    x = fake_quantize(tensors["in.sample0"], tensors["out.input_scale"], tensors["out.input_offset"])
    y = functional.linear(x, fake_quantize_weight(tensors["in.W"]), tensors.get("in.bias"))
    torch.testing.assert_close(y, tensors["out.fakequant_y"], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_integer_linear_is_the_fake_quantized_one_but_for_the_rounded_bias(case: str) -> None:
    tensors = golden(case)
    y = int8_linear(tensors["in.sample0"], saved(tensors))
    half_unit = decode_scale(tensors["out.deq_scale"]).max().item() / 2
    # fake quantization rounds its result to the dtype's digits at several places
    tolerance = half_unit + 8 * torch.finfo(y.dtype).eps * tensors["out.fakequant_y"].abs().max().item()
    assert y.dtype == tensors["out.fakequant_y"].dtype
    torch.testing.assert_close(y, tensors["out.fakequant_y"], rtol=0, atol=tolerance)


def test_integer_accumulator_is_exact() -> None:
    x, weight, bias = random_linear()
    packed = pack_linear(weight, bias, *activation_range([x], 1))
    scale, offset = packed["input_scale"].item(), int(packed["input_offset"])
    accumulated = int8_accumulator(x, packed)
    assert accumulated.dtype == torch.int32
    rows, addends = packed["weight"].tolist(), packed["quant_bias"].tolist()
    for token, result in zip(x.reshape(-1, 24), accumulated.reshape(-1, 7).tolist(), strict=True):
        x_q = [min(max(round(v) + offset, -128), 127) for v in (token / scale).tolist()]
        expected = [sum(a * b for a, b in zip(x_q, row, strict=True)) for row in rows]
        assert result == [a + b for a, b in zip(expected, addends, strict=True)]


def test_sums_beyond_float32_s_integers_are_exact() -> None:
    x, weight = torch.full((1, 4096), 10.0), torch.ones(2, 4096)
    weight[1, 0] = 126 / 127
    packed = pack_linear(weight, None, torch.tensor([10 / 127]), torch.tensor([0.0]))
    assert int8_accumulator(x, packed).tolist() == [[4096 * 127 * 127, 4096 * 127 * 127 - 127]]


def test_the_offset_is_added_after_rounding() -> None:
    packed = pack_linear(torch.ones(1, 1), None, torch.tensor([1.0]), torch.tensor([3.0]))
    # 0.5 and 2.5 round to even before the offset: 0 and 2, not 4 - 3 and 6 - 3
    x = torch.tensor([[0.5], [2.5], [1.5], [1000.0], [-1000.0]])
    assert int8_accumulator(x, packed).flatten().tolist() == [0, 2 * 127, 2 * 127, 124 * 127, -131 * 127]


@pytest.mark.parametrize("with_bias", [True, False])
def test_integer_linear_is_close_to_the_float_one(with_bias: bool) -> None:
    x, weight, bias = random_linear()
    packed = pack_linear(weight, bias if with_bias else None, *activation_range([x], 1))
    expected = functional.linear(x, weight, bias if with_bias else None)
    assert (int8_linear(x, packed) - expected).abs().max() < 0.02 * expected.abs().max()
    assert ("bias" in packed) == with_bias


@pytest.mark.parametrize("sign", [1, -1])
def test_inputs_of_one_sign_are_covered(sign: int) -> None:
    x, weight, bias = random_linear()
    x = sign * (x.abs() + 3)
    packed = pack_linear(weight, bias, *activation_range([x], 1))
    expected = functional.linear(x, weight, bias)
    assert (int8_linear(x, packed) - expected).abs().max() < 0.02 * expected.abs().max()


def test_each_row_of_a_weight_has_its_scale() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0], [300.0, 100.0]])
    quantized, scale = quantize_weight(weight)
    assert quantized.tolist() == [[64, -127], [0, 0], [127, 42]]
    assert scale.flatten().tolist() == pytest.approx([2 / 127, EPS, 300 / 127])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saved_weights_stay_symmetric(dtype: torch.dtype) -> None:
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    quantized, scale = quantize_weight(weight)
    assert quantized.min() == -127
    assert scale.dtype == dtype
    error = (quantized * scale.float() - weight.float()).abs()
    assert (error <= 1.02 * scale.float()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_zeros_gives_its_bias(dtype: torch.dtype) -> None:
    x, weight, bias = random_linear()
    x, weight, bias = x.to(dtype), weight.to(dtype), (bias * 50).to(dtype)
    weight[2:5] = 0
    packed = pack_linear(weight, bias, *activation_range([x], 1))
    y = int8_linear(x, packed)
    expected = bias[2:5].expand_as(y[..., 2:5])
    torch.testing.assert_close(y[..., 2:5], expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_an_all_zero_input_gives_the_bias() -> None:
    x, weight, bias = torch.zeros(3, 24), *random_linear()[1:]
    packed = pack_linear(weight, bias, *activation_range([x], 1))
    torch.testing.assert_close(int8_linear(x, packed), bias.expand(3, 7), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    weight = torch.ones(2, 3)
    weight[1, 1] = value
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        quantize_weight(weight)


def test_a_dynamic_linear_has_no_tensor_of_its_input() -> None:
    _, weight, bias = random_linear()
    quantized, scale = quantize_weight(weight)
    packed = pack_dynamic_linear(weight, bias)
    assert packed.keys() == {"weight", "weight_scale", "weight_offset", "bias"}
    assert torch.equal(packed["weight"], quantized)
    assert torch.equal(packed["weight_scale"], scale)
    assert packed["weight_offset"].tolist() == [[0.0]] * 7
    assert "bias" not in pack_dynamic_linear(weight, None)


def test_dynamic_linear_is_arithmetic_of_integers() -> None:
    x, weight, bias = random_linear()
    packed = pack_dynamic_linear(weight, bias)
    results = dynamic_int8_linear(x, packed).reshape(-1, 7)
    for token, result in zip(x.reshape(-1, 24), results, strict=True):
        scale = (token.abs().max() / 127).item()
        x_q = [round(value) for value in (token / scale).tolist()]
        assert max(map(abs, x_q)) == 127
        sums = [sum(a * b for a, b in zip(x_q, row, strict=True)) for row in packed["weight"].tolist()]
        expected = torch.tensor(sums) * scale * packed["weight_scale"].flatten() + bias
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_each_token_keeps_its_own_resolution() -> None:
    x, weight, _ = random_linear()
    x = x.reshape(10, 24) * torch.logspace(-4, 4, 10)[:, None]
    expected = functional.linear(x, weight)
    error = (dynamic_int8_linear(x, pack_dynamic_linear(weight, None)) - expected).abs().amax(dim=1)
    assert (error < 0.02 * expected.abs().amax(dim=1)).all()
    static = int8_linear(x, pack_linear(weight, None, *activation_range([x], 1)))
    assert (static[0] == 0).all()  # which one range for all tokens cannot do


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_token_of_zeros_gives_the_bias(dtype: torch.dtype) -> None:
    x, weight, bias = (tensor.to(dtype) for tensor in random_linear())
    x[0, 2] = 0
    y = dynamic_int8_linear(x, pack_dynamic_linear(weight, bias))
    assert torch.equal(y[0, 2], bias)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()

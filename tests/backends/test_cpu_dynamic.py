"""Linears that scale every token by its own largest value: bit for bit the plain reference, on its edges too."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from telechat_kit.backends import cpu
from telechat_kit.inference.loading import load_model
from telechat_kit.model.int8_linears import DynamicW8A8Linear
from telechat_kit.quantization import Calibration, Recipe, quantize
from telechat_kit.quantization.int8.packing import dynamic_int8_linear, pack_dynamic_linear


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed_linear(k: int, n: int, with_bias: bool = True) -> dict[str, Tensor]:
    return pack_dynamic_linear(normal(k, n, k), normal(n, n) if with_bias else None)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (5, 48), (2, 3, 48), (2, 1, 3, 48), (0, 48)])
def test_the_linear_is_the_reference_s_for_any_leading_axes(shape: tuple[int, ...], with_bias: bool) -> None:
    x, packed = normal(3, *shape), packed_linear(48, 30, with_bias)
    assert torch.equal(DynamicW8A8Linear(packed)(x), dynamic_int8_linear(x, packed))


@pytest.mark.parametrize(("k", "n"), [(48, 30), (96, 64), (576, 576), (1536, 576), (33, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_linear_is_the_reference_s_for_any_size_and_dtype(k: int, n: int, dtype: torch.dtype) -> None:
    x, packed = (normal(1, 4, 17, k) * torch.logspace(-3, 3, 17)[:, None]).to(dtype), packed_linear(k, n)
    y = DynamicW8A8Linear(packed)(x)
    assert y.dtype == dtype
    assert torch.equal(y, dynamic_int8_linear(x, packed))


def test_tokens_are_quantized_symmetrically_and_half_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5], [-254.0, 3.0, 1.0, -1.0, 254.0]])
    x_q, scale = cpu.quantize_per_token(x)
    assert x_q.tolist() == [[127, 0, 2, 2, 0], [-127, 2, 0, 0, 127]]
    assert scale.tolist() == [[1.0], [2.0]]
    assert (x_q.dtype, scale.dtype) == (torch.int8, torch.float32)


def test_a_token_of_zeros_gives_the_bias_and_no_nan() -> None:
    x, packed = normal(3, 4, 48), packed_linear(48, 30)
    x[1] = 0
    y = DynamicW8A8Linear(packed)(x)
    assert torch.equal(y[1], packed["bias"])
    assert torch.equal(y, dynamic_int8_linear(x, packed))
    x_q, scale = cpu.quantize_per_token(torch.zeros(2, 8))
    assert not x_q.any()
    assert not scale.any()


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e30, 3.4e38])
def test_the_smallest_and_largest_numbers_are_scaled_like_others(largest: float) -> None:
    x, packed = normal(3, 4, 48), packed_linear(48, 30)
    x = x / x.abs().max() * largest
    y = DynamicW8A8Linear(packed)(x)
    assert torch.equal(y, dynamic_int8_linear(x, packed))
    assert torch.isfinite(cpu.quantize_per_token(x)[1]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_token_that_is_not_finite_shows_in_its_result_and_nowhere_else(value: float) -> None:
    x, linear = normal(3, 4, 48), DynamicW8A8Linear(packed_linear(48, 30))
    expected = linear(x)
    x[2, 5] = value
    y = linear(x)
    assert not torch.isfinite(y[2]).any()
    assert torch.equal(y[[0, 1, 3]], expected[[0, 1, 3]])


def test_the_linear_takes_input_that_is_not_contiguous_and_leaves_its_tensors_as_they_are() -> None:
    x, packed = normal(1, 48, 5, 3).permute(2, 1, 0), packed_linear(48, 30)
    before = {name: tensor.clone() for name, tensor in {**packed, "x": x}.items()}
    assert torch.equal(DynamicW8A8Linear(packed)(x), dynamic_int8_linear(x, packed))
    assert all(torch.equal(before[name], tensor) for name, tensor in {**packed, "x": x}.items())


class ReferenceLinear(nn.Module):
    """A linear with dynamic activations, computed by the plain reference."""

    def __init__(self, linear: DynamicW8A8Linear) -> None:
        super().__init__()
        buffers = linear.state_dict()
        self.packed = buffers | {"weight_scale": buffers["weight_scale"][:, None]}

    def forward(self, x: Tensor) -> Tensor:
        return dynamic_int8_linear(x, self.packed)


def test_a_whole_dynamic_model_equals_one_of_reference_linears(tiny_folder: Path, tmp_path: Path) -> None:
    quantize(
        tiny_folder,
        tmp_path / "w8a8",
        Recipe(level="L0", anti_outlier="m1", activations="dynamic"),
        Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
    )
    model, reference = (load_model(tmp_path / "w8a8", device="cpu") for _ in range(2))
    replaced = [name for name, module in reference.named_modules() if isinstance(module, DynamicW8A8Linear)]
    for name in replaced:
        reference.set_submodule(name, ReferenceLinear(reference.get_submodule(name)))  # type: ignore[arg-type]
    ids = torch.randint(6, 262, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, expected = model(ids).logits, reference(ids).logits
    assert len(replaced) == 24
    assert torch.equal(logits, expected)


def prepared(packed: dict[str, Tensor]) -> DynamicW8A8Linear:
    linear = DynamicW8A8Linear(packed)
    linear.prepare()
    return linear


@pytest.mark.parametrize("rows", [1, 7, 8, 33])
@pytest.mark.parametrize(("k", "n"), [(48, 30), (576, 64), (33, 7), (101, 79)])
def test_panels_give_the_reference_s_numbers(rows: int, k: int, n: int) -> None:
    x = normal(1, rows, k) * torch.logspace(-3, 3, rows)[:, None]
    x[rows // 2] = 0
    for packed in (packed_linear(k, n), packed_linear(k, n, with_bias=False)):
        assert torch.equal(prepared(packed)(x), dynamic_int8_linear(x, packed))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_rows_in_panels_that_are_not_finite_do_not_look_like_results(value: float) -> None:
    x = normal(1, 9, 48)
    x[4, 7] = value
    y = prepared(packed_linear(48, 30))(x)
    assert not y[4].isfinite().any()
    assert y[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_a_prepared_linear_is_saved_and_loaded_as_on_disk() -> None:
    plain, linear, other = (
        DynamicW8A8Linear(packed_linear(101, 30)),
        prepared(packed_linear(101, 30)),
        prepared(pack_dynamic_linear(normal(8, 30, 101), normal(9, 30))),
    )
    assert linear.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in linear.state_dict().items())
    other.load_state_dict(linear.state_dict())
    x = normal(0, 3, 101)
    assert torch.equal(other(x), linear(x))

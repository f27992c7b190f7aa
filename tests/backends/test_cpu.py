"""The CPU backend: its integers bit for bit those of the reference, its float operations against float64."""

from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

from telechat_kit.backends import backend_for, cpu
from telechat_kit.inference.loading import load_model
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.quantization.int8.packing import int8_accumulator, int8_linear, pack_linear

ROWS = [1, 2, 17, 64]
INPUTS = [2, 48, 96, 101, 576, 1536]  # torch._int_mm (2.13) leaves its result unset for one input
OUTPUTS = [1, 30, 64, 576]
SHAPES = [(m, k, n) for m in ROWS for k in INPUTS for n in OUTPUTS]


def int8(seed: int, *shape: int) -> Tensor:
    """Values of the whole int8 range."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_product(x: Tensor, weight: Tensor) -> Tensor:
    return (x.long() @ weight.long().T).int()


@pytest.mark.parametrize("threads", [1, 2])
def test_integer_products_are_exact_for_any_shape(threads: int, keep_threads: None) -> None:
    torch.set_num_threads(threads)
    for m, k, n in SHAPES:
        x, weight = int8(m, m, k), int8(n, n, k)
        product = cpu.accumulate(x, weight)
        assert product.dtype == torch.int32
        assert torch.equal(product, exact_product(x, weight)), (m, k, n)


@pytest.fixture
def keep_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("left", [-128, 127])
@pytest.mark.parametrize("right", [-128, 127])
def test_integer_products_of_extreme_values_do_not_saturate(left: int, right: int) -> None:
    for m, k, n in SHAPES:
        x = torch.full((m, k), left, dtype=torch.int8)
        weight = torch.full((n, k), right, dtype=torch.int8)
        assert (cpu.accumulate(x, weight) == left * right * k).all(), (m, k, n)


def test_integer_products_of_transposed_memory_are_exact() -> None:
    x, weight = int8(0, 96, 17).t(), int8(1, 96, 30).t()
    assert torch.equal(cpu.accumulate(x, weight), exact_product(x, weight))


def packed_linear(k: int, n: int, offset: float = 7.0) -> dict[str, Tensor]:
    return pack_linear(
        normal(k, n, k), normal(n, n), torch.tensor([0.037]), torch.tensor([offset], dtype=torch.float32)
    )


def cpu_linear(x: Tensor, packed: dict[str, Tensor]) -> Tensor:
    return W8A8Linear(packed)(x)


@pytest.mark.parametrize("shape", [(48,), (1, 48), (5, 48), (2, 3, 48), (2, 1, 3, 48), (0, 48)])
def test_int8_linear_is_the_reference_s_for_any_leading_axes(shape: tuple[int, ...]) -> None:
    x, packed = normal(3, *shape), packed_linear(48, 30)
    assert torch.equal(cpu_linear(x, packed), int8_linear(x, packed))


@pytest.mark.parametrize(("k", "n"), [(48, 30), (96, 64), (576, 576), (1536, 576), (33, 7)])
@pytest.mark.parametrize("offset", [-128.0, -3.0, 0.0, 127.0])
def test_int8_linear_is_the_reference_s_for_any_offset(k: int, n: int, offset: float) -> None:
    x, packed = 2 * normal(1, 4, 17, k), packed_linear(k, n, offset)
    assert torch.equal(cpu_linear(x, packed), int8_linear(x, packed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_int8_linear_gives_the_dtype_of_its_input(dtype: torch.dtype) -> None:
    x, packed = normal(1, 3, 96).to(dtype), packed_linear(96, 64)
    y = cpu_linear(x, packed)
    assert y.dtype == dtype
    assert torch.equal(y, int8_linear(x, packed))


def test_int8_linear_clamps_what_is_out_of_range() -> None:
    x, packed = torch.tensor([1e30, -1e30, float("inf"), float("-inf")] * 12)[None], packed_linear(48, 30)
    assert torch.equal(cpu_linear(x, packed), int8_linear(x, packed))


def test_int8_linear_takes_input_that_is_not_contiguous() -> None:
    x, packed = normal(1, 48, 5, 3).permute(2, 1, 0), packed_linear(48, 30)
    assert torch.equal(cpu_linear(x, packed), int8_linear(x, packed))


def test_int8_linear_leaves_its_tensors_as_they_are() -> None:
    x, packed = normal(1, 5, 48), packed_linear(48, 30)
    before = {name: tensor.clone() for name, tensor in {**packed, "x": x}.items()}
    cpu_linear(x, packed)
    assert all(torch.equal(before[name], tensor) for name, tensor in {**packed, "x": x}.items())


def test_quantize_rounds_half_to_even_and_clamps() -> None:
    x = torch.tensor([-1000.0, -1.5, -0.5, 0.5, 1.5, 2.5, 1000.0])
    q = cpu.quantize(x, torch.tensor([1.0]), torch.tensor([3.0]))
    assert q.tolist() == [-128, 1, 3, 3, 5, 5, 127]
    assert x[0] == -1000


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
def test_rms_norm_is_that_of_float64(dtype: torch.dtype, tolerance: float) -> None:
    x, weight = (30 * normal(0, 2, 5, 64)).to(dtype), normal(1, 64).to(dtype)
    y = cpu.rms_norm(x, weight, 1e-5)
    wide = x.double()
    expected = wide / (wide.square().sum(-1, keepdim=True) / 64 + 1e-5).sqrt() * weight.double()
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_rms_norm_of_large_float16_values_does_not_overflow() -> None:
    x = torch.full((1, 64), 60000.0, dtype=torch.float16)
    assert torch.equal(cpu.rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-5), torch.ones_like(x))


def test_rms_norm_of_zeros_is_zero() -> None:
    assert torch.equal(cpu.rms_norm(torch.zeros(1, 8), torch.ones(8), 1e-5), torch.zeros(1, 8))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)]
)
def test_rotate_is_a_rotation_in_the_complex_plane(dtype: torch.dtype, tolerance: float) -> None:
    x, angle = normal(0, 2, 3, 5, 16).to(dtype), normal(1, 5, 8).double()
    table_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    cos, sin = (table.repeat(1, 2).to(table_dtype) for table in (angle.cos(), angle.sin()))
    y, _ = cpu.rotate(x, x, cos, sin)
    turned = torch.complex(*x.double().chunk(2, dim=-1)) * torch.exp(1j * angle)
    assert y.dtype == dtype
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def slow_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Row by row in float64; `allowed [T, S]`."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    for batch, head, t in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])).tolist():
        seen = allowed[t]
        keys, values = key[batch, head, seen].double(), value[batch, head, seen].double()
        weights = (keys @ query[batch, head, t].double() / query.shape[-1] ** 0.5).exp()
        out[batch, head, t] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (2, 2), (7, 7)])
def test_attention_without_a_mask_is_causal(
    dtype: torch.dtype, tolerance: float, queries: int, keys: int
) -> None:
    query, key, value = (
        normal(seed, 2, 3, length, 20).to(dtype) for seed, length in enumerate([queries, keys, keys])
    )
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    y = cpu.attention(query, key, value, None)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), slow_attention(query, key, value, allowed), rtol=0, atol=tolerance)


def test_attention_with_a_mask_sees_what_the_mask_allows() -> None:
    query, key, value = normal(0, 2, 3, 4, 20), normal(1, 2, 3, 9, 20), normal(2, 2, 3, 9, 20)
    allowed = torch.ones(4, 9, dtype=torch.bool).tril(5)
    allowed[:, :2] = False
    mask = torch.zeros(1, 1, 4, 9).masked_fill(~allowed, torch.finfo(torch.float32).min)
    y = cpu.attention(query, key, value, mask)
    torch.testing.assert_close(y.double(), slow_attention(query, key, value, allowed), rtol=0, atol=2e-6)


def test_a_row_that_may_see_nothing_attends_uniformly() -> None:
    query, key, value = normal(0, 1, 1, 2, 8), normal(1, 1, 1, 5, 8), normal(2, 1, 1, 5, 8)
    mask = torch.full((1, 1, 2, 5), torch.finfo(torch.float32).min)
    y = cpu.attention(query, key, value, mask)
    torch.testing.assert_close(y, value.mean(dim=2, keepdim=True).expand_as(y))


class ReferenceLinear(nn.Module):
    """A W8A8 linear computed by the plain integer reference."""

    def __init__(self, linear: W8A8Linear) -> None:
        super().__init__()
        self.packed = linear.state_dict()

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.packed)


def test_a_whole_w8a8_model_equals_one_of_reference_linears(tiny_w8a8_folder: Path) -> None:
    model, reference = (load_model(tiny_w8a8_folder, device="cpu") for _ in range(2))
    ids = torch.randint(6, 262, (2, 60), generator=torch.Generator().manual_seed(0))
    replaced = [name for name, module in reference.named_modules() if isinstance(module, W8A8Linear)]
    for name in replaced:
        reference.set_submodule(name, ReferenceLinear(reference.get_submodule(name)))  # type: ignore[arg-type]
    with torch.inference_mode():
        logits, expected = model(ids).logits, reference(ids).logits
    assert len(replaced) == 24
    assert torch.equal(logits, expected)


def test_a_w8a8_model_stays_near_its_float_model(tiny_folder: Path, tiny_w8a8_folder: Path) -> None:
    ids = torch.randint(6, 262, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, quantized = (
            load_model(folder, device="cpu")(ids).logits for folder in (tiny_folder, tiny_w8a8_folder)
        )
    assert not torch.equal(exact, quantized)
    assert (exact - quantized).std() < 0.2 * exact.std()


def test_accumulate_is_what_the_reference_accumulates_before_its_bias() -> None:
    x, packed = normal(1, 17, 96), packed_linear(96, 64)
    x_q = cpu.quantize(x, packed["input_scale"], packed["input_offset"])
    expected = int8_accumulator(x, packed)
    assert torch.equal(cpu.accumulate(x_q, packed["weight"]) + packed["quant_bias"], expected)


def test_the_backend_of_a_tensor_s_device_is_found() -> None:
    assert backend_for("cpu") is cpu
    assert cpu.name == "cpu"


def _threads() -> str:
    count = torch.get_num_threads()
    return "(1 thread)" if count == 1 else f"({count} threads)"


def test_the_machine_is_described() -> None:
    assert cpu.device_name().endswith(_threads())
    assert cpu.device_name().strip() != _threads()


def test_peak_memory_is_in_bytes_and_no_less_than_what_is_in_use() -> None:
    block = torch.ones(1 << 24)
    in_use = psutil.Process().memory_info().rss
    # Linux counts pages by thread and adds them up in batches, the peak at other moments than the amount in use: the
    # peak was seen 0.2 MB below it
    peak = cpu.peak_memory_bytes() + 4e6
    assert block.nbytes < in_use < peak < 10 * psutil.virtual_memory().total


def test_read_bandwidth_is_measured_and_plausible() -> None:
    bytes_per_second, how = cpu.read_bandwidth()
    assert how == "measured"
    assert 1e8 < bytes_per_second < 1e13

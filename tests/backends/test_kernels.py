"""The compiled kernels: integers bit for bit those of the reference, floats against float64, and life without them."""

import platform
from pathlib import Path

import pytest
import test_half_rows
import torch
from torch import Tensor

from telechat_kit.backends import cpu
from telechat_kit.backends.cpu_kernels import build, library, operators
from telechat_kit.backends.cpu_kernels.panels import pack_weight, unpack_weight
from telechat_kit.inference.loading import load_model
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.quantization.int8.packing import int8_accumulator, int8_linear, pack_linear

needs_kernels = pytest.mark.skipif(library.library() is None, reason=library.description())

#: Less than a dot product's four inputs, more than a vector, no multiple of either; one panel, and parts of one
INPUTS = [1, 3, 48, 101, 576]
OUTPUTS = [1, 15, 16, 30, 79, 176]
ROWS = [1, 2, 5, 6, 13, 101]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed_linear(k: int, n: int, offset: float = -5.0) -> dict[str, Tensor]:
    return pack_linear(normal(k, n, k), normal(n, n), torch.tensor([0.037]), torch.tensor([offset]))


def prepared(packed: dict[str, Tensor]) -> W8A8Linear:
    linear = W8A8Linear(packed)
    linear.prepare()
    assert linear.weight.ndim == 4
    return linear


@needs_kernels
@pytest.mark.parametrize("rows", ROWS)
def test_a_linear_is_the_reference_s_for_any_shape(rows: int) -> None:
    for k in INPUTS:
        for n in OUTPUTS:
            x, packed = 2 * normal(rows, rows, k), packed_linear(k, n)
            assert torch.equal(prepared(packed)(x), int8_linear(x, packed)), (k, n)


@needs_kernels
@pytest.mark.parametrize("offset", [-128.0, 0.0, 127.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_linear_is_the_reference_s_for_any_offset_and_dtype(offset: float, dtype: torch.dtype) -> None:
    x, packed = normal(0, 2, 3, 96).to(dtype), packed_linear(96, 64, offset)
    y = prepared(packed)(x)
    assert y.dtype == dtype
    assert torch.equal(y, int8_linear(x, packed))


@needs_kernels
@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("value", [-1e30, 1e30, float("inf"), float("-inf")])
def test_extreme_values_do_not_saturate(weight: int, value: float) -> None:
    packed = packed_linear(1536, 48)
    packed["weight"] = torch.full_like(packed["weight"], weight)
    x = torch.full((7, 1536), value)
    expected = int8_accumulator(x, packed)
    assert expected.abs().min() > 1536 * 120 * 120
    assert torch.equal(prepared(packed)(x), int8_linear(x, packed))


@needs_kernels
def test_halves_round_to_even() -> None:
    packed = pack_linear(torch.eye(16) * 127, None, torch.tensor([1.0]), torch.tensor([0.0]))
    x = torch.arange(-8, 8) + 0.5
    assert torch.equal(prepared(packed)(x), int8_linear(x, packed))


@needs_kernels
def test_results_do_not_depend_on_the_number_of_threads(keep_threads: None) -> None:
    x, packed = normal(0, 40, 96), packed_linear(96, 176)
    query, key, value = (normal(seed, 1, 3, 300, 32) for seed in range(3))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        one = operators.attention(query[:, :, -1:], key, value)
        results.append([prepared(packed)(x), operators.attention(query, key, value), one])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.fixture
def keep_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 4), (30, 101), (79, 48)])
def test_panels_hold_the_weight_and_nothing_else(n: int, k: int) -> None:
    weight = packed_linear(k, n)["weight"]
    panels = pack_weight(weight)
    assert torch.equal(unpack_weight(panels, n, k), weight)
    assert panels.abs().sum(dtype=torch.int64) == weight.abs().sum(dtype=torch.int64)
    assert panels.numel() < (n + 16) * (k + 4)


@needs_kernels
def test_a_state_dict_holds_the_tensors_on_disk() -> None:
    packed = W8A8Linear(packed_linear(101, 30)).state_dict()
    linear = prepared(packed_linear(101, 30))
    assert all(torch.equal(tensor, packed[name]) for name, tensor in linear.state_dict().items())
    other = prepared(packed_linear(101, 30, offset=9.0))
    other.load_state_dict(linear.state_dict())
    x = normal(0, 3, 101)
    assert torch.equal(other(x), linear(x))


@needs_kernels
@pytest.mark.parametrize(("rows", "k", "n"), [(1, 64, 262), (1, 7, 5), (5, 33, 18), (50, 64, 30)])
def test_a_float_linear_is_that_of_float64(rows: int, k: int, n: int) -> None:
    x, weight, bias = normal(0, rows, k), normal(1, n, k), normal(2, n)
    expected = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(
        operators.float_linear(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-5
    )


@needs_kernels
@pytest.mark.parametrize("rows", [1, 7, 8, 13, 33, 101])
@pytest.mark.parametrize(("k", "n"), [(64, 262), (7, 5), (96, 33), (1568, 30)])
def test_a_bfloat16_linear_is_that_of_float64_on_a_rounded_input(rows: int, k: int, n: int) -> None:
    x, weight, bias = normal(0, rows, k), normal(1, n, k).bfloat16(), normal(2, n)
    expected = x.bfloat16().double() @ weight.double().T + bias.double()
    found = operators.float_linear(x, weight, bias)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-7 * k + 1e-5)
    assert not torch.equal(found, operators.float_linear(x, weight.float(), bias))


@needs_kernels
def test_bfloat16_keeps_what_is_no_number() -> None:
    x = torch.tensor([[1.0, float("nan")], [1.0, float("inf")], [1.0, 3e38], [1.0, 3.4e38]])
    found = operators.float_linear(x, torch.eye(2).bfloat16(), None)
    torch.testing.assert_close(found, x.bfloat16().float() @ torch.eye(2), equal_nan=True)


@needs_kernels
def test_silu_of_large_values_is_finite() -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, -1.0, 0.0, 1.0, 90.0, 200.0, 1e30])
    y = operators.silu_product(gate, torch.ones(9))
    torch.testing.assert_close(y, torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-8)


@needs_kernels
@pytest.mark.parametrize("positions", [1, 16, 63, 64, 65, 128, 129, 300])
@pytest.mark.parametrize("dim", [16, 48, 64, 160])
def test_attention_is_that_of_float64(positions: int, dim: int) -> None:
    query, key, value = (normal(seed, 2, 3, positions, dim) for seed in range(3))
    scores = query.double() @ key.double().transpose(2, 3) / dim**0.5
    hidden = torch.ones(positions, positions, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value.double()
    whole, last = operators.attention(query, key, value), operators.attention(query[:, :, -1:], key, value)
    torch.testing.assert_close(whole.double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(last.double(), expected[:, :, -1:], rtol=0, atol=2e-6)


@needs_kernels
def test_attention_reads_slices_of_a_cache() -> None:
    slots, query = normal(0, 2, 1, 3, 50, 32), normal(1, 1, 1, 3, 32).transpose(1, 2)
    key, value = slots[0, :, :, :40], slots[1, :, :, :40]
    expected = operators.attention(query.contiguous(), key.contiguous(), value.contiguous())
    assert torch.equal(operators.attention(query, key, value), expected)


def switched(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    """This process anew, with this environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    library._loaded.cache_clear()


@pytest.fixture
def reload_after(monkeypatch: pytest.MonkeyPatch) -> object:
    yield
    monkeypatch.undo()
    library._loaded.cache_clear()


def test_without_kernels_torch_computes_the_same(
    reload_after: None, monkeypatch: pytest.MonkeyPatch, tiny_w8a8_folder: Path
) -> None:
    ids = torch.randint(6, 262, (1, 60), generator=torch.Generator().manual_seed(0))
    expected = load_model(tiny_w8a8_folder, device="cpu")(ids).logits
    switched(monkeypatch, TELECHAT_KIT_NO_KERNEL="1")
    assert library.description() == "TELECHAT_KIT_NO_KERNEL is set"
    assert "TELECHAT_KIT_NO_KERNEL" in cpu.operators()["int8_linear"]
    logits = load_model(tiny_w8a8_folder, device="cpu")(ids).logits
    assert (logits - expected).abs().max() < 0.1 * expected.std()


def test_a_compiler_that_fails_is_reported_and_done_without(
    reload_after: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    switched(monkeypatch, CC="/no/such/compiler", XDG_CACHE_HOME=str(tmp_path))
    assert library.library() is None
    assert library.description() == "/no/such/compiler cannot be run"
    packed = packed_linear(48, 30)
    assert torch.equal(cpu.prepare_linear(packed)["weight"], packed["weight"])
    switched(monkeypatch, CC="false")
    assert library.library() is None


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
@pytest.mark.parametrize(
    ("march", "isa"),
    [
        ("x86-64", "plain C"),
        ("x86-64-v3", "avx2"),
        ("alderlake", "avx_vnni"),
        ("icelake-server", "avx512_vnni"),
        ("cooperlake", "avx512_bf16"),
        ("sapphirerapids", "amx_int8"),
    ],
)
def test_every_instruction_set_gives_the_same(
    reload_after: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, march: str, isa: str
) -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    if isa not in ("plain C", *flags):
        pytest.skip(f"this processor has no {isa}")
    name = {"avx512_bf16": "avx512_vnni", "amx_int8": "avx512_vnni, amx"}.get(isa, isa)
    monkeypatch.setattr(build, "native_flags", lambda: (f"-march={march}",))
    switched(monkeypatch, XDG_CACHE_HOME=str(tmp_path))
    assert library.description() == f"compiled kernel ({name})"
    for rows, k, n in ((1, 101, 79), (7, 48, 64), (13, 576, 30), (50, 101, 79)):
        x, packed = 2 * normal(rows, rows, k), packed_linear(k, n)
        packed["weight"][0] = -128
        assert torch.equal(prepared(packed)(x), int8_linear(x, packed))
    test_attention_is_that_of_float64(129, 48)
    test_a_float_linear_is_that_of_float64(5, 33, 18)
    for rows in (1, 13):
        test_a_bfloat16_linear_is_that_of_float64_on_a_rounded_input(rows, 96, 33)
    for half in test_half_rows.HALVES:
        test_half_rows.test_every_half_is_widened_to_itself(half)
        test_half_rows.test_floats_are_rounded_to_the_nearest_half_to_even(half)


@needs_kernels
def test_a_library_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build.built_library()
    changed = first.stat().st_mtime_ns
    assert build.built_library() == first
    assert first.stat().st_mtime_ns == changed
    assert [path.suffix for path in first.parent.iterdir()] == [".so"]

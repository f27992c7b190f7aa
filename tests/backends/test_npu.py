"""The NPU backend on exact stand-ins of torch_npu's operators: integers bit for bit, outputs within their rounding."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import npu_operators
import pytest
import torch
from torch import Tensor, nn

from telechat_kit.backends import npu, plain, resolve_device
from telechat_kit.backends.data_sheets import data_sheet
from telechat_kit.backends.npu import toolkit
from telechat_kit.backends.npu import torch_npu_guard as npu_import
from telechat_kit.backends.npu.attention import whole_slot
from telechat_kit.backends.npu.chips import CHIPS, FRACTAL_NZ, chip_of
from telechat_kit.backends.npu.linears import nearest_19_bits
from telechat_kit.errors import DeviceError
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.performance.roofline import measure_peaks
from telechat_kit.quantization.int8.packing import (
    int8_accumulator,
    int8_linear,
    pack_linear,
    quantize_weight,
)

SHAPES = [(1, 64, 32), (7, 101, 30), (33, 1536, 96), (2, 4096, 64)]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed_linear(k: int, n: int, offset: float = 7.0) -> dict[str, Tensor]:
    scale = torch.tensor([0.0371])
    return pack_linear(normal(k, n, k) / k**0.5, normal(n, n), scale, torch.tensor([offset]))


def prepared_linear(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a W8A8 linear holds after `prepare` on an NPU."""
    return npu.prepare_linear(dict(W8A8Linear(packed).named_buffers()))


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("offset", [-128.0, 0.0, 7.0])
def test_accumulators_are_the_reference_s_bit_for_bit(
    any_chip: ModuleType, m: int, k: int, n: int, offset: float
) -> None:
    x, packed = normal(3, m, k).half(), packed_linear(k, n, offset)
    npu.int8_linear(x, **prepared_linear(packed))
    found = npu_operators.Chip.accumulator
    assert found is not None
    assert torch.equal(found.to(torch.int32), int8_accumulator(x, packed))


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_outputs_are_off_by_the_rounding_of_scale_and_result_only(
    any_chip: ModuleType, m: int, k: int, n: int
) -> None:
    x, packed = normal(3, m, k).half(), packed_linear(k, n)
    y = npu.int8_linear(x, **prepared_linear(packed))
    exact = int8_linear(x.float(), packed)
    assert y.dtype == torch.float16
    # 10 bits of mantissa, rounded to nearest, once in the scale and once in the result
    torch.testing.assert_close(y.float(), exact, rtol=2**-11 + 2**-11 + 2**-20, atol=2**-25)


def test_scales_are_rounded_to_what_the_operator_keeps_and_not_cut(any_chip: ModuleType) -> None:
    scales = torch.cat([normal(0, 1000).abs() * 1e-3, torch.tensor([0.001, -0.001, 1.0, 2.0**-20])])
    kept = npu_operators.scale_of_19_bits(nearest_19_bits(scales))
    assert torch.equal(kept, nearest_19_bits(scales))
    errors = (kept / scales - 1).double()
    assert errors.abs().max() <= 2**-11
    assert errors.mean().abs() < 2e-5  # cut off, the mean is -3.5e-4


def test_a_310p_gets_blocked_weights_transposed_and_a_910b_untransposed(
    chip_310p: ModuleType, use_chip: object
) -> None:
    tensors = prepared_linear(packed_linear(64, 32))
    assert chip_310p.get_npu_format(tensors["weight"]) == FRACTAL_NZ
    assert tensors["weight"].shape == (32, 64)
    assert (tensors["matmul_scale"].dtype, tensors["zero_point"].dtype) == (torch.int64, torch.int32)
    use_chip("Ascend910B4")  # type: ignore[operator]
    assert prepared_linear(packed_linear(64, 32))["weight"].shape == (64, 32)


def test_a_910b_gives_bfloat16_with_its_exact_scale(chip_910b: ModuleType) -> None:
    x, packed = normal(3, 5, 96).bfloat16(), packed_linear(96, 64)
    y = npu.int8_linear(x, **prepared_linear(packed))
    assert torch.equal(y, int8_linear(x, packed))


def test_leading_axes_stay(any_chip: ModuleType) -> None:
    x, packed = normal(3, 2, 3, 48).half(), packed_linear(48, 30)
    tensors = prepared_linear(packed)
    y = npu.int8_linear(x, **tensors)
    assert y.shape == (2, 3, 30)
    assert torch.equal(y.view(6, 30), npu.int8_linear(x.view(6, 48), **tensors))


def test_without_an_int8_product_the_slower_way_is_exact_and_told(
    chip_310p: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(chip_310p, "npu_quant_matmul")
    x, packed = normal(3, 5, 3000).half(), packed_linear(3000, 64)
    tensors = prepared_linear(packed)
    assert tensors["weight"].dtype == torch.int8
    assert torch.equal(npu.int8_linear(x, **tensors), int8_linear(x, packed))
    assert npu.operators()["int8_linear"] == "plain torch"


def test_products_in_float32_are_exact_for_any_values() -> None:
    for left, right in ((-128, -128), (127, -128), (127, 127)):
        x, weight = torch.full((2, 5000), left).to(torch.int8), torch.full((3, 5000), right).to(torch.int8)
        assert (plain.accumulate(x, weight) == left * right * 5000).all()


def test_quantize_differs_from_the_reference_only_in_exact_halves(any_chip: ModuleType) -> None:
    scale = torch.tensor([1.0])
    x = torch.tensor([0.5, 1.5, 2.25, -0.5, 300, -300], dtype=torch.float16)
    even, odd = (npu.quantize(x, scale, torch.tensor([offset])) for offset in (2.0, 3.0))
    assert torch.equal(even, plain.quantize(x, scale, torch.tensor([2.0])))
    assert odd.tolist() == [4, 4, 5, 2, 127, -128]
    assert plain.quantize(x, scale, torch.tensor([3.0])).tolist() == [3, 5, 5, 3, 127, -128]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rms_norm_is_the_plain_one_within_a_rounding(any_chip: ModuleType, dtype: torch.dtype) -> None:
    x, weight = (30 * normal(0, 2, 5, 64)).to(dtype), normal(1, 64).to(dtype)
    y = npu.rms_norm(x, weight, 1e-5)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(y, plain.rms_norm(x, weight, 1e-5), rtol=2 * step, atol=step)
    assert npu.operators() == {"rms_norm": "npu_rms_norm"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_norm_of_a_sum_is_one_operator_and_gives_the_sum_too(
    any_chip: ModuleType, dtype: torch.dtype
) -> None:
    x, residual, weight = (scale * normal(0, 2, 5, 64) for scale in (30, 3, 1))
    x, residual, weight = x.to(dtype), residual.to(dtype), weight[0, 0].to(dtype)
    normed, total = npu.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, npu.rms_norm(total, weight, 1e-5))
    assert npu.operators()["add_rms_norm"] == "npu_add_rms_norm"


def dynamic_linear(k: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    weight, scale = quantize_weight(normal(k, n, k) / k**0.5)
    return weight, scale.float().squeeze(1), normal(n, n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_910b_scales_every_token_with_its_own_operators(chip_910b: ModuleType, dtype: torch.dtype) -> None:
    x, (weight, scale, bias) = normal(3, 2, 5, 96).to(dtype), dynamic_linear(96, 64)
    x[0, 1] = 0  # a token of zeros has scale 0
    for given in (bias, None):
        y = npu.dynamic_int8_linear(x, weight, scale, given)
        exact = plain.dynamic_product(x, weight, scale, given, plain.accumulate)
        torch.testing.assert_close(y, exact, rtol=2 * torch.finfo(dtype).eps, atol=0)
    way = "npu_dynamic_quant, npu_quant_matmul"
    assert npu.operators() == {"dynamic_int8_linear": way}


def prepared_dynamic(weight: Tensor, scale: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """What a linear with dynamic activations hands to the backend on an NPU."""
    tensors = {"weight": weight, "weight_scale": scale, **({} if bias is None else {"bias": bias})}
    return {"bias": None, **npu.prepare_dynamic_linear(tensors)}  # type: ignore[dict-item]


def test_a_310p_scales_every_token_from_cann_9_1_on(chip_310p: ModuleType) -> None:
    x, (weight, scale, bias) = normal(3, 2, 5, 96).half(), dynamic_linear(96, 64)
    for given in (bias, None):
        tensors = prepared_dynamic(weight, scale, given)
        assert chip_310p.get_npu_format(tensors["weight"]) == FRACTAL_NZ
        y = npu.dynamic_int8_linear(x, **tensors)
        exact = plain.dynamic_product(x.float(), weight, scale, given, plain.accumulate)
        torch.testing.assert_close(y.float(), exact, rtol=2**-10, atol=2**-9)
        assert torch.equal(npu.restore_dynamic_linear(tensors, 64, 96)["weight"], weight)
    assert npu.operators()["dynamic_int8_linear"] == "npu_dynamic_quant, npu_quant_matmul"


@pytest.mark.parametrize(("version", "size"), [("9.0.0", 96), ("9.1.0", 100), (None, 96)])
def test_a_310p_scales_tokens_in_plain_torch_elsewhere_and_says_so(
    use_chip: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    version: str | None,
    size: int,
) -> None:
    use_chip("Ascend310P3")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    if version is not None:
        (tmp_path / "version.cfg").write_text(f"toolkit_running_version=[8.9.0.1:{version}]\n")
    toolkit.cann_version.cache_clear()
    x, (weight, scale, bias) = normal(3, 5, size).half(), dynamic_linear(size, 64)
    y = npu.dynamic_int8_linear(x, **prepared_dynamic(weight, scale, bias))
    assert torch.equal(y, plain.dynamic_product(x, weight, scale, bias, plain.accumulate))
    assert npu.operators() == {"dynamic_int8_linear": "plain torch"}


@pytest.mark.parametrize(
    ("chip", "size", "heads", "way"),
    [
        ("Ascend310P3", 128, 2, "npu_apply_rotary_pos_emb"),
        ("Ascend310P3", 64, 2, "npu_apply_rotary_pos_emb"),
        ("Ascend310P3", 160, 2, "plain torch"),  # no such head size, and no npu_rotary_mul
        ("Ascend310P3", 128, 250, "plain torch"),  # more heads than a core's buffer holds
        ("Ascend310P3", 64, 254, "plain torch"),  # more than 255 heads of query and key
        ("Ascend910B4", 128, 2, "npu_apply_rotary_pos_emb"),
        ("Ascend910B4", 160, 2, "npu_rotary_mul"),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_queries_and_keys_are_rotated_by_the_operator_that_the_chip_has(
    use_chip: Callable[[str], ModuleType], chip: str, size: int, heads: int, way: str, batch: int
) -> None:
    use_chip(chip)
    query, key = (normal(i, batch, count, 9, size).half() for i, count in enumerate((heads, 2)))
    angle = normal(1, 9, size // 2).repeat(1, 2)
    cos, sin = angle.cos().half(), angle.sin().half()
    exact = plain.rotate(query, key, cos, sin)
    for found, expected in zip(npu.rotate(query, key, cos, sin), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)
    assert npu.operators() == {"rotate": way}


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 40), (7, 7), (17, 17), (300, 300), (320, 320)])
@pytest.mark.parametrize("shared", [1, 3])
def test_attention_is_the_plain_one_within_half_precision(
    any_chip: ModuleType, queries: int, keys: int, shared: int
) -> None:
    """Keys and values are the front of a cache slot whose rest is garbage."""
    query = normal(0, 2, 3, queries, 16).half()
    slots = torch.full((2, 2, shared, 400, 16), 6e4).half()
    slots[:, :, :, :keys] = normal(1, 2, 2, shared, keys, 16).half()
    key, value = slots[:, :, :, :keys]
    y = npu.attention(query, key, value, None)
    exact = plain.attention(query.float(), key.float(), value.float(), None)
    torch.testing.assert_close(y.float(), exact, rtol=0, atol=4e-3)
    padded = "" if npu.current_chip().family == "910B" else ", padded to 16"
    prompt = {"prompt_attention": f"npu_prompt_flash_attention{padded}"}
    assert npu.operators() == ({"decode_attention": "npu_incre_flash_attention"} if queries == 1 else prompt)


def test_a_front_of_a_slot_is_handed_over_as_the_slot_and_not_copied() -> None:
    slots = normal(0, 2, 2, 3, 40, 16)
    for slot in slots:
        whole = whole_slot(slot[:, :, :7])
        assert whole.data_ptr() == slot.data_ptr()
        assert torch.equal(whole, slot)
        strided = slot.transpose(1, 2)[:, :, :2]
        assert whole_slot(strided).data_ptr() != slot.data_ptr()
        assert torch.equal(whole_slot(strided), strided)
    last = slots[1, :, 2:, 30:]  # what would be the rest of its slot is not there
    assert torch.equal(whole_slot(last), last)


def test_attention_takes_the_slower_way_with_a_mask_and_where_the_operator_does_not_fit(
    chip_310p: ModuleType,
) -> None:
    query, key, value = (normal(seed, 1, 2, 5, 16) for seed in range(3))
    mask = torch.zeros(1, 1, 5, 5).masked_fill(
        torch.ones(5, 5).triu(1).bool(), torch.finfo(torch.float32).min
    )
    mask[..., 3, :] = torch.finfo(torch.float32).min
    for given in (None, mask):
        y = npu.attention(query, key, value, given)
        torch.testing.assert_close(y, plain.attention(query, key, value, given))
    assert npu.operators() == {
        "prompt_attention": "plain torch"
    }  # float32 queries; with a mask nothing else can


def test_float_weights_of_a_310p_are_blocked_once(chip_310p: ModuleType) -> None:
    linear = nn.Linear(64, 32).half()
    before = linear.weight.clone()
    npu.prepare_float_linear(linear)
    assert chip_310p.get_npu_format(linear.weight) == FRACTAL_NZ
    assert torch.equal(linear.weight, before)


def test_a_weight_that_stays_unblocked_is_told_with_the_remedy(
    chip_310p: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chip_310p, "npu_format_cast", lambda tensor, _: tensor.clone())
    with pytest.raises(DeviceError, match=r"left in format 2, .* unset ALLOW_INTERNAL_FORMAT"):
        prepared_linear(packed_linear(64, 32))


def test_bfloat16_on_a_310p_is_refused_and_float16_taken_for_a_bfloat16_checkpoint(
    chip_310p: ModuleType,
) -> None:
    with pytest.raises(
        DeviceError, match="bfloat16 asked for, but the 310P calculates in float16, float32 only"
    ):
        npu.choose_dtype(torch.bfloat16, None)
    assert npu.choose_dtype(None, torch.bfloat16) == torch.float16
    assert npu.choose_dtype(None, torch.float32) == torch.float16
    assert npu.choose_dtype(torch.float32, None) == torch.float32


def test_a_910b_keeps_a_bfloat16_checkpoint(chip_910b: ModuleType) -> None:
    assert npu.choose_dtype(None, torch.bfloat16) == torch.bfloat16


def test_soc_numbers_are_those_of_torch_npu() -> None:
    assert chip_of(202, "Ascend310P3").family == "310P"
    assert chip_of(224, "Ascend910B4").family == "910B"
    assert chip_of(250, "Ascend910_9391").family == "910_93"
    for soc in (104, 240, 206, 219, 226):  # 104 is called Ascend910B and is of the first 910 family
        with pytest.raises(DeviceError, match=f"soc {soc}.* knows 310P, 910B, 910_93"):
            chip_of(soc, "Ascend")


def test_every_operator_of_the_table_has_a_stand_in() -> None:
    for chip in CHIPS:
        assert chip.operators <= set(npu_operators.OPERATORS)


def test_opening_a_device_asks_for_ready_operators_and_blocked_formats(chip_310p: ModuleType) -> None:
    npu.open_device(0)
    assert chip_310p.npu.jit_compile is False
    assert chip_310p.npu.config.allow_internal_format is True
    assert npu.device_name() == "Ascend310P3"


def test_an_unknown_chip_is_refused_when_the_device_is_opened(use_chip: object) -> None:
    use_chip("Ascend310B1")  # type: ignore[operator]
    with pytest.raises(
        DeviceError, match=r'"npu:0" asked for, but the chip Ascend310B1 .* is unknown to the kit'
    ):
        resolve_device("npu:0")


def test_a_number_beyond_the_devices_is_refused(chip_310p: ModuleType) -> None:
    with pytest.raises(DeviceError, match=r"torch sees 1 npu device\(s\) here. .* use npu:0 to npu:0"):
        resolve_device("npu:1")


def test_no_device_at_all_is_told_with_the_tool_that_shows_them(
    chip_310p: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chip_310p.npu, "devices", 0, raising=False)
    with pytest.raises(DeviceError, match=r"torch sees 0 npu .* npu-smi info"):
        resolve_device("npu")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ImportError("libhccl.so: cannot open shared object file: No such file"), "source /usr/local/Ascend"),
        (ImportError("_C.so: undefined symbol: _ZN3c10"), "built for another torch"),
        (RuntimeError("anything else"), "belong together"),
    ],
)
def test_a_torch_npu_that_breaks_on_import_is_told_with_its_error_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    monkeypatch.setattr(npu_import, "cause", error)
    with pytest.raises(DeviceError, match=remedy) as told:
        resolve_device("npu:0")
    assert str(error).split(":", maxsplit=1)[0] in str(told.value)


def test_bandwidth_and_operations_come_from_the_data_sheet(any_chip: ModuleType) -> None:
    sheet = data_sheet(npu.device_name())
    assert sheet is not None
    assert npu.read_bandwidth() == (sheet.bandwidth, sheet.basis)
    peaks = measure_peaks(cast(torch.device, SimpleNamespace(type="npu")))  # torch itself knows no "npu" here
    assert (peaks.bandwidth, peaks.int8_operations) == (sheet.bandwidth, sheet.int8_operations)
    assert (peaks.float_operations, peaks.operations_basis) == (sheet.half_operations, sheet.basis)


def test_a_release_without_graphs_is_named_with_the_remedy(chip_910b: ModuleType) -> None:
    with pytest.raises(
        DeviceError, match=r"needs a torch_npu with NPUGraph, .* Install a newer pair .* graph: none"
    ):
        npu.capture(lambda: None)

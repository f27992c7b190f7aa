"""The stand-ins are as strict as the operator documentation, and their arithmetic is the documented one."""

from collections.abc import Callable
from typing import Any

import npu_operators
import npu_registry
import pytest
import torch
from npu_registry import FRACTAL_NZ, format_of
from torch import Tensor

ops = torch.ops.npu


@pytest.fixture(autouse=True)
def chip(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An Atlas 300I Pro, until a test asks for another."""
    monkeypatch.setattr(npu_operators.Chip, "name", "Ascend310P3")
    return lambda name: monkeypatch.setattr(npu_operators.Chip, "name", name)


def int8(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def blocked(weight: Tensor) -> Tensor:
    return ops.npu_format_cast(weight, FRACTAL_NZ)


def scales(*values: float) -> Tensor:
    return ops.npu_trans_quant_param(torch.tensor(values))


def test_quant_parameters_are_the_documented_bit_patterns() -> None:
    assert [hex(value) for value in scales(0.001, -0.001).tolist()] == ["0x40003a830000", "0x4000ba830000"]
    kept = npu_operators.scale_of_19_bits(scales(0.001, -0.001))
    assert kept.tolist() == pytest.approx([0.00099945, -0.00099945], rel=1e-5)


def test_the_product_is_exact_and_scaled_with_19_bits() -> None:
    x, weight, bias = int8(0, 3, 64), int8(1, 2, 64), torch.tensor([5, -7], dtype=torch.int32)
    y = ops.npu_quant_matmul(
        x, blocked(weight).t(), scales(0.001, 0.002), bias=bias, output_dtype=torch.float16
    )
    exact = x.long() @ weight.long().T + bias
    assert torch.equal(npu_operators.Chip.accumulator, exact)
    kept = npu_operators.scale_of_19_bits(scales(0.001, 0.002))
    assert torch.equal(y, (exact.float() * kept).half())


def test_a_310p_stops_at_the_largest_half_and_a_910b_goes_to_infinity(chip: Callable[[str], None]) -> None:
    x, weight = torch.full((1, 64), 127, dtype=torch.int8), torch.full((2, 64), 127, dtype=torch.int8)
    factor, options = scales(1.0, -1.0), {"output_dtype": torch.float16}
    assert ops.npu_quant_matmul(x, blocked(weight).t(), factor, **options).tolist() == [[65504, -65504]]
    chip("Ascend910B4")
    y = ops.npu_quant_matmul(x, blocked(weight.t()), factor, **options)
    assert y.tolist() == [[float("inf"), float("-inf")]]


def product(**changes: Any) -> Tensor:
    """A valid call of a 310P with some arguments exchanged."""
    arguments = {
        "x1": int8(0, 3, 64),
        "x2": blocked(int8(1, 2, 64)).t(),
        "scale": scales(0.001, 0.002),
        "bias": torch.zeros(2, dtype=torch.int32),
        "output_dtype": torch.float16,
        **changes,
    }
    return ops.npu_quant_matmul(arguments.pop("x1"), arguments.pop("x2"), arguments.pop("scale"), **arguments)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"x1": torch.zeros(3, 64).half()}, "not int8"),
        ({"x1": int8(0, 3, 63)}, "63 columns"),
        ({"x1": int8(0, 64)}, "2 to 6 axes"),
        ({"x2": int8(1, 2, 64).t()}, "FRACTAL_NZ"),
        ({"scale": torch.tensor([0.1]).bfloat16()}, "scale torch.bfloat16"),
        ({"scale": torch.tensor([1, 2])}, "no quant parameter"),
        ({"scale": torch.tensor([0.1, 0.2, 0.3])}, "1 or 2 values"),
        ({"bias": torch.zeros(2)}, "bias torch.float32"),
        ({"bias": torch.zeros(3, dtype=torch.int32)}, "bias must have 2"),
        ({"output_dtype": torch.bfloat16}, "bfloat16"),
        ({"output_dtype": torch.int32}, "int32"),
        ({"output_dtype": torch.float32}, "output None"),
        ({"pertoken_scale": torch.ones(3)}, "scale torch.int64"),
        ({"x1": int8(0, 64, 3).t()}, "contiguous"),
        ({"x2": blocked(int8(1, 64, 2))}, "transpose_x2 true"),
        ({"x2": int8(1, 2, 64)}, "64 columns"),
    ],
)
def test_a_product_that_a_310p_does_not_document_is_refused(changes: dict[str, Any], rule: str) -> None:
    assert product().shape == (3, 2)
    with pytest.raises(RuntimeError, match=f"npu_quant_matmul: .*{rule}"):
        product(**changes)


def test_wrong_names_and_positions_are_refused_by_the_schema() -> None:
    x = torch.ones(2, 64).half()
    with pytest.raises(RuntimeError, match="eps"):
        ops.npu_rms_norm(x, torch.ones(64).half(), eps=1e-5)
    with pytest.raises(RuntimeError, match="positional"):
        ops.npu_quant_matmul(int8(0, 3, 64), int8(1, 64, 2), scales(0.1), None, None)
    with pytest.raises(NotImplementedError):
        ops.npu_fusion_attention(x[None], x[None], x[None], 1, "BSH")


def pair(
    size: int = 128,
    heads: int = 2,
    rows: int = 4,
    positions: int = 4,
    table_dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Tensor]:
    """A valid call of npu_apply_rotary_pos_emb unless an argument spoils it."""
    query, key = torch.ones(1, rows, heads, size).half(), torch.ones(1, rows, 1, size).half()
    return ops.npu_apply_rotary_pos_emb(query, key, *[torch.ones(1, positions, 1, size).to(table_dtype)] * 2)


def prompt(length: int, keys: int = 0, batch: int = 1, strided: bool = False, **changes: Any) -> Tensor:
    """A valid call of npu_prompt_flash_attention on a 310P, for lengths that it takes, unless a change spoils it."""
    parts = [torch.ones(batch, 2, size, 16).half() for size in (length, keys or length, keys or length)]
    if strided:
        parts[1] = torch.ones(batch, 2, 2 * length, 16).half()[:, :, :length]
    mask = torch.ones(length, keys or length, dtype=torch.bool).triu(1)
    options = {"num_heads": 2, "input_layout": "BNSD", "atten_mask": mask, **changes}
    return ops.npu_prompt_flash_attention(*parts, **options)


def one_token(
    heads: int = 1, size: int = 16, batch: int = 1, strided: bool = False, **changes: Any
) -> Tensor:
    """A valid call of npu_incre_flash_attention on a 310P unless a change spoils it."""
    key = torch.ones(batch, 1, 40, 2 * size if strided else size).half()[..., :size]
    query, options = torch.ones(batch, heads, 1, size).half(), {"actual_seq_lengths": [7] * batch, **changes}
    return ops.npu_incre_flash_attention(query, key, key, num_heads=heads, input_layout="BNSD", **options)


def test_the_calls_that_refusals_are_shown_with_are_valid_themselves() -> None:
    assert prompt(32).shape == (1, 2, 32, 16)
    assert one_token().shape == one_token(heads=1, size=16).shape == (1, 1, 1, 16)
    assert one_token(heads=32, num_key_value_heads=1).shape == (1, 32, 1, 16)
    query, key = pair()
    assert (query.shape, key.shape) == ((1, 4, 2, 128), (1, 4, 1, 128))


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.npu_quantize(torch.ones(2, 8).half(), torch.ones(3), None, torch.qint8, -1),
        lambda: ops.npu_quantize(torch.ones(2, 8).half(), torch.ones(1).bfloat16(), None, torch.qint8, -1),
        lambda: ops.npu_quantize(torch.ones(2, 8), torch.ones(1), torch.ones(8).int(), torch.qint8, -1),
        lambda: ops.npu_quantize(torch.ones(2, 8), torch.ones(2), None, torch.qint8, 0, False),
        lambda: ops.npu_quantize(torch.ones(2, 8).half(), torch.ones(1), None, torch.qint8, -1, False),
        lambda: ops.npu_quantize(torch.ones(2, 8).bfloat16(), torch.ones(1), None, torch.qint8, -1),
        lambda: ops.npu_quantize(torch.ones(2, 8).half(), torch.ones(1), torch.ones(1), torch.qint8, -1),
        lambda: ops.npu_rms_norm(torch.ones(2, 64).half(), torch.ones(64), 1e-5),
        lambda: ops.npu_rms_norm(torch.ones(2, 64).half(), torch.ones(63).half(), 1e-5),
        lambda: ops.npu_rms_norm(torch.ones(2, 8).half(), torch.ones(8).half(), 1e-5),
        lambda: ops.npu_add_rms_norm(
            torch.ones(2, 64).half(), torch.ones(1, 64).half(), torch.ones(64).half()
        ),
        lambda: ops.npu_add_rms_norm(torch.ones(2, 64).half(), torch.ones(2, 64), torch.ones(64).half()),
        lambda: ops.npu_add_rms_norm(*[torch.ones(2, 64).bfloat16()] * 2, torch.ones(64).bfloat16()),
        lambda: ops.npu_rotary_mul(*[torch.ones(1, 1, 4, 64).half()] * 3),
        lambda: ops.npu_rotary_mul(torch.ones(1, 1, 4, 128).half(), *[torch.ones(1, 1, 4, 128)] * 2),
        lambda: ops.npu_dynamic_quant(torch.ones(2, 63).half()),
        lambda: ops.npu_dynamic_quant(torch.ones(2, 64)),
        lambda: ops.npu_rotary_mul(*[torch.ones(1, 1, 4, 128).half()] * 3),
        lambda: ops.npu_format_cast(int8(0, 1, 64), FRACTAL_NZ),
        lambda: ops.npu_swiglu(torch.ones(2, 33).half()),
        lambda: ops.npu_swiglu(torch.ones(2, 48).half()),
        lambda: ops.npu_swiglu(torch.ones(64, 2).half().t()),
        lambda: ops.npu_swiglu(torch.ones(2, 64).bfloat16()),
        lambda: pair(size=96),
        lambda: pair(size=128, heads=240, rows=9, positions=9),  # they do not fit the buffer
        lambda: pair(size=64, heads=255),  # more than 255 with that of the key
        lambda: pair(positions=3),
        lambda: pair(table_dtype=torch.float32),
        lambda: prompt(17),
        lambda: prompt(16),
        lambda: prompt(32, keys=48),
        lambda: prompt(32, atten_mask=torch.ones(32, 32).to(torch.int8)),
        lambda: prompt(32, pre_tokens=31),
        lambda: prompt(32, next_tokens=5),
        lambda: prompt(32, num_key_value_heads=1),
        lambda: prompt(32, batch=129),
        lambda: prompt(32, strided=True),
        lambda: one_token(size=24),
        lambda: one_token(strided=True),
        lambda: one_token(heads=33, num_key_value_heads=1),
        lambda: one_token(heads=2, num_key_value_heads=1, size=144),
        lambda: one_token(heads=2, num_key_value_heads=2),
        lambda: one_token(batch=257),
        lambda: one_token(actual_seq_lengths=[41]),
        lambda: ops.npu_prompt_flash_attention(
            *[torch.ones(1, 2, 4, 16)] * 3, num_heads=2, input_layout="BNSD"
        ),
        lambda: ops.npu_prompt_flash_attention(
            *[torch.ones(1, 2, 4, 16).half()] * 3, num_heads=2, input_layout="BSH"
        ),
        lambda: ops.npu_incre_flash_attention(
            *[torch.ones(1, 2, 4, 16).half()] * 3, num_heads=2, input_layout="BNSD"
        ),
        lambda: ops.npu_trans_quant_param(torch.ones(3, 1)),
    ],
)
def test_what_the_documentation_forbids_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="stand-in for Ascend310P3"):
        call()


def test_dynamic_quantization_scales_every_row(chip: Callable[[str], None]) -> None:
    chip("Ascend910B4")
    x = torch.tensor([[1.0, -2.0], [0.5, 0.25]]).half()
    quantized, scale = ops.npu_dynamic_quant(x)
    assert quantized.tolist() == [[64, -127], [127, 64]]
    torch.testing.assert_close(scale, torch.tensor([2.0, 0.5]) / 127)


def test_a_scale_for_each_token_needs_cann_9_1_on_a_310p(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"scale": torch.ones(2), "bias": None, "pertoken_scale": torch.ones(3)}
    assert product(**changes).shape == (3, 2)
    monkeypatch.setattr(npu_operators.Chip, "cann", "9.0.0")
    with pytest.raises(RuntimeError, match=r"not supported by CANN 9.0.0: 9.1.0 is needed"):
        product(**changes)


def test_a_refusal_names_its_source() -> None:
    with pytest.raises(
        RuntimeError, match=r"Qs = 17, Kvs = 17 \[ops-transformer .*tiling.cpp\], error code is 561103"
    ):
        prompt(17)


def test_the_norm_of_a_sum_is_that_of_the_rounded_sum_and_a_310p_gives_no_root(
    chip: Callable[[str], None],
) -> None:
    x, residual, weight = torch.full((1, 64), 2048.0).half(), torch.ones(1, 64).half(), torch.ones(64).half()
    normed, root, total = ops.npu_add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x)  # 2049 is no float16
    assert torch.equal(normed, ops.npu_rms_norm(total, weight, 1e-5)[0])
    assert root.isnan().all()
    chip("Ascend910B4")
    assert not ops.npu_add_rms_norm(x, residual, weight, 1e-5)[1].isnan().any()


def test_views_keep_the_format_of_their_memory_and_copies_do_not() -> None:
    cast = blocked(int8(0, 4, 64))
    assert format_of(cast) == format_of(cast.t()) == FRACTAL_NZ
    assert format_of(cast.clone()) == npu_registry.ND


def test_calls_are_written_down_once_a_kind() -> None:
    npu_registry.forget_calls()
    for rows in (1, 2):
        ops.npu_rms_norm(torch.ones(rows, 64).half(), torch.ones(64).half(), 1e-5)
    ops.npu_rms_norm(torch.ones(1, 64), torch.ones(64), 1e-5)
    found = [call.arguments["input"]["dtype"] for call in npu_registry.calls()]
    assert sorted(found) == ["float16", "float32"]

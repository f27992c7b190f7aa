"""Rotary tables: the published base and length factor, their rounding, their dtype, when they are built anew."""

import math

import pytest
import torch

from telechat_kit.model import rotary
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.rotary import Rotary, length_factor, ntk_alpha, rotary_tables

CPU = torch.device("cpu")
SEVEN_B = TelechatConfig()
TWELVE_B = TelechatConfig(hidden_size=5120, tie_word_embeddings=False)


def small_config(**changes: object) -> TelechatConfig:
    """Trained on 32 tokens, heads of 16, alpha 1."""
    sizes = {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 2, "ffn_hidden_size": 48}
    return TelechatConfig(**{**sizes, "training_seqlen": 32, **changes})


@pytest.mark.parametrize(
    ("length", "alpha"), [(1, 3), (4096, 3), (8192, 3), (8193, 7), (16384, 7), (16385, 15), (32768, 15)]
)
def test_base_grows_with_the_length_as_in_7b(length: int, alpha: int) -> None:
    assert ntk_alpha(length, SEVEN_B) == alpha


@pytest.mark.parametrize(
    ("length", "alpha"), [(1, 1), (8192, 1), (8193, 3), (16384, 3), (16385, 7), (32768, 7)]
)
def test_base_grows_with_the_length_as_in_12b(length: int, alpha: int) -> None:
    assert ntk_alpha(length, TWELVE_B) == alpha


def test_base_seqlen_overrides_the_context_of_the_family() -> None:
    assert ntk_alpha(8192, TelechatConfig(base_seqlen=8192)) == 1
    assert ntk_alpha(8192, TelechatConfig(base_seqlen=2048, tie_word_embeddings=False)) == 7


def test_length_factor_is_one_up_to_the_trained_length_and_logarithmic_after_it() -> None:
    assert length_factor(1, SEVEN_B) == length_factor(8192, SEVEN_B) == 1
    assert length_factor(8193, SEVEN_B) > 1
    assert length_factor(16384, SEVEN_B) == pytest.approx(1 + 0.1 * math.log(2))


@pytest.mark.parametrize("config", [SEVEN_B, TWELVE_B], ids=["7b", "12b"])
def test_tables_hold_the_float16_cosine_and_sine_of_the_published_angles(config: TelechatConfig) -> None:
    cos, sin = rotary_tables(100, config, CPU)
    dim, alpha = config.head_dim, 3 if config is SEVEN_B else 1
    assert cos.shape == sin.shape == (8192, dim)
    for position, pair in [(0, 0), (1, 0), (7, 5), (99, dim // 2 - 1), (500, 11)]:
        angle = position / (10000 * alpha ** (dim / (dim - 2))) ** (2 * pair / dim)
        for column in (pair, pair + dim // 2):
            assert cos[position, column].item() == pytest.approx(math.cos(angle), abs=3e-4)
            assert sin[position, column].item() == pytest.approx(math.sin(angle), abs=3e-4)


@pytest.mark.parametrize("length", [32, 48])
def test_tables_are_rounded_to_float16_before_and_after_the_length_factor(length: int) -> None:
    rounded, _ = rotary_tables(length, small_config(), CPU)
    exact, _ = rotary_tables(length, small_config(rope_table_dtype="float32"), CPU)
    factor = 1 + 0.1 * math.log(length / 32)
    once = (exact / factor).half()
    assert rounded.dtype == exact.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, (once * factor).half().float(), rtol=0, atol=5e-4)
    assert torch.equal(rounded, rounded.half().float())


def test_float32_tables_are_not_rounded() -> None:
    _, sin = rotary_tables(32, small_config(rope_table_dtype="float32"), CPU)
    assert sin[1, 0].item() == pytest.approx(math.sin(1), abs=1e-7)


def test_rope_theta_sets_the_base() -> None:
    config = small_config(rope_theta=100.0, rope_table_dtype="float32")
    cos, _ = rotary_tables(32, config, CPU)
    assert cos[10, 1].item() == pytest.approx(math.cos(10 / 100 ** (2 / 16)), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "table"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_tables_for_a_model_keep_their_eleven_bits(model: torch.dtype, table: torch.dtype) -> None:
    published, _ = rotary_tables(32, small_config(), CPU)
    cos, _ = Rotary(small_config()).rows(0, 32, torch.zeros(1, dtype=model))
    assert cos.dtype == table
    assert torch.equal(cos.float(), published)


def test_rows_of_a_decode_step_are_those_of_its_slot() -> None:
    tables = Rotary(small_config())
    cos, sin = tables.rows(0, 20, torch.zeros(1))
    step_cos, step_sin = tables.rows(19, 20, torch.zeros(1))
    assert torch.equal(step_cos, cos[19:])
    assert torch.equal(step_sin, sin[19:])


def test_tables_are_built_once_up_to_the_trained_length_and_for_every_length_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = []

    def counted(length: int, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        built.append(length)
        return rotary_tables(length, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rotary, "rotary_tables", counted)
    tables = Rotary(small_config())
    for stop in (5, 6, 32, 33, 33, 40):
        cos, _ = tables.rows(0, stop, torch.zeros(1))
        assert torch.equal(cos, rotary_tables(stop, small_config(), CPU)[0][:stop])
    assert built == [5, 33, 40]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_a_16_bit_model_runs_and_agrees_with_float32(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = TelechatForCausalLM(small_config(initializer_range=0.1)).eval()
    ids = torch.arange(4, 28)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        halved = model.to(dtype)(ids).logits
    assert halved.dtype == dtype
    assert (halved.float() - expected).abs().max() < tolerance * expected.abs().max()

"""Which linears stay in float: lists of names and patterns, linears that share an input, levels that cannot be."""

import pytest

from telechat_kit.errors import ParameterError
from telechat_kit.quantization.levels.fallback import check_level, choose_float_linears

LOCAL = (
    "self_attention.query",
    "self_attention.key_value",
    "self_attention.dense",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
NAMES = [f"transformer.h.{block}.{local}" for block in range(12) for local in LOCAL]
SCORES = {name: float(score) for score, name in enumerate(NAMES)}


def names(level: str, group_fallback: bool = False) -> list[str]:
    return [linear.name for linear in choose_float_linears(SCORES, level, group_fallback)]


def test_names_and_patterns_are_taken_in_the_order_of_the_list() -> None:
    assert names("transformer.h.2.mlp.down_proj, transformer.h.1.mlp.*") == [
        "transformer.h.2.mlp.down_proj",
        "transformer.h.1.mlp.gate_proj",
        "transformer.h.1.mlp.up_proj",
        "transformer.h.1.mlp.down_proj",
    ]


def test_a_linear_that_several_patterns_match_is_taken_once() -> None:
    assert names("*.1.mlp.down_proj, transformer.h.1.mlp.down_proj,") == ["transformer.h.1.mlp.down_proj"]


def test_the_prefix_of_the_network_may_be_left_out() -> None:
    assert names("h.[35].self_attention.dense") == [
        "transformer.h.3.self_attention.dense",
        "transformer.h.5.self_attention.dense",
    ]


def test_partners_of_listed_linears_stay_in_float_and_say_why() -> None:
    kept = choose_float_linears(SCORES, "transformer.h.4.mlp.up_proj", group_fallback=True)
    assert [(linear.name, linear.score, linear.reason) for linear in kept] == [
        ("transformer.h.4.mlp.up_proj", 28.0, "listed"),
        ("transformer.h.4.mlp.gate_proj", 27.0, "shares an input with transformer.h.4.mlp.up_proj"),
    ]


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("transformer.h.3.mlp.*, transformer.h.9.mlp.dwn_proj", "dwn_proj.*is transformer.h.9.mlp.down_proj"),
        ("transformer.h.12.mlp.*", r'"transformer.h.12.mlp.\*" matches no linear'),
        ("L73", "the model has 72"),
        ("down_proj", 'level "down_proj" is unknown'),
        ("", 'level "" is unknown'),
        ("L-1", "unknown"),
    ],
)
def test_a_level_that_cannot_be_is_refused(level: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_level(level, NAMES)

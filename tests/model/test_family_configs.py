"""Configs of TeleChat2 and TeleChat3: which network they describe, what they keep, what is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from golden import DATA
from transformers import AutoConfig

from telechat_kit.errors import CheckpointError
from telechat_kit.model import Telechat3Config, TelechatConfig
from telechat_kit.model.folder import read_config
from telechat_kit.model.rotary import yarn_factor

SIZES = {"vocab_size": 50, "hidden_size": 48, "n_layer": 1, "n_head": 6, "ffn_hidden_size": 32}


@pytest.mark.parametrize(
    "architecture", ["TelechatForCausalLM", "TeleChat2ForCausalLM", "TeleChatForCausalLM"]
)
def test_the_keys_of_the_config_tell_the_form_and_not_the_class(architecture: str, tmp_path: Path) -> None:
    config = TelechatConfig(
        **SIZES, architectures=[architecture], num_key_value_heads=2, base_seqlen=64, training_seqlen=32,
        max_position_embeddings=4096, rope_scaling={"rope_type": "dynamic", "factor": 1.0},
    )  # fmt: skip
    assert (config.kv_heads, config.keys_keep_tables) == (2, True)
    config.save_pretrained(tmp_path)
    saved = AutoConfig.from_pretrained(tmp_path)
    assert (saved.kv_heads, saved.training_seqlen, saved.max_position_embeddings) == (2, 32, 4096)
    assert json.loads((tmp_path / "config.json").read_text())["rope_scaling"]["rope_type"] == "dynamic"


def test_a_config_without_the_key_is_7b_or_12b_and_stays_so(tmp_path: Path) -> None:
    config = TelechatConfig(**SIZES, architectures=["TelechatForCausalLM"], base_seqlen=8192)
    assert (config.kv_heads, config.keys_keep_tables) == (6, False)
    config.save_pretrained(tmp_path)
    assert "num_key_value_heads" not in (tmp_path / "config.json").read_text()
    assert not AutoConfig.from_pretrained(tmp_path).keys_keep_tables


def test_remote_code_names_tell_the_form_too() -> None:
    named = {"auto_map": {"AutoModelForCausalLM": "modeling_telechat2.Telechat2ForCausalLM"}}
    for kv_heads in ({}, {"num_key_value_heads": None}):
        config = TelechatConfig(**SIZES, **named, **kv_heads, base_seqlen=64)
        assert (config.kv_heads, config.keys_keep_tables) == (6, True)


def written(folder: Path, **values: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "telechat", **SIZES, **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"num_key_value_heads": 2, "base_seqlen": 64, "n_embd": 48, "use_mup": True}, "fits two forms"),
        (
            {"architectures": "TeleChat2ForCausalLM", "base_seqlen": 64},
            "architectures: Input should be a valid list",
        ),
        ({"architectures": [1]}, r"architectures\.0: Input should be a valid string, not 1"),
        ({"auto_map": "telechat2"}, "auto_map: Input should be a valid dictionary"),
        ({"n_embd": 48, "use_mup": True}, "TeleChat-52B cannot be read: its network is GPT-2's"),
        ({"num_key_value_heads": 2}, "base_seqlen is missing"),
        ({"architectures": ["TeleChat2ForCausalLM"]}, "base_seqlen is missing"),
        (
            {"architectures": ["TeleChatForCausalLM"]},
            "num_key_value_heads, which every TeleChat2 has, is missing",
        ),
        ({"num_key_value_heads": 4, "base_seqlen": 64}, "4 key/value heads do not divide the 6 heads"),
        ({"num_experts": 16, "num_key_value_heads": 6}, "TeleChat2-39B-A12B cannot be read: it is a mixture"),
        ({"model_type": "deepseek_v3"}, "TeleChat3-105B-A4.7B and other models .* mixture of experts"),
        ({"model_type": "xing4_0"}, "Xing4.0 .* mixture of experts"),
        ({"model_type": "llama"}, 'model_type is "llama", expected "telechat" or "telechat3"'),
    ],
)
def test_what_is_no_dense_telechat_is_refused_by_name(
    values: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read_config(written(tmp_path, **values))


def test_read_config_reads_the_published_files() -> None:
    assert [read_config(DATA / "model-telechat2" / case).kv_heads for case in ("7b-small", "115b-small")] == [
        4,
        2,
    ]
    assert read_config(DATA / "model-telechat2" / "32k-theta").rope_theta == 1000000


YARN = {"rope_type": "telechat3-yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA_SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize(
    ("yarn", "factor"),
    [
        ({}, 0.07 * math.log(4) + 1),  # the common yarn has 0.1
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.14 * math.log(4) + 1) / (0.07 * math.log(4) + 1)),
        ({"mscale": 2.0}, 0.07 * math.log(4) + 1),
        ({"factor": 8.0}, 0.07 * math.log(4) + 1),  # the lengths decide
    ],
)
def test_the_factor_of_telechat3_is_its_own(yarn: dict[str, float], factor: float) -> None:
    config = Telechat3Config(**LLAMA_SIZES, rope_scaling={**YARN, **yarn})
    assert yarn_factor(config) == pytest.approx(factor)


def test_a_saved_telechat3_config_has_the_keys_that_it_was_read_with(tmp_path: Path) -> None:
    folder = DATA / "model-telechat3" / "36b-small"
    read_config(folder).save_pretrained(tmp_path)
    published, saved = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    changed = {"transformers_version", "torch_dtype", "dtype", "head_dim"}  # which follows from the others
    for key in published.keys() - changed:
        assert saved[key] == published[key], key
    assert read_config(tmp_path).to_dict() == read_config(folder).to_dict()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"rope_scaling": None}, "rope_scaling is missing: TeleChat3's rotary tables follow from it"),
        ({"rope_scaling": [1]}, "rope_scaling: Input should be a valid dictionary"),
        ({"rope_scaling": {**YARN, "rope_type": "yarn"}}, 'rope_scaling is of type "yarn"'),
        ({"rope_scaling": {"rope_type": "telechat3-yarn", "factor": 4.0}}, "lacks original_max_position"),
        ({"rope_scaling": {**YARN, "factor": None}}, "rope_scaling lacks factor"),
        ({"rope_scaling": {**YARN, "factor": "four"}}, r"rope_scaling\.factor is four, it must be a number"),
        ({"rope_scaling": {**YARN, "factor": 0}}, r"rope_scaling\.factor is 0, it must be a number above 0"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": -1}}, "embeddings is -1, it must be"),
        ({"rope_scaling": {**YARN, "beta_fast": "x"}}, r"rope_scaling\.beta_fast is x, it must be a number"),
        ({"num_key_value_heads": 4}, "4 key/value heads do not divide the 6 heads"),
        ({"attention_bias": True}, "attention_bias is set, TeleChat3 has none"),
        ({"head_dim": 16}, "head_dim 16 is not hidden_size / num_attention_heads"),
        ({"n_routed_experts": 192}, "TeleChat3 with experts cannot be read: it is a mixture"),
        ({"embedding_size": 24}, "unpublished 1.8B form .*its layers share weights"),
        ({"num_hidden_layer_groups": 2}, "unpublished 1.8B form"),
    ],
)
def test_a_telechat3_of_another_form_is_refused(values: dict[str, Any], problem: str, tmp_path: Path) -> None:
    config = {"model_type": "telechat3", **LLAMA_SIZES, "rope_scaling": YARN, **values}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=problem):
        read_config(tmp_path)

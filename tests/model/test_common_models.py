"""transformers' own common model tests on both networks of the family: `ModelTesterMixin`, out of its source archive.

The package itself ships no tests; `make common-tests` (which `make test` does too) fetches the archive of the version
that is installed and takes the one file out of it. Two mixins that it builds on, for export and generation, are not in
the archive and are left out; `test_contract` has generation. What transformers skips says why: `pytest -rs`.
"""

import copy
import importlib.util
import sys
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto

from telechat_kit.files import project_root
from telechat_kit.model import Telechat3Config, Telechat3ForCausalLM, Telechat3Model, TelechatConfig
from telechat_kit.model.heads import (
    Telechat3ForQuestionAnswering,
    Telechat3ForSequenceClassification,
    Telechat3ForTokenClassification,
    TelechatForQuestionAnswering,
    TelechatForSequenceClassification,
    TelechatForTokenClassification,
)
from telechat_kit.model.network import TelechatForCausalLM, TelechatModel

pytest.importorskip("parameterized", reason="transformers' own tests are written with it: make common-tests")
FETCHED = (
    project_root()
    / "build"
    / "common-tests"
    / f"transformers-{transformers.__version__}/tests/test_modeling_common.py"
)
if not FETCHED.exists():
    pytest.skip(
        f"transformers {transformers.__version__}'s tests are not here: make common-tests",
        allow_module_level=True,
    )


def common_tests(path: Path) -> tuple[Any, Any]:
    """The class of the common tests, and that of generation; empty ones stand for those that the archive leaves out."""
    package = "transformers_tests"
    stand_ins = {"": {}, ".exporters": {}, ".generation": {}}
    mixins = {
        ".exporters.test_export": "ExportTesterMixin",
        ".generation.test_utils": "GenerationTesterMixin",
    }
    for name in [*stand_ins, *mixins]:
        module = ModuleType(package + name)
        module.__path__ = []
        if name in mixins:
            setattr(module, mixins[name], type(mixins[name], (), {}))
        sys.modules[module.__name__] = module
    spec = importlib.util.spec_from_file_location(f"{package}.test_modeling_common", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.ModelTesterMixin, module.GenerationTesterMixin


def make_known(config: type[TelechatConfig], classes: tuple[type, ...]) -> None:
    """Tell the tests, by the names that they go by, what each class is for: which labels it takes."""
    kinds = {
        "Model": modeling_auto.MODEL_MAPPING_NAMES,
        "ForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "ForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "ForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "ForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    }
    for each in classes:
        kinds[each.__name__.removeprefix("Telechat").removeprefix("3")][config.model_type] = each.__name__


class Shape:
    """What the tests ask of a model's own tester: sizes, a config, inputs."""

    batch_size, seq_length, hidden_size = 3, 7, 32
    num_hidden_layers, num_attention_heads = 2, 4
    is_training = True

    def __init__(self, config: TelechatConfig) -> None:
        self.config = config

    def get_config(self) -> TelechatConfig:
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[TelechatConfig, dict[str, Tensor]]:
        ids = torch.randint(4, self.config.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


Common, Generation = common_tests(FETCHED)
COMMON = {"vocab_size": 99, "hidden_size": 32, "num_key_value_heads": 2, "pad_token_id": 0}


class TestTelechat2(Common, Generation, unittest.TestCase):
    test_can_init_all_missing_weights_before_2023 = True
    all_model_classes = (
        TelechatModel,
        TelechatForCausalLM,
        TelechatForSequenceClassification,
        TelechatForTokenClassification,
        TelechatForQuestionAnswering,
    )

    def setUp(self) -> None:
        make_known(TelechatConfig, self.all_model_classes)
        lengths = {"training_seqlen": 512, "base_seqlen": 512}
        shape = {"n_layer": 2, "n_head": 4, "ffn_hidden_size": 37, "tie_word_embeddings": False}
        self.model_tester = Shape(TelechatConfig(**lengths, **shape, **COMMON))


class TestTelechat3(Common, Generation, unittest.TestCase):
    test_can_init_all_missing_weights_before_2023 = True
    all_model_classes = (
        Telechat3Model,
        Telechat3ForCausalLM,
        Telechat3ForSequenceClassification,
        Telechat3ForTokenClassification,
        Telechat3ForQuestionAnswering,
    )

    def setUp(self) -> None:
        make_known(Telechat3Config, self.all_model_classes)
        yarn = {"rope_type": "telechat3-yarn", "factor": 4.0, "original_max_position_embeddings": 128}
        shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
        self.model_tester = Shape(
            Telechat3Config(max_position_embeddings=512, rope_scaling=yarn, **shape, **COMMON)
        )

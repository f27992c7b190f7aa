"""TeleChat for torch and transformers: configuration, network, tokenizers, checkpoints, the demo model."""

# ruff: noqa: E402
# a broken torch_npu is put aside before transformers looks for one
import telechat_kit.backends  # noqa: F401  # isort: skip
from telechat_kit.installed import require_version  # isort: skip

# before anything is imported from it: an older one lacks names that the network and the quantizer are built on
require_version("transformers")

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from wrapt import when_imported

from telechat_kit.model import heads
from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.network import TelechatForCausalLM, TelechatModel
from telechat_kit.model.quantizer import register_w8a8
from telechat_kit.model.telechat3 import Telechat3ForCausalLM, Telechat3Model
from telechat_kit.model.tokenization import load_tokenizer, register_tokenizers

__all__ = [
    "Telechat3Config",
    "Telechat3ForCausalLM",
    "Telechat3Model",
    "TelechatConfig",
    "TelechatForCausalLM",
    "TelechatModel",
    "load_tokenizer",
    "register",
]


#: The linears that LoRA changes where its config names none, as peft has them for Llama: those of queries and values
_LORA_TARGETS = {"telechat": ["query", "key_value"], "telechat3": ["q_proj", "v_proj"]}


def register() -> None:
    """Make transformers' Auto classes load TeleChat folders, float and W8A8, without remote code."""
    networks: dict[Any, tuple[Any, ...]] = {
        AutoModel: (TelechatModel, Telechat3Model),
        AutoModelForCausalLM: (TelechatForCausalLM, Telechat3ForCausalLM),
        AutoModelForSequenceClassification: (
            heads.TelechatForSequenceClassification,
            heads.Telechat3ForSequenceClassification,
        ),
        AutoModelForTokenClassification: (
            heads.TelechatForTokenClassification,
            heads.Telechat3ForTokenClassification,
        ),
        AutoModelForQuestionAnswering: (
            heads.TelechatForQuestionAnswering,
            heads.Telechat3ForQuestionAnswering,
        ),
    }
    configs: tuple[type[TelechatConfig], ...] = (TelechatConfig, Telechat3Config)
    for index, config in enumerate(configs):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto, classes in networks.items():
            auto.register(config, classes[index], exist_ok=True)
        register_tokenizers(config)
    register_w8a8()


@when_imported("peft.utils.constants")
def _register_lora_targets(constants: Any) -> None:
    """Let LoRA without named targets find TeleChat's, as it finds Llama's."""
    constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.update(_LORA_TARGETS)


register()

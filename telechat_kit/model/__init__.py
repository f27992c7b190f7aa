"""TeleChat for torch and transformers: configuration, network, tokenizers, checkpoints, the demo model."""

# a broken torch_npu is put aside before transformers looks for one
import telechat_kit.backends  # noqa: F401  # isort: skip

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

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


def register() -> None:
    """Make transformers' Auto classes load TeleChat folders, float and W8A8, without remote code."""
    networks = (
        (TelechatConfig, TelechatModel, TelechatForCausalLM),
        (Telechat3Config, Telechat3Model, Telechat3ForCausalLM),
    )
    for config, model, with_head in networks:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, with_head, exist_ok=True)
        register_tokenizers(config)
    register_w8a8()


register()

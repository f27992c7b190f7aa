"""TeleChat for torch and transformers: configuration, network, tokenizers, checkpoints, the demo model."""

# a broken torch_npu is put aside before transformers looks for one
import telechat_kit.backends  # noqa: F401  # isort: skip

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.network import TelechatForCausalLM, TelechatModel
from telechat_kit.model.tokenization import load_tokenizer, register_tokenizers

__all__ = [
    "TelechatConfig",
    "TelechatForCausalLM",
    "TelechatModel",
    "load_tokenizer",
    "register",
]


def register() -> None:
    """Make transformers' Auto classes load TeleChat folders without remote code."""
    AutoConfig.register("telechat", TelechatConfig, exist_ok=True)
    AutoModel.register(TelechatConfig, TelechatModel, exist_ok=True)
    AutoModelForCausalLM.register(TelechatConfig, TelechatForCausalLM, exist_ok=True)
    register_tokenizers(TelechatConfig)


register()

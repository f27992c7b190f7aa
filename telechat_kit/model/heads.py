"""Heads for classification on the networks of the family, as transformers puts them on any: `AutoModelFor...` finds them."""

from torch import nn
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from telechat_kit.model.configuration import Telechat3Config
from telechat_kit.model.network import TelechatPreTrainedModel


class TelechatForSequenceClassification(GenericForSequenceClassification, TelechatPreTrainedModel):
    """One answer for a text, from its last token that is no padding."""

    base_model_prefix = "transformer"  # transformers' generic heads say "model"


class TelechatForTokenClassification(GenericForTokenClassification, TelechatPreTrainedModel):
    """One answer for each token."""

    base_model_prefix = "transformer"  # transformers' generic heads say "model"


class TelechatForQuestionAnswering(GenericForQuestionAnswering, TelechatPreTrainedModel):
    """Where in a text an answer begins and ends."""

    base_model_prefix = "transformer"  # transformers' generic heads say "model"

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, where the network has it: transformers' head looks for another name."""
        return self.base_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.set_input_embeddings(value)


class Telechat3PreTrainedModel(TelechatPreTrainedModel):
    """What transformers needs to know of TeleChat3."""

    config_class = Telechat3Config
    base_model_prefix = "model"
    _input_embed_layer = "embed_tokens"
    _no_split_modules = ["Telechat3Block"]  # noqa: RUF012


class Telechat3ForSequenceClassification(GenericForSequenceClassification, Telechat3PreTrainedModel):
    """One answer for a text, from its last token that is no padding."""


class Telechat3ForTokenClassification(GenericForTokenClassification, Telechat3PreTrainedModel):
    """One answer for each token."""


class Telechat3ForQuestionAnswering(GenericForQuestionAnswering, Telechat3PreTrainedModel):
    """Where in a text an answer begins and ends."""

"""TeleChat3-36B: TeleChat's network under Llama's names, query, key and value apart and without biases.

What a block computes, and how a sequence runs, is in `network`; the names that it uses there lead here to Llama's.
"""

from torch import Tensor, nn
from transformers import PreTrainedModel

from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.joined_linears import together
from telechat_kit.model.network import (
    TelechatAttention,
    TelechatBlock,
    TelechatForCausalLM,
    TelechatMLP,
    TelechatModel,
    TelechatRMSNorm,
)
from telechat_kit.model.rotary import Rotary


class Telechat3Attention(TelechatAttention):
    """Attention whose keys and values come from linears of their own."""

    def __init__(self, config: TelechatConfig, layer: int) -> None:
        nn.Module.__init__(self)
        size = config.hidden_size
        self.n_head, self.kv_heads, self.head_dim = config.n_head, config.kv_heads, config.head_dim
        self.layer = layer
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    @property
    def dense(self) -> nn.Module:  # type: ignore[override]
        """TeleChat's name of what joins the heads."""
        return self.o_proj

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = together(x, self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        return query, key, value


class Telechat3Block(TelechatBlock):
    """Attention, then feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: TelechatConfig, layer: int) -> None:
        nn.Module.__init__(self)
        size, epsilon = config.hidden_size, config.layer_norm_epsilon
        self.input_layernorm = TelechatRMSNorm(size, epsilon)
        self.self_attn = Telechat3Attention(config, layer)
        self.post_attention_layernorm = TelechatRMSNorm(size, epsilon)
        self.mlp = TelechatMLP(config, bias=False)
        self.residual_after_norm = False

    @property
    def self_attention(self) -> Telechat3Attention:  # type: ignore[override]
        """TeleChat's name of the attention."""
        return self.self_attn


class Telechat3Model(TelechatModel):
    """Embedding, blocks and final norm."""

    config_class = Telechat3Config
    base_model_prefix = "model"
    _input_embed_layer = "embed_tokens"
    _no_split_modules = ["Telechat3Block"]  # noqa: RUF012

    def __init__(self, config: Telechat3Config) -> None:
        PreTrainedModel.__init__(self, config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Telechat3Block(config, layer) for layer in range(config.n_layer))
        self.norm = TelechatRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.rotary = Rotary(config)
        self.post_init()

    @property
    def word_embeddings(self) -> nn.Embedding:  # type: ignore[override]
        """TeleChat's name of the embedding."""
        return self.embed_tokens

    @property
    def h(self) -> nn.ModuleList:  # type: ignore[override]
        """TeleChat's name of the blocks."""
        return self.layers

    @property
    def ln_f(self) -> TelechatRMSNorm:  # type: ignore[override]
        """TeleChat's name of the final norm."""
        return self.norm


class Telechat3ForCausalLM(TelechatForCausalLM):
    """TeleChat3 with its head."""

    config_class = Telechat3Config
    base_model_prefix = "model"
    _input_embed_layer = "embed_tokens"
    _no_split_modules = ["Telechat3Block"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Telechat3Config) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = Telechat3Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def transformer(self) -> Telechat3Model:  # type: ignore[override]
        """TeleChat's name of the network without its head."""
        return self.model


def network_of(config: TelechatConfig) -> type[TelechatForCausalLM]:
    """The class of the network that `config` describes."""
    return Telechat3ForCausalLM if isinstance(config, Telechat3Config) else TelechatForCausalLM


def block_of(config: TelechatConfig, index: int) -> TelechatBlock:
    """A new block number `index` of the network that `config` describes."""
    return (Telechat3Block if isinstance(config, Telechat3Config) else TelechatBlock)(config, index)

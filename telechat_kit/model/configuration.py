"""Configurations of the TeleChat family, with the names of its published `config.json` files."""

from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedConfig

from telechat_kit.messages import Message
from telechat_kit.model.layout import LLAMA, TELECHAT, Layout
from telechat_kit.model.published_networks import check_yarn, is_telechat2, refusal
from telechat_kit.model.remote_code import auto_map, write_remote_code


class TelechatConfig(PreTrainedConfig):
    """Shape of a TeleChat network (7B, 12B, 12B-V2; TeleChat2, 2.5, T1) and of its rotary tables.

    Keys are those of the published files; `num_key_value_heads` stands in TeleChat2's alone, and makes one. Two are
    the kit's own in 7B and 12B, `base_seqlen` (context length K of the NTK base) and `rope_theta` (10000), two in
    all: `rope_table_dtype` (`float16`, the published rounding of the cos and sin tables) and `online_rotation`
    (False: down_proj reads its input turned by a Hadamard matrix). Keys of the published files without effect on
    inference are kept, so that a saved config equals the one read.
    """

    model_type = "telechat"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (Trainer adds lists to it)
    attribute_map = {  # noqa: RUF012  (transformers reads a plain class attribute)
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "ffn_hidden_size",
    }
    #: in place of transformers' property, which would save it under another name
    rope_scaling = cast(Any, None)

    def __init__(
        self,
        vocab_size: int = 160256,
        hidden_size: int = 4096,
        n_layer: int = 30,
        n_head: int = 32,
        ffn_hidden_size: int = 12288,
        layer_norm_epsilon: float = 1e-5,
        training_seqlen: int = 8192,
        embed_layernorm: bool = False,
        apply_residual_connection_post_layernorm: bool = False,
        tie_word_embeddings: bool = True,
        base_seqlen: int | None = None,
        rope_theta: float = 10000.0,
        rope_table_dtype: str = "float16",
        online_rotation: bool = False,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        pad_token_id: int = 3,
        **kwargs: Any,
    ) -> None:
        telechat2 = is_telechat2({**kwargs, "base_seqlen": base_seqlen})
        kv_heads = kwargs.pop("num_key_value_heads", None)
        self.vocab_size = vocab_size
        self.hidden_size = kwargs.pop("n_embed", None) or hidden_size
        self.n_layer = n_layer
        self.n_head = n_head
        self.ffn_hidden_size = ffn_hidden_size
        self.layer_norm_epsilon = layer_norm_epsilon
        self.training_seqlen = training_seqlen
        # without effect, and for tools that ask for it: 7B and 12B have no such key
        self.max_position_embeddings = kwargs.pop("max_position_embeddings", training_seqlen)
        self.embed_layernorm = embed_layernorm
        self.apply_residual_connection_post_layernorm = apply_residual_connection_post_layernorm
        self.base_seqlen = base_seqlen
        self.rope_theta = rope_theta
        self.rope_table_dtype = rope_table_dtype
        self.online_rotation = online_rotation
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        if telechat2:
            self.num_key_value_heads: int = kv_heads or n_head
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )
        # transformers 5 keeps these for models that declare them; TeleChat's own value must survive it
        self.tie_word_embeddings = tie_word_embeddings
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos_token_id, eos_token_id, pad_token_id
        _check_heads(self)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """transformers' own, with the code by which it finds the kit, unless the config names the published code."""
        own = auto_map(self.model_type)
        self.auto_map = getattr(self, "auto_map", None) or own
        if self.auto_map == own and not Path(save_directory).is_file():  # which transformers refuses
            write_remote_code(Path(save_directory))
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: transformers would save the kit's own modules with a model, and `model.remote_code` names them."""

    @property
    def layout(self) -> Layout:
        """What the checkpoint calls its modules."""
        return TELECHAT

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values; so many neighboring query heads share each as it takes."""
        return getattr(self, "num_key_value_heads", self.n_head)

    @property
    def keys_keep_tables(self) -> bool:
        """Whether cached keys are used as they are for ever: in TeleChat2, whatever the length has become since.

        In 7B and 12B the tables are those of the whole sequence, so a longer one rotates all of its keys anew.
        """
        return hasattr(self, "num_key_value_heads")

    @property
    def ntk_base_context(self) -> int:
        """K of the NTK base: `base_seqlen`; without it 4096 for the 7B family (tied head), 8192 for the 12B family.

        Those numbers stand in no published config, only in the two families' code.
        """
        return self.base_seqlen or (4096 if self.tie_word_embeddings else 8192)


def _check_heads(config: TelechatConfig) -> None:
    if config.hidden_size % config.n_head:
        raise ValueError(
            Message(
                "hidden_size {hidden_size} is not a multiple of n_head {n_head}",
                hidden_size=config.hidden_size,
                n_head=config.n_head,
            )
        )
    if config.n_head % config.kv_heads:
        raise ValueError(
            Message(
                "{kv_heads} key/value heads do not divide the {n_head} heads of the queries",
                kv_heads=config.kv_heads,
                n_head=config.n_head,
            )
        )


class Telechat3Config(TelechatConfig):
    """Shape of a TeleChat3-36B network: Llama's, under Llama's names in the file; the kit reads it by TeleChat's.

    Raises:
        ValueError: `rope_scaling` is not TeleChat3's, or a size does not fit the others.
    """

    model_type = "telechat3"
    has_no_defaults_at_init = True  # without rope_scaling there is none
    attribute_map = {  # noqa: RUF012  (transformers reads a plain class attribute)
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "ffn_hidden_size": "intermediate_size",
        "layer_norm_epsilon": "rms_norm_eps",
        "training_seqlen": "max_position_embeddings",
    }
    #: what TeleChat's networks may have and this one has not
    embed_layernorm = False
    online_rotation = False
    apply_residual_connection_post_layernorm = False

    def __init__(
        self,
        vocab_size: int = 131072,
        hidden_size: int = 6144,
        num_hidden_layers: int = 64,
        num_attention_heads: int = 48,
        num_key_value_heads: int | None = 8,
        intermediate_size: int = 24576,
        rms_norm_eps: float = 1e-5,
        max_position_embeddings: int = 32768,
        rope_theta: float = 1000000.0,
        rope_scaling: dict[str, Any] | None = None,
        initializer_range: float = 0.0048,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        pad_token_id: int = 3,
        **kwargs: Any,
    ) -> None:
        if (reason := refusal({**kwargs, "model_type": self.model_type})) is not None:
            raise ValueError(reason)
        stated = kwargs.pop("head_dim", None)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.intermediate_size = intermediate_size
        self.rms_norm_eps = rms_norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rope_scaling = check_yarn(rope_scaling)
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        PreTrainedConfig.__init__(
            self,
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )
        self.tie_word_embeddings = tie_word_embeddings
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos_token_id, eos_token_id, pad_token_id
        _check_heads(self)
        if stated not in (None, self.head_dim):
            raise ValueError(
                Message("head_dim {stated} is not hidden_size / num_attention_heads", stated=stated)
            )
        for name in ("attention_bias", "mlp_bias"):
            if getattr(self, name, False):
                raise ValueError(Message("{name} is set, TeleChat3 has none", name=name))

    @property
    def layout(self) -> Layout:
        """What the checkpoint calls its modules."""
        return LLAMA

    @property
    def yarn_ratio(self) -> float:
        """How many times the length that the base was trained on the positions reach; `factor` says it again."""
        return self.max_position_embeddings / self.rope_scaling["original_max_position_embeddings"]

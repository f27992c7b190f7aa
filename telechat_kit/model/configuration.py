"""TeleChat's configuration, with the names of its published `config.json`."""

from typing import Any

from transformers import PreTrainedConfig


class TelechatConfig(PreTrainedConfig):
    """Shape of a TeleChat network (7B, 12B, 12B-V2) and of its rotary tables.

    Keys are those of the published files. Four more are the kit's own: `base_seqlen` (context length K of the
    NTK base), `rope_theta` (10000), `rope_table_dtype` (`float16`, the published rounding of the cos and
    sin tables) and `online_rotation` (False: down_proj reads its input turned by a Hadamard matrix). Keys of the
    published files without effect on inference are kept, so that a saved config equals the one read.
    """

    model_type = "telechat"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012  (transformers reads a plain class attribute)
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "ffn_hidden_size",
        "max_position_embeddings": "training_seqlen",
    }

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
        self.vocab_size = vocab_size
        self.hidden_size = kwargs.pop("n_embed", None) or hidden_size
        self.n_layer = n_layer
        self.n_head = n_head
        self.ffn_hidden_size = ffn_hidden_size
        self.layer_norm_epsilon = layer_norm_epsilon
        self.training_seqlen = training_seqlen
        self.embed_layernorm = embed_layernorm
        self.apply_residual_connection_post_layernorm = apply_residual_connection_post_layernorm
        self.base_seqlen = base_seqlen
        self.rope_theta = rope_theta
        self.rope_table_dtype = rope_table_dtype
        self.online_rotation = online_rotation
        self.initializer_range = initializer_range
        self.use_cache = use_cache
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
        if self.hidden_size % self.n_head:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of n_head {self.n_head}")

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.n_head

    @property
    def ntk_base_context(self) -> int:
        """K of the NTK base: 4096 for the 7B family (tied head), 8192 for the 12B family (untied head).

        The number stands in no published config, only in the two families' code; `base_seqlen` overrides it.
        """
        return self.base_seqlen or (4096 if self.tie_word_embeddings else 8192)

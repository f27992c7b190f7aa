"""Tiny networks of the later family, whose heads share keys and values in groups."""

from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.tiny import byte_tokenizer


def grouped_config(form: str, heads: int, kv_heads: int) -> TelechatConfig:
    """Shape of a tiny "telechat2" or "telechat3" with heads of 16."""
    vocabulary = {"vocab_size": len(byte_tokenizer()), "hidden_size": 16 * heads, "dtype": "float32"}
    common = {
        **vocabulary,
        "num_key_value_heads": kv_heads,
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
    }
    if form == "telechat2":
        lengths = {"training_seqlen": 512, "seq_length": 512, "base_seqlen": 512}
        return TelechatConfig(n_layer=3, n_head=heads, ffn_hidden_size=176, **lengths, **common)
    yarn = {"rope_type": "telechat3-yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    shape = {"num_hidden_layers": 3, "num_attention_heads": heads, "intermediate_size": 176}
    return Telechat3Config(**shape, max_position_embeddings=512, rope_scaling=yarn, **common)

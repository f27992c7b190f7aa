"""A dense TeleChat as the Llama that it is: the same tensors under Llama's names, with query, key and value apart.

Up to the trained length the rotary base and factor do not change with the sequence, so the family computes what Llama
computes, but for TeleChat's rounding of the rotary tables to float16. What Llama has no place for is refused.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig

from telechat_kit.errors import ParameterError
from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.layout import LLAMA
from telechat_kit.model.rotary import ntk_alpha, yarn_factor
from telechat_kit.model.w8a8 import W8A8Weights, stored_name

#: Tensors of an int8 linear that are the same for all of its rows
_OF_THE_INPUT = ("input_scale", "input_offset")


class Part(NamedTuple):
    """A linear or norm of the Llama, and which rows of which module of the family's network it is; None for all."""

    name: str
    source: str
    rows: Tensor | None


def refuse_inexact(config: TelechatConfig, longest: int) -> None:
    """Refuse what no Llama computes.

    Args:
        longest: the length of sequence that is to be served.

    Raises:
        ParameterError: names the key of config.json, or the length up to which the form is exact.
    """
    reasons = {
        "embed_layernorm": "Llama has no norm behind the embedding",
        "apply_residual_connection_post_layernorm": "Llama adds to the stream before the norm, not behind it",
        "online_rotation": "engines would not turn the input of down_proj as the model runs",
    }
    for key, reason in reasons.items():
        if getattr(config, key):
            raise ParameterError(
                "the model cannot be written as a Llama: config.json says {key}, and {reason}.",
                key=key,
                reason=reason,
            )
    if longest > config.training_seqlen and isinstance(config, Telechat3Config):
        raise ParameterError(
            "the model reads sequences of up to {longest_read} tokens (max_position_embeddings of config.json). Ask for "
            "no more than that, not for {longest}.",
            longest_read=config.max_position_embeddings,
            longest=longest,
        )
    if longest > config.training_seqlen:
        raise ParameterError(
            "the model is a Llama up to its trained length of {training_seqlen} tokens only: beyond it, "
            "TeleChat's rotary tables change with the length. Ask for no more than that, not for {longest}.",
            training_seqlen=config.training_seqlen,
            longest=longest,
        )


def llama_config(
    config: TelechatConfig, longest: int, attention_bias: bool, mlp_bias: bool, dtype: torch.dtype
) -> LlamaConfig:
    """The configuration of the Llama that equals `config` up to `longest` tokens."""
    dim = config.head_dim
    if isinstance(config, Telechat3Config):
        yarn = {
            key: config.rope_scaling[key] for key in ("beta_fast", "beta_slow") if key in config.rope_scaling
        }
        rope = {
            "rope_type": "yarn",
            "rope_theta": config.rope_theta,
            "factor": config.yarn_ratio,
            "original_max_position_embeddings": config.rope_scaling["original_max_position_embeddings"],
            "attention_factor": yarn_factor(config),
            **yarn,
        }
    else:
        alpha = ntk_alpha(config.training_seqlen, config)
        rope = {"rope_type": "default", "rope_theta": config.rope_theta * alpha ** (dim / (dim - 2))}
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.kv_heads,
        head_dim=dim,
        rms_norm_eps=config.layer_norm_epsilon,
        max_position_embeddings=longest,
        rope_parameters=rope,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        initializer_range=config.initializer_range,
        dtype=dtype,
    )


def block_parts(config: TelechatConfig, index: int) -> Iterator[Part]:
    """The linears and norms of the Llama's block number `index`."""
    own, new, old = config.layout, LLAMA.block(index), config.layout.block(index)
    query, key_value = own.query, own.key
    yield Part(new + LLAMA.query, old + query, None)
    if own.key == own.value:
        pairs = torch.arange(2 * config.kv_heads * config.head_dim).view(config.kv_heads, 2, config.head_dim)
        yield Part(new + LLAMA.key, old + key_value, pairs[:, 0].flatten())
        yield Part(new + LLAMA.value, old + key_value, pairs[:, 1].flatten())
    else:
        yield Part(new + LLAMA.key, old + own.key, None)
        yield Part(new + LLAMA.value, old + own.value, None)
    yield Part(new + LLAMA.dense, old + own.dense, None)
    for name in (LLAMA.gate, LLAMA.up, LLAMA.down, *LLAMA.norms):
        yield Part(new + name, old + name, None)


def outer_names(config: TelechatConfig) -> dict[str, str]:
    """Tensors outside the blocks: Llama's name -> the name in the family's network."""
    own = config.layout
    names = {LLAMA.embedding: own.embedding, LLAMA.final_norm: own.final_norm}
    return names if config.tie_word_embeddings else {**names, "lm_head.weight": "lm_head.weight"}


def has_biases(config: TelechatConfig, biases: dict[str, Tensor], exit_name: str) -> bool:
    """Whether any block's linear `exit_name` has a bias that is not zero, by module name."""
    found = (biases.get(f"{config.layout.block(i)}{exit_name}.bias") for i in range(config.n_layer))
    return any(bias is not None and bool(bias.any()) for bias in found)


def as_llama(weights: W8A8Weights, config: TelechatConfig, llama: LlamaConfig) -> W8A8Weights:
    """Quantized `weights` of the family's network as those of `llama`.

    Rows of an int8 linear keep their scales and biases, and every part of a linear keeps the scale of its input, so
    the integers stay the same. Where Llama has a bias and the family none, it is zero.
    """
    tensors = {new: weights.tensor(stored_name(old, config)) for new, old in outer_names(config).items()}
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.tensors.items():
        module, _, kind = name.rpartition(".")
        modules.setdefault(module, {})[kind] = tensor
    linears, dynamic = set(), set()
    for part in (part for index in range(config.n_layer) for part in block_parts(config, index)):
        source = stored_name(part.source, config)
        kinds = _of_part(part, modules[source], needs_bias(part.name, llama))
        tensors |= {f"{part.name}.{kind}": tensor for kind, tensor in kinds.items()}
        if source in weights.linears:
            linears.add(part.name)
        if source in weights.dynamic:
            dynamic.add(part.name)
    return W8A8Weights(tensors, frozenset(linears), weights.path, frozenset(dynamic))


def _of_part(part: Part, kinds: dict[str, Tensor], biased: bool) -> dict[str, Tensor]:
    """The tensors of `part` from those of its source, by kind, with a bias or without."""
    if part.name.endswith(LLAMA.norms):
        return {"weight": kinds["weight"]}
    if part.rows is not None:
        kinds = {
            kind: value.clone() if kind in _OF_THE_INPUT else value[part.rows]
            for kind, value in kinds.items()
        }
    rest = {kind: value for kind, value in kinds.items() if kind != "bias"}
    if not biased:
        return rest
    like = kinds.get("weight_scale", kinds["weight"])
    return {**rest, "bias": kinds.get("bias", torch.zeros(len(kinds["weight"]), dtype=like.dtype))}


def needs_bias(name: str, llama: LlamaConfig) -> bool:
    """Whether the linear `name` of the network that `llama` describes has a bias."""
    return (llama.attention_bias and ".self_attn." in name) or (llama.mlp_bias and ".mlp." in name)

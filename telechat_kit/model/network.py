"""The TeleChat network for torch and transformers. Module names are those of the published checkpoints."""

from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from telechat_kit.backends import Backend, backend_for, plain
from telechat_kit.backends.hadamard import plain_rotation
from telechat_kit.errors import CheckpointError
from telechat_kit.messages import Message
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import description_path, weight_files
from telechat_kit.model.joined_linears import joined_of, together
from telechat_kit.model.masks import additive_mask, packed_sequences
from telechat_kit.model.rotary import Rotary

#: The name of the kit's W8A8 folders among transformers' quantization methods
W8A8_METHOD = "telechat-w8a8"


def backend_of(x: Tensor) -> Backend | ModuleType:
    """What computes on `x`: its device's backend; plain torch while torch.compile looks, which sees no kernels."""
    return plain if torch.compiler.is_compiling() else backend_for(x.device.type)


class TelechatRMSNorm(nn.Module):
    """RMS norm. `bias` is None but in checkpoints whose outlier suppression shifted channels."""

    bias: nn.Parameter | None

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.register_parameter("bias", None)
        self.epsilon = epsilon

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """The norm of `x`; with `residual` the norm of the sum of both, and that sum."""
        backend = backend_of(x)
        if residual is None:
            return self._shifted(backend.rms_norm(x, self.weight, self.epsilon))
        normed, total = backend.add_rms_norm(x, residual, self.weight, self.epsilon)
        return self._shifted(normed), total

    def _shifted(self, normed: Tensor) -> Tensor:
        return normed if self.bias is None else normed + self.bias


class TelechatAttention(nn.Module):
    """Attention; `key_value` gives key and value interleaved per head, each for a group of neighboring queries."""

    def __init__(self, config: TelechatConfig, layer: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.n_head, self.kv_heads, self.head_dim = config.n_head, config.kv_heads, config.head_dim
        self.layer = layer
        self.query = nn.Linear(size, size, bias=False)
        self.key_value = nn.Linear(size, 2 * self.kv_heads * self.head_dim, bias=False)
        self.dense = nn.Linear(size, size)

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past_key_values: Cache | None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output `[B, T, H]` and, if asked for, the attention weights `[B, n_head, T, S]`."""
        backend = backend_of(x)
        batch, length, _ = x.shape
        query, key, value = (part.transpose(1, 2) for part in self.project(x))
        rotate = backend.rotate if tables[0].ndim == 2 else plain.rotate  # positions of one's own
        query, key = rotate(query, key, *tables)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer)
        if output_attentions:  # the mixture is made of them, so that gradients reach them as in Llama
            weights = attention_weights(query, key, mask)
            mixed = weights @ plain.expanded(value, query.shape[1])
        else:
            weights, mixed = None, backend.attention(query, key, value, mask)
        return self.dense(mixed.transpose(1, 2).reshape(batch, length, -1)), weights

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query `[B, T, n_head, d]`, key and value `[B, T, kv_heads, d]` of `x [B, T, H]`, not rotated yet."""
        query, key_value = together(x, self.query, self.key_value)
        pairs = key_value.unflatten(-1, (self.kv_heads, 2 * self.head_dim))
        key, value = pairs.split(self.head_dim, dim=-1)
        return query.unflatten(-1, (self.n_head, self.head_dim)), key, value


class TelechatMLP(nn.Module):
    """SwiGLU feed-forward. With `online_rotation` down_proj reads the product turned (R4), as its weight expects."""

    def __init__(self, config: TelechatConfig, bias: bool = True) -> None:
        """`bias`: of down_proj."""
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=bias)
        self.rotation = plain_rotation(config.ffn_hidden_size) if config.online_rotation else None

    def forward(self, x: Tensor) -> Tensor:
        if (joined := joined_of(self.gate_proj, self.up_proj)) is None:
            product = backend_of(x).silu_product(self.gate_proj(x), self.up_proj(x))
        else:
            product = backend_of(x).swiglu(joined(x))
        return self.down_proj(
            product if self.rotation is None else backend_of(x).turn(product, self.rotation)
        )


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """`[B, heads, T, S]` of `query [B, heads, T, d]` and `key [B, kv_heads, S, d]`, as `plain.attention` mixes by."""
    key = plain.expanded(key, query.shape[1])
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is None and query.shape[2] > 1:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return (scores if mask is None else scores + mask).softmax(-1, dtype=torch.float32).to(query.dtype)


class TelechatBlock(GradientCheckpointingLayer):
    """Attention, then feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: TelechatConfig, layer: int) -> None:
        super().__init__()
        size, epsilon = config.hidden_size, config.layer_norm_epsilon
        self.input_layernorm = TelechatRMSNorm(size, epsilon)
        self.self_attention = TelechatAttention(config, layer)
        self.post_attention_layernorm = TelechatRMSNorm(size, epsilon)
        self.mlp = TelechatMLP(config)
        self.residual_after_norm = config.apply_residual_connection_post_layernorm

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
    ) -> Any:
        """The stream behind the block, `[B, T, H]`; with `output_attentions` the attention weights too."""
        stream, branch, weights = self.halves(x, None, tables, mask, past_key_values, output_attentions)
        x = branch + stream
        return (x, weights) if output_attentions else x

    def halves(
        self,
        x: Tensor,
        branch: Tensor | None,
        tables: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past_key_values: Cache | None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stream and feed-forward, not added up, and the attention weights if asked for.

        `branch` is what the block before has not added to `x` yet: a device may have one operator for sum and norm.
        """
        if branch is None:
            normed = self.input_layernorm(x)
        else:
            normed, x = self.input_layernorm(branch, x)
        mixed, weights = self.self_attention(normed, tables, mask, past_key_values, output_attentions)
        normed, x = self.post_attention_layernorm(mixed, normed if self.residual_after_norm else x)
        return normed if self.residual_after_norm else x, self.mlp(normed), weights


class TelechatPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of TeleChat to load, save and initialize it."""

    config_class: type[TelechatConfig] = TelechatConfig
    base_model_prefix = "transformer"
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["TelechatBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _can_compile_fullgraph = True
    supports_gradient_checkpointing = True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> "TelechatPreTrainedModel":
        """transformers' own; a folder of W8A8 weights gives the int8 model, through `model.quantizer`.

        Raises:
            CheckpointError: the W8A8 weights are damaged, do not fit config.json, or lie on no disk of this machine.
        """
        name = pretrained_model_name_or_path
        folder = Path(name or "", kwargs.get("subfolder") or "")
        if name is not None and folder.is_dir() and description_path(folder) is not None:
            if not isinstance(config, PreTrainedConfig):
                own = {key: value for key, value in kwargs.items() if key in ("dtype", "torch_dtype")}
                config, kwargs = cls.config_class.from_pretrained(
                    config or name, return_unused_kwargs=True, **kwargs
                )
                kwargs.update(own)
            config.quantization_config = {"quant_method": W8A8_METHOD}
            config.transformers_weights = weight_files(folder)[0].name
        elif name is not None and not folder.is_dir() and getattr(config, "quantize", None):
            raise CheckpointError(
                "{name} is quantized, and is read from a folder only. Download it first.", name=name
            )
        return super().from_pretrained(name, *model_args, config=config, **kwargs)

    def _wanted(self, asked: bool | None, what: str) -> bool:
        """Whether the call, or else the config, asks for `what`."""
        return bool(getattr(self.config, f"output_{what}", False) if asked is None else asked)

    def _wants_dict(self, asked: bool | None) -> bool:
        return bool(getattr(self.config, "return_dict", True) if asked is None else asked)

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel, state_dict: Any, checkpoint_files: list[str], load_config: Any, *others: Any
    ) -> tuple[Any, Any]:
        """Where transformers reads the weights. Those of a W8A8 folder are the quantizer's to read."""
        quantizer = load_config.hf_quantizer
        if quantizer is None or quantizer.quantization_config.quant_method != W8A8_METHOD:
            return PreTrainedModel._load_pretrained_model(
                model, state_dict, checkpoint_files, load_config, *others
            )
        folder = Path(checkpoint_files[0]).parent
        return quantizer.load(model, folder, load_config.dtype, load_config.device_map), None


class TelechatModel(TelechatPreTrainedModel):
    """Embedding, blocks and final norm."""

    def __init__(self, config: TelechatConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.embed_layernorm:
            self.word_embeddings_layernorm = TelechatRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.h = nn.ModuleList(TelechatBlock(config, layer) for layer in range(config.n_layer))
        self.ln_f = TelechatRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.rotary = Rotary(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states `[B, T, H]` after the final norm for `input_ids [B, T]` on top of `past_key_values`.

        `attention_mask` is `[B, past + T]`, 0 for padding, or `[B, 1, T, S]`, boolean or additive. Without
        `position_ids [B, T]` positions are slots of the sequence, pads included, as in the published code; sequences
        packed into one row, whose positions begin anew, see only themselves.

        Raises:
            ValueError: not one of `input_ids` and `inputs_embeds` is given, or a cache cannot go on as asked.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, not both and not none.")
        past = past_key_values
        if past is None and (self.config.use_cache if use_cache is None else use_cache):
            past = DynamicCache()
        input_ids, new = self._whole_sequence_past_trained_length(
            input_ids, inputs_embeds, past, position_ids is not None or _is_static(past)
        )
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.embed_layernorm:
            x = self.word_embeddings_layernorm(x)
        start = _filled(past)
        tables = self.rotary.tables(start, x, position_ids)
        packed = packed_sequences(position_ids, attention_mask, past)
        slots = past.layers[0].max_cache_len if _is_static(past) else None  # type: ignore[union-attr]
        mask = additive_mask(attention_mask, x, start, slots, packed)
        wanted = (
            self._wanted(output_hidden_states, "hidden_states"),
            self._wanted(output_attentions, "attentions"),
        )
        x, states, weights = self._through_blocks(x, tables, mask, past, new, *wanted)
        output = BaseModelOutputWithPast(
            last_hidden_state=x, past_key_values=past, hidden_states=states, attentions=weights
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _through_blocks(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: Cache | None,
        new: int,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """The last `new` positions behind the final norm; what went into each block, and its attention, if wanted."""
        states: list[Tensor] = []
        weights: list[Tensor] = []
        if not output_hidden_states and not output_attentions:
            return self.normed(x, tables, mask, past)[:, -new:], None, None
        for block in islice(self.h, self.config.n_layer):  # fewer while an early exit drafts
            if output_hidden_states:
                states.append(_last(x, new))
            if output_attentions:
                x, shares = block(x, tables, mask, past_key_values=past, output_attentions=True)
                weights.append(_last(shares, new, dim=2))
            else:
                x = block(x, tables, mask, past_key_values=past)
        x = self.ln_f(x)[:, -new:]
        return (
            x,
            (*states, x) if output_hidden_states else None,
            tuple(weights) if output_attentions else None,
        )

    def normed(
        self, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, past: Cache | None
    ) -> Tensor:
        """What the blocks and the final norm make of `x [B, T, H]`."""
        branch = None
        for block in islice(self.h, self.config.n_layer):  # fewer while an early exit drafts
            if self._adds_late(block, x):
                assert isinstance(block, TelechatBlock)
                x, branch, _ = block.halves(x, branch, tables, mask, past)
                continue
            x, branch = x if branch is None else branch + x, None
            x = block(x, tables, mask, past_key_values=past)
        return self.ln_f(x) if branch is None else self.ln_f(branch, x)[0]

    def _adds_late(self, block: nn.Module, x: Tensor) -> bool:
        """Whether the sum behind `block` is left to the norm of the next one, which saves the device an operator."""
        if self.training or torch.compiler.is_compiling() or not backend_for(x.device.type).joins_linears:
            return False
        return not (block._forward_hooks or block._forward_pre_hooks)

    def _whole_sequence_past_trained_length(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, past: Cache | None, fixed: bool
    ) -> tuple[Tensor | None, int]:
        """The ids to run, and how many of their positions the caller asked for.

        In 7B and 12B, past the trained length, the rotary factor changes with every token and reaches all earlier
        hidden states, so a cache cannot agree with the full forward: the sequence is run again from its ids, which
        are kept with the cache. The published code stops with an IndexError there; that of TeleChat2 goes on.
        `fixed`: the cache or the positions cannot be made anew.
        """
        new = (input_ids if input_ids is not None else inputs_embeds).shape[1]  # type: ignore[union-attr]
        if past is None or self.config.keys_keep_tables or torch.compiler.is_compiling():
            return input_ids, new
        start, whole = int(_filled(past)), input_ids
        known = getattr(past, "token_ids", None)
        if start and whole is not None and known is not None:
            whole = torch.cat([known, whole], dim=1)
        if start and start + new > self.config.training_seqlen:
            if fixed:
                raise ValueError(
                    Message(
                        "a static cache, or positions of one's own on a cache, cannot go past the trained length of "
                        "{training_seqlen} tokens: the model then runs the whole sequence anew. Leave them out.",
                        training_seqlen=self.config.training_seqlen,
                    )
                )
            if whole is None or whole.shape[1] != start + new:
                raise ValueError("a cache without its token ids cannot go past the trained length")
            past.crop(-start)
            input_ids = whole
        past.token_ids = whole
        return input_ids, new


def _last(x: Tensor, count: int, dim: int = 1) -> Tensor:
    """The last `count` positions; `x` itself where it has no more, so that gradients kept of it are the stream's."""
    return x if x.shape[dim] == count else x.narrow(dim, x.shape[dim] - count, count)


def _filled(past: Cache | None) -> int | Tensor:
    """Positions in the cache; a static one counts on its device, which only torch.compile has a use for."""
    start = past.get_seq_length() if past is not None else 0
    return int(start) if isinstance(start, Tensor) and not torch.compiler.is_compiling() else start


def _is_static(past: Cache | None) -> bool:
    """Whether the cache gives all of its room as keys and values, filled or not."""
    return bool(getattr(past, "is_compileable", False))


class TelechatForCausalLM(TelechatPreTrainedModel, GenerationMixin):
    """TeleChat with its head, tied to the embedding (7B) or not (12B)."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: TelechatConfig) -> None:
        super().__init__(config)
        self.transformer = TelechatModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits `[B, T or logits_to_keep, vocab]`; `labels [B, T]`, -100 to leave out, add the loss.

        `logits_to_keep` is how many of the last positions, or a tensor of positions. The loss is the mean over the
        labels, or their sum over `num_items_in_batch`, which Trainer gives where it accumulates gradients. The rest
        is that of the network without its head.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> None:
        """None: positions that the caller does not give are slots, which transformers would count without pads."""

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers' own, and the cache is told its ids: beams may have been reordered since.

        After a prompt of embeddings `input_ids` holds the new ids only, so those of the cache are not known.
        """
        past = kwargs.get("past_key_values")
        if past is not None and (start := past.get_seq_length()):
            past.token_ids = input_ids[:, :start] if input_ids.shape[1] > start else None
        return super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)

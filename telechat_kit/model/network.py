"""The TeleChat network for torch and transformers. Module names are those of the published checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from telechat_kit.backends import backend_for
from telechat_kit.errors import CheckpointError
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import description_path, weight_files
from telechat_kit.model.hadamard import plain_rotation
from telechat_kit.model.rotary import Rotary

#: The name of the kit's W8A8 folders among transformers' quantization methods
W8A8_METHOD = "telechat-w8a8"


class TelechatRMSNorm(nn.Module):
    """RMS norm. `bias` is None but in checkpoints whose outlier suppression shifted channels."""

    bias: nn.Parameter | None

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.register_parameter("bias", None)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        normed = backend_for(x.device.type).rms_norm(x, self.weight, self.epsilon)
        return normed if self.bias is None else normed + self.bias

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of `x + residual`, and that sum."""
        backend = backend_for(x.device.type)
        normed, total = backend.add_rms_norm(x, residual, self.weight, self.epsilon)
        return (normed if self.bias is None else normed + self.bias), total


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
        self, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, past: Cache | None
    ) -> Tensor:
        backend = backend_for(x.device.type)
        batch, length, _ = x.shape
        query, key, value = (part.transpose(1, 2) for part in self.project(x))
        query, key = backend.rotate(query, key, *tables)
        if past is not None:
            key, value = past.update(key, value, self.layer)
        mixed = backend.attention(query, key, value, mask)
        return self.dense(mixed.transpose(1, 2).reshape(batch, length, -1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query `[B, T, n_head, d]`, key and value `[B, T, kv_heads, d]` of `x [B, T, H]`, not rotated yet."""
        query = self.query(x).unflatten(-1, (self.n_head, self.head_dim))
        key_value = self.key_value(x).unflatten(-1, (self.kv_heads, 2 * self.head_dim))
        key, value = key_value.split(self.head_dim, dim=-1)
        return query, key, value


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
        backend = backend_for(x.device.type)
        product = backend.silu_product(self.gate_proj(x), self.up_proj(x))
        return self.down_proj(product if self.rotation is None else self.rotation.rows(product))


class TelechatBlock(nn.Module):
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
        self, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, past: Cache | None
    ) -> Tensor:
        normed = self.input_layernorm(x)
        mixed = self.self_attention(normed, tables, mask, past)
        normed, x = self.post_attention_layernorm.of_sum(mixed, normed if self.residual_after_norm else x)
        return self.mlp(normed) + (normed if self.residual_after_norm else x)


class TelechatPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of TeleChat to load, save and initialize it."""

    config_class: type[TelechatConfig] = TelechatConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["TelechatBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

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
            raise CheckpointError(f"{name} is quantized, and is read from a folder only. Download it first.")
        return super().from_pretrained(name, *model_args, config=config, **kwargs)

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

    def get_input_embeddings(self) -> nn.Embedding:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states `[B, T, H]` after the final norm for `input_ids [B, T]` on top of `past_key_values`.

        `attention_mask` is `[B, past + T]`, 0 for padding. Positions are slots of the sequence, pads included,
        as in the published code, so `position_ids` are not taken.
        """
        past = past_key_values
        if past is None and (self.config.use_cache if use_cache is None else use_cache):
            past = DynamicCache()
        input_ids, new = self._whole_sequence_past_trained_length(input_ids, inputs_embeds, past)
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.embed_layernorm:
            x = self.word_embeddings_layernorm(x)
        start = past.get_seq_length() if past is not None else 0
        tables = self.rotary.rows(start, start + x.shape[1], x)
        mask = additive_mask(attention_mask, x, start)
        states = []
        for block in self.h:
            if output_hidden_states:
                states.append(x[:, -new:])
            x = block(x, tables, mask, past)
        x = self.ln_f(x)[:, -new:]
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past,
            hidden_states=(*states, x) if output_hidden_states else None,
        )

    def _whole_sequence_past_trained_length(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, past: Cache | None
    ) -> tuple[Tensor | None, int]:
        """The ids to run, and how many of their positions the caller asked for.

        In 7B and 12B, past the trained length, the rotary factor changes with every token and reaches all earlier
        hidden states, so a cache cannot agree with the full forward: the sequence is run again from its ids, which
        are kept with the cache. The published code stops with an IndexError there; that of TeleChat2 goes on.
        """
        new = (input_ids if input_ids is not None else inputs_embeds).shape[1]  # type: ignore[union-attr]
        if past is None or self.config.keys_keep_tables:
            return input_ids, new
        start, whole = past.get_seq_length(), input_ids
        known = getattr(past, "token_ids", None)
        if start and whole is not None and known is not None:
            whole = torch.cat([known, whole], dim=1)
        if start and start + new > self.config.training_seqlen:
            if whole is None or whole.shape[1] != start + new:
                raise ValueError("a cache without its token ids cannot go past the trained length")
            past.crop(-start)
            input_ids = whole
        past.token_ids = whole
        return input_ids, new


def additive_mask(attention_mask: Tensor | None, x: Tensor, start: int) -> Tensor | None:
    """Additive mask `[B, 1, T, start + T]`, or None where causality alone decides and the backend sees to it.

    Masked entries hold the lowest finite value, not -inf: rows of padding then attend uniformly instead of
    giving NaN.
    """
    length = x.shape[1]
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not padded and (start == 0 or length == 1):
        return None
    total = start + length
    allowed = torch.ones(length, total, dtype=torch.bool, device=x.device).tril(start)[None, None]
    if padded and attention_mask is not None:
        allowed = allowed & attention_mask[:, None, None, :total].bool()
    return torch.zeros(allowed.shape, dtype=x.dtype, device=x.device).masked_fill(
        ~allowed, torch.finfo(x.dtype).min
    )


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
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `[B, T or logits_to_keep, vocab]`; `labels [B, T]`, -100 to leave out, add the mean loss."""
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

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

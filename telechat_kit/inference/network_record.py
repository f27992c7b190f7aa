"""A model as the kernels read it: one record of addresses, sizes and scales, beside the tensors that it points to.

What runs on it, and when a model cannot be read so, is `engine`'s business.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from telechat_kit.backends.cpu_kernels.library import CACHE_TYPES, Block, Linear, Network, Norm, Turn
from telechat_kit.backends.cpu_kernels.operators import (
    dynamic_record,
    float_record,
    linear_record,
    turn_record,
)
from telechat_kit.backends.cpu_kernels.screen import screen_of
from telechat_kit.backends.hadamard import plain_rotation
from telechat_kit.model.int8_linears import DynamicW8A8Linear, FloatLinear, W8A8Linear
from telechat_kit.model.network import TelechatBlock, TelechatForCausalLM, TelechatRMSNorm
from telechat_kit.model.telechat3 import Telechat3Attention

LINEARS = ("query", "key_value", "dense", "gate", "up", "down")


def dtype_name(dtype: torch.dtype) -> str:
    """As the kit and profiles write it."""
    return str(dtype).removeprefix("torch.")


def blocks_of(model: TelechatForCausalLM) -> list[TelechatBlock]:
    """The blocks, in order."""
    return cast(list[TelechatBlock], list(model.transformer.h))


def linears_of(block: TelechatBlock) -> tuple[nn.Module | tuple[nn.Module, nn.Module], ...]:
    """In the order of the kernels' record; a pair for key_value where key and value have linears of their own."""
    attention, mlp = block.self_attention, block.mlp
    feed_forward = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if isinstance(attention, Telechat3Attention):
        pair = attention.k_proj, attention.v_proj
        return attention.q_proj, pair, attention.o_proj, *feed_forward
    return attention.query, attention.key_value, attention.dense, *feed_forward


def readable(linear: nn.Module | tuple[nn.Module, nn.Module]) -> bool:
    """Whether the kernels can read the weight: int8 in panels, or float as on disk.

    A pair is read as one, so both must be of one kind.
    """
    if isinstance(linear, tuple):
        return all(map(readable, linear)) and len({isinstance(part, nn.Linear) for part in linear}) == 1
    if isinstance(linear, W8A8Linear | DynamicW8A8Linear):
        return type(linear) in (W8A8Linear, DynamicW8A8Linear) and linear.weight.ndim == 4
    if not isinstance(linear, nn.Linear) or type(linear) not in (nn.Linear, FloatLinear):
        return False
    return linear.weight.is_contiguous() and linear.weight.device.type == "cpu"


def _tensors(linear: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in (*linear.named_parameters(), *linear.named_buffers())}


def _bytes(linear: Linear) -> int:
    """Bytes of weights, and of biases and what scales the products."""
    weights, outputs = linear.inputs * linear.outputs, linear.outputs
    if linear.deq_scale:
        return weights + 8 * outputs
    return (2 if linear.bfloat16 else 4) * weights + (4 * outputs if linear.bias else 0)


class NetworkRecord:
    """The record of a model. It reads the model's own tensors, and keeps them.

    Attributes:
        network: what the kernels are given.
    """

    def __init__(self, model: TelechatForCausalLM, slot_dtype: torch.dtype, screened_head: bool) -> None:
        """`slot_dtype`: of keys and values in the cache; `screened_head`: with an int8 copy of the head before it."""
        self.config = model.config
        self._kept: list[object] = []  # what the record points to
        self.screen = screen_of(model.lm_head.weight.detach()) if screened_head else None
        self.network = self._network(model, slot_dtype)

    @property
    def read_bytes_per_token(self) -> int:
        """Bytes of weights that a decode step reads, without what is in a cache of the processor anyway."""
        blocks = self.network.blocks[: self.config.n_layer]
        linears = [getattr(block, name) for block in blocks for name in LINEARS]
        return sum(map(_bytes, linears)) + (self.screen.nbytes if self.screen else _bytes(self.network.head))

    def _network(self, model: TelechatForCausalLM, slot_dtype: torch.dtype) -> Network:
        config, transformer = self.config, model.transformer
        embedding = model.get_input_embeddings().weight.detach()
        cos, sin = transformer.rotary.rows(0, config.training_seqlen, torch.empty(0))
        return Network(
            layers=config.n_layer,
            hidden=config.hidden_size,
            heads=config.n_head,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            ffn=config.ffn_hidden_size,
            vocab=config.vocab_size,
            residual_after_norm=config.apply_residual_connection_post_layernorm,
            epsilon=config.layer_norm_epsilon,
            products=self._products(),
            blocks=(Block * config.n_layer)(*map(self._block, blocks_of(model))),
            embedding=float_record(self._kept_tensor(embedding), None),
            embedding_norm=self._norm(transformer.word_embeddings_layernorm)
            if config.embed_layernorm
            else Norm(),
            final_norm=self._norm(transformer.ln_f),
            cos=self._keep(cos),
            sin=self._keep(sin),
            head=self._linear(model.lm_head),
            cache_type=CACHE_TYPES.index(dtype_name(slot_dtype)),
            **self._screen_fields(),
        )

    def _products(self) -> Turn:
        """What turns the products where down_proj reads them so."""
        if not self.config.online_rotation:
            return Turn()
        rotation = plain_rotation(self.config.ffn_hidden_size)
        self._kept.append(rotation)
        return turn_record(rotation)

    def _screen_fields(self) -> dict[str, Any]:
        if self.screen is None:
            return {}
        error, norm = self.screen.error.data_ptr(), self.screen.norm.data_ptr()
        return {"screen": self.screen.record(), "screen_error": error, "head_norm": norm}

    def _kept_tensor(self, tensor: Tensor) -> Tensor:
        """The tensor, which lives as long as the engine: records hold its address."""
        self._kept.append(tensor)
        return tensor

    def _keep(self, tensor: Tensor) -> int:
        return self._kept_tensor(tensor).data_ptr()

    def _norm(self, norm: TelechatRMSNorm) -> Norm:
        bias = None if norm.bias is None else self._keep(norm.bias.detach().float())
        return Norm(self._keep(norm.weight.detach().float()), bias)

    def _block(self, block: TelechatBlock) -> Block:
        return Block(
            self._norm(block.input_layernorm),
            self._norm(block.post_attention_layernorm),
            *map(self._linear, linears_of(block)),
        )

    def _linear(self, linear: nn.Module | tuple[nn.Module, nn.Module]) -> Linear:
        """The record of a linear; of a pair, head after head a key and a value, which takes a copy."""
        one = linear[0] if isinstance(linear, tuple) else linear
        tensors = self._interleaved(*linear) if isinstance(linear, tuple) else _tensors(linear)
        if isinstance(one, nn.Linear) and "bias" in tensors:
            tensors["bias"] = tensors["bias"].float()
        self._kept += tensors.values()
        if isinstance(one, DynamicW8A8Linear):
            bias = tensors.pop("bias", None)
            return dynamic_record(**tensors, bias=bias, inputs=one.in_features)
        if isinstance(one, W8A8Linear):
            return linear_record(**tensors, inputs=one.in_features)
        return float_record(tensors["weight"], tensors.get("bias"))

    def _interleaved(self, key: nn.Module, value: nn.Module) -> dict[str, Tensor]:
        """Tensors as of one `key_value`; rows, or panels of them, are those of the heads one after the other."""
        heads, found = self.config.kv_heads, _tensors(key)
        for name, other in _tensors(value).items():
            if name not in ("input_scale", "input_offset"):  # which are the same for both
                parts = (tensor.view(heads, -1, *tensor.shape[1:]) for tensor in (found[name], other))
                found[name] = torch.cat(list(parts), dim=1).flatten(0, 1)
        return found

"""One device's part of a model that several devices share: which slices it holds, and where sums join them again.

Query, key and value are split by heads, gate and up projection by feed-forward channels; `dense` and `down_proj` take
the inputs that these left on the device, so that their outputs are sums over the devices. Embedding, norms and head
are whole on each. How the sums travel is left to `telechat_kit.inference.parallel`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from telechat_kit.backends.plain import AddUp, same
from telechat_kit.errors import DeviceError
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.int8_linears import DynamicW8A8Linear, W8A8Linear, offset_correction
from telechat_kit.model.network import TelechatBlock, TelechatForCausalLM
from telechat_kit.model.shard_linears import ShardedDynamicLinear, ShardedFloatLinear, ShardedW8A8Linear
from telechat_kit.model.w8a8 import W8A8Weights

#: Linears whose outputs are split, and those whose inputs are
SPLIT_OUTPUTS = ("query", "key_value", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
SPLIT_INPUTS = ("dense", "o_proj", "down_proj")
#: Those whose outputs are keys and values, head after head
_KEYS_AND_VALUES = ("key_value", "k_proj", "v_proj")
#: Tensors of a linear with one entry for each output
_PER_OUTPUT = ("weight", "weight_scale", "quant_bias", "deq_scale", "bias")


@dataclass(frozen=True)
class Shard:
    """Part `rank` of `count`. `add_up` gives the sum of a tensor over all parts, `largest` the maximum."""

    rank: int = 0
    count: int = 1
    add_up: AddUp = same
    largest: AddUp = same

    def of(self, name: str, tensor: Tensor, config: TelechatConfig) -> Tensor:
        """This part of the tensor `name` of a checkpoint: a copy, or the tensor itself where every part needs all."""
        part = self.view(name, tensor, config)
        return tensor if part is tensor else part.clone()

    def view(self, name: str, tensor: Tensor, config: TelechatConfig) -> Tensor:
        """The same, without a copy but of key/value heads that cannot be split evenly."""
        axis = split_axis(name)
        if axis is None:
            return tensor
        if config.kv_heads % self.count and name.split(".")[-2] in _KEYS_AND_VALUES:
            return tensor.unflatten(0, (config.kv_heads, -1))[self.kv_heads(config)].flatten(0, 1)
        return tensor.chunk(self.count, axis)[self.rank]

    def kv_heads(self, config: TelechatConfig) -> list[int]:
        """The key/value heads that the query heads of this part read, each for as many of them.

        Where they do not split evenly, parts hold a head more than once, so that all groups are of one size.
        """
        own, group = config.n_head // self.count, config.n_head // config.kv_heads
        size = math.gcd(own, group)
        return [(self.rank * own + first) // group for first in range(0, own, size)]

    def require_even(self, config: TelechatConfig) -> None:
        """Refuse a model whose heads or channels cannot be split evenly, or are mixed: a `DeviceError`."""
        if self.count > 1 and config.online_rotation:
            raise DeviceError(
                "the input of down_proj is turned as the model runs, over channels that several devices would share. "
                "Name one device, or quantize without the ingredient online_rotation."
            )
        for what, size in (("heads", config.n_head), ("feed-forward channels", config.ffn_hidden_size)):
            if size % self.count:
                raise DeviceError(
                    "{size} {what} cannot be split evenly over {count} devices. Name another number of devices.",
                    size=size,
                    what=what,
                    count=self.count,
                )


WHOLE = Shard()


def split_axis(name: str) -> int | None:
    """Along which axis the tensor `name` is split; None where every device holds all of it."""
    linear, part = ("", *name.split("."))[-2:]
    if linear in SPLIT_OUTPUTS and part in _PER_OUTPUT:
        return 0
    return 1 if linear in SPLIT_INPUTS and part == "weight" else None


def sliced(weights: W8A8Weights, shard: Shard, config: TelechatConfig) -> W8A8Weights:
    """`weights` with this part of every tensor; what is mapped from a file is read only as far as it is needed."""
    parts = {name: shard.of(name, value, config) for name, value in weights.tensors.items()}
    return replace(weights, tensors=parts)


def narrow(model: TelechatForCausalLM, shard: Shard) -> None:
    """Give `model`, which lies on the meta device, the shapes of this part."""
    kv_heads = len(shard.kv_heads(model.config))
    for block in _blocks(model):
        block.self_attention.n_head //= shard.count
        block.self_attention.kv_heads = kv_heads
        for name, linear in _linears(block):
            assert isinstance(linear, nn.Linear)
            out, size = linear.weight.shape
            if _last(name) in _KEYS_AND_VALUES:
                out = out // model.config.kv_heads * kv_heads
            elif _last(name) in SPLIT_OUTPUTS:
                out //= shard.count
            else:
                size //= shard.count
            block.set_submodule(name, nn.Linear(size, out, linear.bias is not None, device="meta"))


def join(model: TelechatForCausalLM, shard: Shard) -> None:
    """Let the linears of `model` with split inputs, filled and on its device, add up over the parts."""
    for block in _blocks(model):
        for name, linear in _linears(block):
            if _last(name) in SPLIT_INPUTS:
                block.set_submodule(name, _joined(linear, shard))


def _joined(linear: nn.Module, shard: Shard) -> nn.Module:
    if isinstance(linear, W8A8Linear):
        tensors = {**dict(linear.named_buffers()), "quant_bias": _bias_share(linear, shard)}
        return ShardedW8A8Linear(tensors, shard.add_up)
    if isinstance(linear, DynamicW8A8Linear):
        return ShardedDynamicLinear(linear, shard.add_up, shard.largest)
    assert isinstance(linear, nn.Linear)
    return ShardedFloatLinear(linear, shard.add_up)


def _bias_share(linear: W8A8Linear, shard: Shard) -> Tensor:
    """int32 `[out]`: what this part adds to its products. All shares together are the `quant_bias`, exactly.

    Each takes back what the input's offset adds to its own products, so that partial results stay near zero, where
    float16 is fine; the first has the rest.
    """
    own = offset_correction(linear.weight, linear.input_offset).to(torch.int32)
    rest = linear.quant_bias + shard.add_up(own.clone())
    return rest - own if shard.rank == 0 else -own


def _blocks(model: TelechatForCausalLM) -> Iterator[TelechatBlock]:
    for block in model.transformer.h:
        assert isinstance(block, TelechatBlock)
        yield block


def _linears(block: TelechatBlock) -> list[tuple[str, nn.Module]]:
    names = (*SPLIT_OUTPUTS, *SPLIT_INPUTS)
    return [(name, module) for name, module in block.named_modules() if _last(name) in names]


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]

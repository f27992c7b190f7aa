"""One block of the network at a time: its float32 weights from the shards, and hidden states that flow through it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telechat_kit.model.checkpoint import linear_names
from telechat_kit.model.network import TelechatBlock, TelechatRMSNorm
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.shards import EMBEDDING, Shards

EMBEDDING_NORM = "transformer.word_embeddings_layernorm.weight"


@dataclass(frozen=True)
class Block:
    """A block by its number. Its linears and norms go by their names in the whole network."""

    index: int
    module: TelechatBlock
    rotary: Rotary

    @property
    def prefix(self) -> str:
        return block_prefix(self.index)

    @property
    def linear_names(self) -> list[str]:
        """Names of the linears in the order of the network."""
        return [self.prefix + name for name in linear_names(self.module)]

    def submodule(self, name: str) -> nn.Module:
        """The linear or norm that the whole network knows as `name`."""
        return self.module.get_submodule(name.removeprefix(self.prefix))

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter that the whole network knows as `name`."""
        return self.module.get_parameter(name.removeprefix(self.prefix))

    def run(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Hidden states after the block, from those before it, each `[1, T, H]`."""
        with torch.inference_mode():
            return [self.module(x, self.rotary.rows(0, x.shape[1], x), None, None) for x in states]


def block_prefix(index: int) -> str:
    """What names of the block number `index` begin with."""
    return f"transformer.h.{index}."


def load_block(shards: Shards, index: int, rotary: Rotary, device: torch.device) -> Block:
    """The block number `index` with float32 weights of its own on `device`."""
    with torch.device("meta"):
        module = TelechatBlock(shards.config, index)
    prefix = block_prefix(index)
    values = shards.read([prefix + name for name, _ in module.named_parameters()], device)
    module.load_state_dict({name.removeprefix(prefix): value for name, value in values.items()}, assign=True)
    return Block(index, module.requires_grad_(False).eval(), rotary)


def embed(shards: Shards, samples: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Hidden states `[1, T, H]` before the first block, from the ids `[1, T]` of each sample."""
    with torch.inference_mode():
        states = [shards.rows(EMBEDDING, sample).to(device) for sample in samples]
        if not shards.config.embed_layernorm:
            return states
        norm = TelechatRMSNorm(shards.config.hidden_size, shards.config.layer_norm_epsilon)
        norm.weight.data = shards.read([EMBEDDING_NORM], device)[EMBEDDING_NORM]
        return [norm(x) for x in states]

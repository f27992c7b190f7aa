"""One block of the network at a time: its float32 weights from the shards, and hidden states that flow through it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.layout import Layout
from telechat_kit.model.network import TelechatBlock, TelechatRMSNorm
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.telechat3 import block_of
from telechat_kit.model.w8a8 import linear_names
from telechat_kit.model.weight_shards import Shards
from telechat_kit.progress import track
from telechat_kit.quantization.partial import Pass


@dataclass(frozen=True)
class Block:
    """A block by its number. Its linears and norms go by their names in the whole network."""

    index: int
    module: TelechatBlock
    rotary: Rotary

    @property
    def layout(self) -> Layout:
        """What the checkpoint calls the modules."""
        return self.rotary.config.layout

    @property
    def prefix(self) -> str:
        return self.layout.block(self.index)

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

    def replace(self, name: str, module: nn.Module) -> None:
        """Put another module in the place of the linear or norm `name`."""
        self.module.set_submodule(name.removeprefix(self.prefix), module)

    @contextlib.contextmanager
    def having(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """While active, `modules` stand in the places that they are named by; what was there comes back afterwards."""
        own = {name: self.submodule(name) for name in modules}
        try:
            for name, module in modules.items():
                self.replace(name, module)
            yield
        finally:
            for name, module in own.items():
                self.replace(name, module)

    def run(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Hidden states after the block, from those before it, each `[1, T, H]`."""
        with torch.inference_mode():
            return [self.module(x, self.rotary.rows(0, x.shape[1], x), None, None) for x in states]


def load_block(shards: Shards, index: int, rotary: Rotary, device: torch.device) -> Block:
    """The block number `index` with float32 weights of its own on `device`."""
    with torch.device("meta"):
        module = block_of(shards.config, index)
    prefix = shards.config.layout.block(index)
    values = shards.read([prefix + name for name, _ in module.named_parameters()], device)
    module.load_state_dict({name.removeprefix(prefix): value for name, value in values.items()}, assign=True)
    return Block(index, module.requires_grad_(False).eval(), rotary)


def embed(shards: Shards, samples: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Hidden states `[1, T, H]` before the first block, from the ids `[1, T]` of each sample."""
    with torch.inference_mode():
        layout = shards.config.layout
        states = [shards.rows(layout.embedding, sample).to(device) for sample in samples]
        if not shards.config.embed_layernorm:
            return states
        norm = TelechatRMSNorm(shards.config.hidden_size, shards.config.layer_norm_epsilon)
        norm.weight.data = shards.read([layout.embedding_norm], device)[layout.embedding_norm]
        return [norm(x) for x in states]


def model_linear_names(config: TelechatConfig) -> list[str]:
    """Names of all linears of the blocks, in the order of the network."""
    with torch.device("meta"):
        local = linear_names(block_of(config, 0))
    return [config.layout.block(index) + name for index in range(config.n_layer) for name in local]


class Stage(Protocol):
    """One pass over the blocks of a checkpoint. `step` does a block and writes what comes of it to `results`."""

    @property
    def shards(self) -> Shards: ...
    @property
    def results(self) -> Pass: ...
    @property
    def device(self) -> torch.device: ...
    def step(self, block: Block, states: Sequence[Tensor]) -> list[Tensor]: ...


def stream(stage: Stage, samples: Sequence[Tensor], description: str) -> None:
    """Run the blocks that are not finished, each on the states that the one before it left."""
    shards, results, count = stage.shards, stage.results, stage.shards.config.n_layer
    start, rotary = results.finished, Rotary(stage.shards.config)
    if start >= count:
        return
    states = (
        [state.to(stage.device) for state in results.states(start - 1)]
        if start
        else embed(shards, samples, stage.device)
    )
    for index in track(range(start, count), description, total=count, done=start):
        states = stage.step(load_block(shards, index, rotary, stage.device), states)

"""How much device memory a model needs, from its configuration alone and before anything is loaded."""

from dataclasses import dataclass

import torch

from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.shards import HEAD

#: Tokens of key/value cache that the figures hold: the longest of the guide's cases is 2000 + 2000
TOKENS = 4096


@dataclass(frozen=True)
class Footprint:
    """Bytes of weights and of the cache of `TOKENS` tokens, in float16 and with all linears of the blocks int8.

    What the operators take for themselves while they run comes on top.
    """

    float16: int
    w8a8: int


def footprint(config: TelechatConfig) -> Footprint:
    """Count the parameters of the network on the meta device: nothing is allocated."""
    tied = config.tie_word_embeddings
    with torch.device("meta"):
        model = TelechatForCausalLM(config)
    total = sum(p.numel() for name, p in model.named_parameters() if not (tied and name == HEAD))
    linears = sum(p.numel() for name, p in model.named_parameters() if ".h." in name and p.dim() == 2)
    cache = 2 * config.n_layer * config.hidden_size * TOKENS * 2
    return Footprint(2 * total + cache, 2 * total - linears + cache)

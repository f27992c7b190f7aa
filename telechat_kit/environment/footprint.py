"""How much device memory a model needs, from its configuration alone and before anything is loaded."""

from dataclasses import dataclass

from telechat_kit.inference.memory import needs
from telechat_kit.model.configuration import TelechatConfig

#: Tokens of key/value cache that the figures hold: the longest of the guide's cases is 2000 + 2000
TOKENS = 4096


@dataclass(frozen=True)
class Footprint:
    """Bytes of weights and of the cache of `TOKENS` tokens, in float16 and with all linears of the blocks int8.

    What the operators take for themselves while they run comes on top.
    """

    float16: int
    w8a8: int


def footprint(config: TelechatConfig, devices: int = 1) -> Footprint:
    """Counted from the shapes alone: nothing is allocated. For each device, where several share the model."""
    return Footprint(*(needs(config, w8a8, devices=devices).bytes_for(TOKENS) for w8a8 in (False, True)))

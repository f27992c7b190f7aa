"""Whole sequences through a model at once, for what judges it at every position: the engine reads them where it can."""

from collections.abc import Sequence

import torch
from torch import Tensor

from telechat_kit.inference.engine import engine_for
from telechat_kit.inference.network_run import without_nan
from telechat_kit.model.network import TelechatForCausalLM


@torch.inference_mode()
def hidden_states(model: TelechatForCausalLM, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """States `[T, H]` behind the final norm of each sequence of ids, in the dtype of the head.

    The engine's are those of the modules, bit for bit for W8A8 weights.
    """
    engine = engine_for(model)
    if engine is not None and engine.fits(max(map(len, sequences))):
        dtype = model.lm_head.weight.dtype
        return [
            states.to(dtype) for states in engine.batch([len(ids) for ids in sequences]).states(sequences)
        ]
    return [_states_of(model, ids) for ids in sequences]


def _states_of(model: TelechatForCausalLM, ids: Sequence[int]) -> Tensor:
    def step() -> Tensor:
        states: Tensor = model.transformer(
            torch.tensor([ids], device=model.device), use_cache=False
        ).last_hidden_state[0]
        return states

    return without_nan(model, step(), step)

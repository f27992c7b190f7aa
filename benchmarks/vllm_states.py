"""What `client_runs` sends into vLLM's worker, which imports it by name: keeping the output of the final norm."""

from typing import Any

from torch import Tensor, nn


def keep_states(model: nn.Module) -> None:
    """From now on keep what the final norm gives, request by request."""
    model.kept = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        model.kept.append((output[0] if isinstance(output, tuple) else output).clone())

    model.model.norm.register_forward_hook(keep)


def kept_states(model: nn.Module) -> tuple[list[Tensor], Tensor]:
    """The states of all requests so far, `[length, hidden]` each, and the head."""
    return model.kept, model.lm_head.weight.detach().clone()

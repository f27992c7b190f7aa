"""How far networks are apart in what they predict, from their hidden states: the head one part at a time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from telechat_kit.model.network import TelechatRMSNorm
from telechat_kit.model.weight_shards import HEAD, Shards

#: Rows of the head that are multiplied at a time: bounds the memory at large vocabularies
HEAD_ROWS = 4096


@torch.inference_mode()
def kl_divergences(
    shards: Shards, reference: Sequence[Tensor], others: Sequence[Sequence[Tensor]], device: torch.device
) -> list[list[float]]:
    """KL(reference || other) of the next token's distribution, in nats per token, of each sample of each of `others`.

    Args:
        reference: hidden states after the last block, each `[1, T, H]`; each of `others` has the same shapes.
    """
    lengths = [x.shape[1] for x in reference]
    found = _token_divergences(shards, reference, others, device)
    return [[float(part.mean()) for part in tokens.split(lengths)] for tokens in found]


def _token_divergences(
    shards: Shards, reference: Sequence[Tensor], others: Sequence[Sequence[Tensor]], device: torch.device
) -> list[Tensor]:
    """The same for each token of all samples, float64 `[tokens]`."""
    p, *rest = (_head_inputs(shards, states, device) for states in (reference, *others))
    # log of the sum of exp(logit), and mean difference of both logits under p, over the rows so far
    log_p = p.new_full((p.shape[0],), -torch.inf, dtype=torch.float64)
    log_q = [log_p.clone() for _ in rest]
    difference = [torch.zeros_like(log_p) for _ in rest]
    for rows in _head_rows(shards, device):
        logits = p @ rows.T
        total = torch.logaddexp(log_p, logits.logsumexp(1).double())
        weight, kept = (logits - total.float()[:, None]).exp_(), (log_p - total).exp()
        for i, states in enumerate(rest):
            other = states @ rows.T
            log_q[i] = torch.logaddexp(log_q[i], other.logsumexp(1).double())
            gained = (logits - other).mul_(weight).sum(1, dtype=torch.float64)
            difference[i] = difference[i] * kept + gained
        log_p = total
    return [d - (log_p - q) for d, q in zip(difference, log_q, strict=True)]


def _head_inputs(shards: Shards, states: Sequence[Tensor], device: torch.device) -> Tensor:
    """The head's input `[tokens, H]` of all samples."""
    norm = TelechatRMSNorm(shards.config.hidden_size, shards.config.layer_norm_epsilon)
    name = shards.config.layout.final_norm
    norm.weight.data = shards.read([name], device)[name]
    normed: Tensor = norm(torch.cat([x[0] for x in states]).to(device))
    return normed


def _head_rows(shards: Shards, device: torch.device) -> Iterator[Tensor]:
    """The head's weight, float32, some rows at a time."""
    name = shards.config.layout.embedding if shards.config.tie_word_embeddings else HEAD
    for rows in torch.arange(shards.tensors[name].shape[0]).split(HEAD_ROWS):
        yield shards.rows(name, rows).to(device)

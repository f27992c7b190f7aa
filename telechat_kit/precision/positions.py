"""Both models over the same tokens: what differs at every position, without a tensor or file of all logits.

The float model reads first; its last hidden states (not its logits) and its head wait for the W8A8 model, so the
two need not be in memory together.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from telechat_kit.errors import DataError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.inference.whole_sequences import hidden_states
from telechat_kit.messages import marked
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.progress import track
from telechat_kit.temporary import temporary_folder
from telechat_kit.token_samples import Block

#: Positions whose distributions are compared at a time: bounds the memory at large vocabularies
CHUNK = 128
#: Width of the agreement on the most likely tokens
TOP = 5
#: Rows of `PositionFigures.values`
FIGURES = ("float_loss", "w8a8_loss", "kl", "top1", "top5", "probability_change")


@dataclass(frozen=True)
class PositionFigures:
    """Figures of the predictions of one sequence, float64 `[6, T - 1]` in the order of `FIGURES`.

    Losses in nats; KL(float || W8A8) in nats; `top1` 0 or 1; `top5` the share of the five most likely tokens that
    are the same; `probability_change` of the correct token, W8A8 less float.
    """

    block: Block
    values: np.ndarray

    def row(self, name: str) -> np.ndarray:
        """One figure of every position."""
        return np.asarray(self.values[FIGURES.index(name)])


@dataclass(frozen=True)
class Reference:
    """What the float model left for a comparison: its last hidden states on disk, and its head in memory."""

    blocks: Sequence[Block]
    paths: Sequence[Path]
    head: nn.Module


def compare_positions(pair: Pair, blocks: Sequence[Block]) -> list[PositionFigures]:
    """Run both models over `blocks` and compare the distributions of every next token.

    Raises:
        DataError: logits are not finite; the first position is named.
    """
    with reference_of(pair, blocks) as reference, pair.model("w8a8") as model:
        return compare_with(reference, model, marked("float against W8A8"))


@contextmanager
def reference_of(pair: Pair, blocks: Sequence[Block]) -> Iterator[Reference]:
    """The float model's states `[T - 1, H]` of each block, in a temporary folder while the context lasts."""
    with temporary_folder() as folder:
        paths = [folder / f"{number}.safetensors" for number in range(len(blocks))]
        yield Reference(blocks, paths, _spill(pair, blocks, paths))


def _spill(pair: Pair, blocks: Sequence[Block], paths: Sequence[Path]) -> nn.Module:
    with pair.model("float") as model:
        for block, path in zip(track(blocks, marked("float reads the text")), paths, strict=True):
            save_file({"states": last_states(model, block).cpu().contiguous()}, path)
        return model.lm_head


def compare_with(
    reference: Reference, model: TelechatForCausalLM, description: str | None = None
) -> list[PositionFigures]:
    """Figures of `model` against the `reference`; with a `description` the progress is shown."""
    blocks = track(reference.blocks, description) if description else reference.blocks
    return [
        compare_states(
            block,
            load_file(path)["states"].to(model.device),
            reference.head,
            last_states(model, block),
            model.lm_head,
        )
        for block, path in zip(blocks, reference.paths, strict=True)
    ]


@torch.inference_mode()
def last_states(model: TelechatForCausalLM, block: Block) -> Tensor:
    """Hidden states `[T - 1, H]` from which the model predicts the tokens of `block` but the first."""
    return hidden_states(model, [block.ids])[0][:-1]


@torch.inference_mode()
def compare_states(
    block: Block, reference: Tensor, head: nn.Module, states: Tensor, own_head: nn.Module
) -> PositionFigures:
    """Figures of `states [T - 1, H]` and their head against the float model's `reference` and `head`."""
    targets, parts = torch.tensor(block.ids[1:], device=states.device), []
    for start in range(0, len(targets), CHUNK):
        span = slice(start, start + CHUNK)
        p, q = log_probabilities(head, reference[span]), log_probabilities(own_head, states[span])
        for name, rows in (("float", p), ("W8A8", q)):
            _refuse_non_finite(name, rows, block, start)
        parts.append(torch.stack(_figures(p, q, targets[span])))
    return PositionFigures(block, torch.cat(parts, dim=1).double().cpu().numpy())


def log_probabilities(head: nn.Module, states: Tensor) -> Tensor:
    """float32 log-probabilities `[T, vocab]` of the next token from hidden states `[T, H]`."""
    logits: Tensor = head(states)
    return logits.float().log_softmax(-1)


def _refuse_non_finite(name: str, rows: Tensor, block: Block, start: int) -> None:
    finite = rows.sum(-1).isfinite()
    if not bool(finite.all()):
        position = start + int((~finite).nonzero()[0])
        raise DataError(
            "the {name} logits are not finite at position {position} of the sequence that begins at token "
            "{start} of the text: weights or activations overflow in this dtype.",
            name=name,
            position=position,
            start=block.start,
        )


def _figures(p: Tensor, q: Tensor, targets: Tensor) -> list[Tensor]:
    """The figures of `FIGURES` for log-probabilities `[T, vocab]`, each `[T]`."""
    expected, found = (rows.gather(1, targets[:, None])[:, 0] for rows in (p, q))
    top, own_top = p.topk(TOP, dim=-1).indices, q.topk(TOP, dim=-1).indices
    return [
        -expected,
        -found,
        (p.exp() * (p - q)).sum(-1).clamp(min=0),  # rounding leaves -1e-8 where both are equal
        (p.argmax(-1) == q.argmax(-1)).float(),
        (top[:, :, None] == own_top[:, None, :]).any(-1).float().mean(-1),
        found.exp() - expected.exp(),
    ]

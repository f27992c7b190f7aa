"""What one run saw of a text, compact enough to carry to another device's run.

A bundle holds, for each position, the most likely tokens with their log-probabilities, and the greedy ids of the
answers; `telechat_kit.comparison.alignment` compares two of them on any machine, without the models.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from telechat_kit.errors import DataError
from telechat_kit.files import atomic_path, resolve
from telechat_kit.inference.model_pair import Pair
from telechat_kit.messages import Message
from telechat_kit.precision.positions import CHUNK, last_states, log_probabilities
from telechat_kit.progress import track
from telechat_kit.token_samples import Block

SCHEMA = "telechat-kit/bundle/1"
BUNDLE = "bundle.safetensors"
#: Tokens kept at each position; what the others hold together is kept as one more number
KEPT = 32


@dataclass(frozen=True)
class Bundle:
    """A bundle as read: `meta` its conditions and texts, `tensors` as `save_bundle` wrote them."""

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def answers(self) -> list[list[int]]:
        """Greedy ids of every answer."""
        ends = np.cumsum(self.tensors["answer_lengths"], dtype=int)
        return (
            [part.tolist() for part in np.split(self.tensors["answer_ids"], ends[:-1])] if len(ends) else []
        )


def save_bundle(
    path: str | Path,
    pair: Pair,
    blocks: Sequence[Block],
    *,
    precision: str = "w8a8",
    text: str = "",
    questions: Sequence[str] = (),
    answers: Sequence[Sequence[int]] = (),
    answer_texts: Sequence[str] = (),
) -> Path:
    """Write the bundle of one model of `pair` over `blocks`: a few MB, whole or not at all.

    Args:
        precision: "float" or "w8a8".
        text: what to call the text of the blocks.
        questions, answers, answer_texts: the question lines, and the greedy ids and texts given to them.
    """
    target = resolve(path)
    with pair.model(precision) as model:
        parts = [
            _most_likely(model.lm_head, last_states(model, block))
            for block in track(blocks, Message("bundle of {precision}", precision=precision))
        ]
        weights = model.get_input_embeddings().weight
    tensors = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    tensors["tokens"] = torch.tensor([block.ids for block in blocks], dtype=torch.int32)
    tensors["answer_ids"] = torch.tensor([i for ids in answers for i in ids], dtype=torch.int32)
    tensors["answer_lengths"] = torch.tensor([len(ids) for ids in answers], dtype=torch.int32)
    found = pair.conditions()
    meta = {
        "schema": SCHEMA,
        "text": text,
        "precision": precision,
        "dtype": str(weights.dtype).removeprefix("torch."),
        "weights": found.hashes[f"{precision}_weights"],
        "tokenizer": found.hashes["float_tokenizer"],
        "questions": list(questions),
        "answer_texts": list(answer_texts),
        "conditions": asdict(found),
    }
    with atomic_path(target) as temporary:
        save_file(tensors, temporary, metadata={"telechat-kit": json.dumps(meta, ensure_ascii=False)})
    return target


@torch.inference_mode()
def _most_likely(head: nn.Module, states: Tensor) -> dict[str, Tensor]:
    """`ids`, `log_probabilities` `[T - 1, KEPT]` in falling order, and `rest [T - 1]`, log of what others hold."""
    parts: dict[str, list[Tensor]] = {"ids": [], "log_probabilities": [], "rest": []}
    for start in range(0, len(states), CHUNK):
        rows = log_probabilities(head, states[start : start + CHUNK])
        top = rows.topk(min(KEPT, rows.shape[-1] - 1), dim=-1)
        parts["ids"].append(top.indices.to(torch.int32).cpu())
        parts["log_probabilities"].append(top.values.cpu())
        others = rows.scatter(-1, top.indices, -torch.inf)
        parts["rest"].append(others.logsumexp(-1).cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def read_bundle(path: str | Path) -> Bundle:
    """The bundle in a file, or in a run folder."""
    path = resolve(path)
    path = path / BUNDLE if path.is_dir() else path
    if not path.is_file():
        raise DataError("{path} does not exist. Run 03_precision with bundle: w8a8 to write one.", path=path)
    try:
        with safe_open(path, framework="np") as file:
            meta = json.loads((file.metadata() or {})["telechat-kit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(
            "{path} is no bundle of this kit, or damaged ({error}). Run its step again.",
            path=path,
            error=error,
        ) from error
    if meta.get("schema") != SCHEMA:
        raise DataError(
            '{path} has schema "{meta}", this kit reads "{schema}". Run its step again.',
            path=path,
            meta=meta.get("schema"),
            schema=SCHEMA,
        )
    return Bundle(path, meta, tensors)

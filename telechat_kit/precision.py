"""Float against W8A8: divergence and perplexity over a text, answers side by side."""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telechat_kit.data import Block, load_text, token_blocks
from telechat_kit.errors import CheckpointError, DataError, ParameterError
from telechat_kit.files import read_json, read_jsonl, relative, resolve, write_jsonl
from telechat_kit.generation import chat_ids, generate, stop_ids
from telechat_kit.model.checkpoint import load_model, needed_model_path
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.progress import track
from telechat_kit.provenance import Conditions, conditions
from telechat_kit.statistics import Estimate, bootstrap

SCHEMA = "telechat-kit/precision/1"
#: Positions whose distributions are compared at a time: bounds the memory at large vocabularies
CHUNK = 128
QUANTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Divergence:
    """W8A8 against float on the same tokens. KL in nats per token; intervals over sequences."""

    sequences: int
    tokens: int
    perplexity_float: Estimate
    perplexity_w8a8: Estimate
    perplexity_ratio: Estimate
    kl_mean: Estimate
    kl_quantiles: dict[str, float]  # percent of the positions -> KL
    kl_max: float
    top1_agreement: Estimate


@dataclass(frozen=True)
class Answer:
    """Both answers to one line, greedy, and where they part."""

    input: str
    float_answer: str
    w8a8_answer: str
    common_tokens: int
    float_tokens: int
    w8a8_tokens: int
    similarity: float


@dataclass(frozen=True)
class PrecisionRecord:
    """What `03_precision` measured."""

    schema: str
    model_path: str
    quant_path: str
    text_source: str
    text_sha256: str
    blocks: list[tuple[int, int]]
    seed: int
    repetition_penalty: float
    max_new_tokens: int
    divergence: Divergence
    answers: list[Answer]
    conditions: Conditions


class Pair:
    """Float and W8A8 model of one tokenizer, loaded and checked to belong together."""

    def __init__(self, model_path: str | Path, quant_path: str | Path, device: str = "auto") -> None:
        self.float_folder, self.w8a8_folder = resolve(model_path), resolve(quant_path)
        self.tokenizer = load_tokenizer(self.float_folder)
        self.models = {
            "float": load_model(self.float_folder, device),
            "w8a8": load_model(
                self.w8a8_folder, device, model_path=needed_model_path(self.w8a8_folder, self.float_folder)
            ),
        }
        sizes = {name: model.config.vocab_size for name, model in self.models.items()}
        if len(set(sizes.values())) > 1 or len(self.tokenizer) > sizes["float"]:
            raise CheckpointError(
                f"{self.float_folder} (vocabulary {sizes['float']}, tokenizer {len(self.tokenizer)}) and "
                f"{self.w8a8_folder} (vocabulary {sizes['w8a8']}) do not belong together. Give a pair of one model."
            )

    @property
    def device(self) -> torch.device:
        return self.models["float"].device

    def conditions(self) -> Conditions:
        """Conditions of a measurement on this pair."""
        return conditions(self.device, float=self.float_folder, w8a8=self.w8a8_folder)


def evaluation_blocks(pair: Pair, source: str, length: int, count: int, seed: int) -> list[Block]:
    """Blocks of the text that the W8A8 model was not calibrated on, as its `quantize.json` tells."""
    if length < 2:
        raise ParameterError(
            f"sequences of {length} tokens: at least 2 tokens are needed, one to predict the next."
        )
    text = load_text(source)
    path = pair.w8a8_folder / "quantize.json"
    recipe = read_json(path).get("recipe", {}) if path.is_file() else {}
    seen = recipe.get("calibration_blocks", []) if recipe.get("calibration_sha256") == text.sha256 else []
    return token_blocks(
        pair.tokenizer, text, length, count, seed, exclude=[(low, high) for low, high in seen]
    )


def measure_divergence(pair: Pair, blocks: Sequence[Block]) -> Divergence:
    """Run both models over `blocks` and compare the distributions of every next token.

    Logits are compared block by block and not kept.
    """
    sums, divergences = [], []
    for block in track(blocks, "float against W8A8"):
        ids = torch.tensor([block.ids], device=pair.device)
        kl, row = _compare_block(pair.models["float"], pair.models["w8a8"], ids)
        divergences.append(kl)
        sums.append(row)
    return _summarize(np.array(sums), np.concatenate(divergences))


@torch.inference_mode()
def _compare_block(
    reference: TelechatForCausalLM, other: TelechatForCausalLM, ids: Tensor
) -> tuple[np.ndarray, list[float]]:
    """KL of every position `[T - 1]`, and the means: float loss, W8A8 loss, KL, top-1 agreement."""
    hidden = [
        model.transformer(ids, use_cache=False).last_hidden_state[0, :-1] for model in (reference, other)
    ]
    targets, parts = ids[0, 1:], []
    for start in range(0, len(targets), CHUNK):
        span = slice(start, start + CHUNK)
        p, q = (
            model.lm_head(states[span]).float().log_softmax(-1)
            for model, states in zip((reference, other), hidden, strict=True)
        )
        parts.append(torch.stack(_position_figures(p, q, targets[span])))
    figures = torch.cat(parts, dim=1).double().cpu()
    if not bool(figures.isfinite().all()):
        position = int((~figures.isfinite().all(0)).nonzero()[0])
        raise DataError(
            f"logits are not finite at position {position} of a block: the weights overflow in this dtype."
        )
    return figures[2].numpy(), figures.mean(1).tolist()


def _position_figures(p: Tensor, q: Tensor, targets: Tensor) -> list[Tensor]:
    """Float loss, W8A8 loss, KL(p || q) and top-1 agreement for log-probabilities `[T, vocab]`."""
    return [
        -p.gather(1, targets[:, None])[:, 0],
        -q.gather(1, targets[:, None])[:, 0],
        (p.exp() * (p - q)).sum(-1),
        (p.argmax(-1) == q.argmax(-1)).float(),
    ]


def _summarize(sums: np.ndarray, divergences: np.ndarray) -> Divergence:
    return Divergence(
        sequences=len(sums),
        tokens=len(divergences),
        perplexity_float=bootstrap(sums, lambda mean: np.exp(mean[..., 0])),
        perplexity_w8a8=bootstrap(sums, lambda mean: np.exp(mean[..., 1])),
        perplexity_ratio=bootstrap(sums, lambda mean: np.exp(mean[..., 1] - mean[..., 0])),
        kl_mean=bootstrap(sums, lambda mean: mean[..., 2]),
        kl_quantiles={f"{share:g}": float(np.percentile(divergences, share)) for share in QUANTILES},
        kl_max=float(divergences.max()),
        top1_agreement=bootstrap(sums, lambda mean: mean[..., 3]),
    )


def answer_lines(
    pair: Pair,
    jsonl_path: str | Path,
    max_new_tokens: int,
    repetition_penalty: float,
    limit: int | None = None,
) -> list[Answer]:
    """Greedy answers of both models to the `{"input": ...}` lines of a file, at most `limit` of them.

    Raises:
        DataError: the file is missing, a line is malformed, or a question does not fit the context.
    """
    lines = read_jsonl(resolve(jsonl_path), "input")[:limit]
    return [
        _answer(pair, row["input"], max_new_tokens, repetition_penalty)
        for row in track(lines, "answers of both models")
    ]


def _answer(pair: Pair, question: str, max_new_tokens: int, repetition_penalty: float) -> Answer:
    prompt = chat_ids(pair.tokenizer, question)
    context = pair.models["float"].config.training_seqlen
    if len(prompt) + max_new_tokens > context:
        raise DataError(
            f'"{question[:60]}" has {len(prompt)} tokens; with {max_new_tokens} new ones it exceeds the context of '
            f"{context}. Shorten the line or lower max_new_tokens."
        )
    ids = {
        name: generate(
            model, prompt, max_new_tokens, repetition_penalty=repetition_penalty, stop_ids=stop_ids(model)
        ).token_ids
        for name, model in pair.models.items()
    }
    texts = {
        name: pair.tokenizer.decode(tokens, skip_special_tokens=True).strip() for name, tokens in ids.items()
    }
    return Answer(
        input=question,
        float_answer=texts["float"],
        w8a8_answer=texts["w8a8"],
        common_tokens=_common_prefix(ids["float"], ids["w8a8"]),
        float_tokens=len(ids["float"]),
        w8a8_tokens=len(ids["w8a8"]),
        similarity=difflib.SequenceMatcher(None, texts["float"], texts["w8a8"], autojunk=False).ratio(),
    )


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def write_answers(run_folder: str | Path, answers: Sequence[Answer]) -> list[Path]:
    """`answers.jsonl` with both answers, and the guide's `{"input", "infer"}` lines, one file for each model."""
    rows: dict[str, list[dict[str, Any]]] = {
        "answers.jsonl": [asdict(answer) for answer in answers],
        "infer_float.jsonl": [{"input": a.input, "infer": a.float_answer} for a in answers],
        "infer_w8a8.jsonl": [{"input": a.input, "infer": a.w8a8_answer} for a in answers],
    }
    return [write_jsonl(resolve(run_folder) / name, lines) for name, lines in rows.items()]


def measure_precision(
    model_path: str | Path,
    quant_path: str | Path,
    jsonl_path: str | Path,
    *,
    text: str = "pydoc_data.topics",
    sequences: int = 16,
    tokens: int = 512,
    seed: int = 0,
    max_new_tokens: int = 64,
    repetition_penalty: float = 1.03,
    answers: int | None = None,
    device: str = "auto",
) -> PrecisionRecord:
    """Compare the float folder `model_path` with the W8A8 folder `quant_path`: distributions, then answers.

    Args:
        jsonl_path: `{"input": ...}` lines; the first `answers` of them are answered (None: all).
        text: evaluation text; `sequences` blocks of `tokens` tokens are drawn from it by `seed`.
    """
    questions = read_jsonl(resolve(jsonl_path), "input")  # a malformed file is found before minutes of work
    del questions
    pair = Pair(model_path, quant_path, device)
    blocks = evaluation_blocks(pair, text, tokens, sequences, seed)
    return PrecisionRecord(
        schema=SCHEMA,
        model_path=relative(pair.float_folder),
        quant_path=relative(pair.w8a8_folder),
        text_source=text,
        text_sha256=load_text(text).sha256,
        blocks=[(block.start, block.stop) for block in blocks],
        seed=seed,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        divergence=measure_divergence(pair, blocks),
        answers=answer_lines(pair, jsonl_path, max_new_tokens, repetition_penalty, answers),
        conditions=pair.conditions(),
    )

"""What the positions add up to: perplexity, divergence and agreement, with intervals over sequences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from telechat_kit.errors import DataError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision.positions import FIGURES, PositionFigures, compare_positions
from telechat_kit.statistics import Estimate, bootstrap, quantile
from telechat_kit.texts import load_text
from telechat_kit.token_samples import Block

KL_QUANTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
CHANGE_QUANTILES = (0.1, 1.0, 5.0, 50.0, 95.0, 99.0, 99.9)
#: Sequences of a text whose lines are told apart by language are short: there is little of it
LANGUAGE_TOKENS, LANGUAGE_SEQUENCES = 128, 12


@dataclass(frozen=True)
class ProbabilityChange:
    """Probability of the correct token, W8A8 less float: mean, root of the mean square, percentiles."""

    mean: Estimate
    rms: Estimate
    quantiles: dict[str, Estimate]  # percent of the positions -> change


@dataclass(frozen=True)
class Group:
    """The main figures for a part of the positions: a range of positions, a language or a kind of text."""

    name: str
    sequences: int
    tokens: int
    perplexity_float: Estimate
    perplexity_ratio: Estimate
    kl_mean: Estimate
    top1_agreement: Estimate
    #: as `Divergence.by_sequence`; empty for a range of positions, whose sequences are those of the whole
    by_sequence: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Divergence:
    """W8A8 against float on the same tokens. KL in nats per token; intervals over sequences."""

    sequences: int
    tokens: int
    perplexity_float: Estimate
    perplexity_w8a8: Estimate
    perplexity_ratio: Estimate
    kl_mean: Estimate
    kl_quantiles: dict[str, Estimate]  # percent of the positions -> KL
    kl_max: float
    top1_agreement: Estimate
    top5_agreement: Estimate
    probability_change: ProbabilityChange
    by_position: list[Group]
    #: mean of each sequence, in the order of `positions.FIGURES`: two runs on one text are compared in pairs
    by_sequence: list[list[float]] = field(default_factory=list)


def measure_divergence(pair: Pair, blocks: Sequence[Block]) -> Divergence:
    """Run both models over `blocks` and compare the distributions of every next token."""
    return summarize(compare_positions(pair, blocks))


def measure_languages(pair: Pair, source: str) -> list[Group]:
    """The main figures by language, over the lines of a jsonl or text file, each language by itself.

    Raises:
        DataError: no language has the tokens for one sequence.
    """
    blocks = language_blocks(pair, source)
    found = compare_positions(pair, [block for part in blocks.values() for block in part])
    groups, start = [], 0
    for language, part in blocks.items():
        groups.append(summarize_group(language, found[start : start + len(part)]))
        start += len(part)
    return groups


def language_blocks(pair: Pair, source: str) -> dict[str, list[Block]]:
    """Sequences of each language of the text: its lines joined and cut, the rest of the last cut left out."""
    texts: dict[str, list[str]] = {}
    for line in load_text(source).lines:
        texts.setdefault(language_of(line), []).append(line)
    blocks = {language: _cut(pair, lines) for language, lines in texts.items()}
    if not any(blocks.values()):
        raise DataError(
            "{source} has no {language_tokens} tokens in one language. Give a longer text.",
            source=source,
            language_tokens=LANGUAGE_TOKENS,
        )
    return {language: part for language, part in sorted(blocks.items()) if part}


def _cut(pair: Pair, lines: Iterable[str]) -> list[Block]:
    ids = pair.tokenizer("\n".join(lines), add_special_tokens=False, verbose=False)["input_ids"]
    starts = range(0, len(ids) - LANGUAGE_TOKENS + 1, LANGUAGE_TOKENS)
    blocks = [Block(i, i + LANGUAGE_TOKENS, tuple(ids[i : i + LANGUAGE_TOKENS])) for i in starts]
    return blocks[:LANGUAGE_SEQUENCES]


def language_of(line: str) -> str:
    """ "Chinese" if most letters of the line are Chinese characters, else "English": what the kit's texts hold."""
    letters = [character for character in line if character.isalpha()]
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in letters)
    return "Chinese" if 2 * chinese > len(letters) else "English"


def summarize(found: Sequence[PositionFigures]) -> Divergence:
    """All figures of the positions `found`, one entry a sequence."""
    sums, kl = _means(found), [figures.row("kl") for figures in found]
    decided = figures_of_means(sums)
    return Divergence(
        sequences=len(found),
        tokens=sum(len(row) for row in kl),
        perplexity_float=decided["perplexity_float"],
        perplexity_w8a8=decided["perplexity_w8a8"],
        perplexity_ratio=decided["perplexity_ratio"],
        kl_mean=decided["kl_mean"],
        top1_agreement=decided["top1_agreement"],
        top5_agreement=decided["top5_agreement"],
        kl_quantiles={f"{p:g}": quantile(kl, p / 100, log=True) for p in KL_QUANTILES},
        kl_max=float(max(row.max() for row in kl)),
        probability_change=_probability_change(found),
        by_position=_by_position(found),
        by_sequence=sums.tolist(),
    )


def figures_of_means(sums: np.ndarray) -> dict[str, Estimate]:
    """The figures of a `Divergence` that the means of its sequences decide, by name.

    Args:
        sums: `[sequences, 6]`, float64, as `by_sequence` keeps it: who has a record computes its figures anew.
    """
    return {
        "perplexity_float": _perplexity(sums, 0),
        "perplexity_w8a8": _perplexity(sums, 1),
        "perplexity_ratio": _ratio(sums),
        "kl_mean": mean_of(sums, "kl").clip(low=0.0),
        "top1_agreement": mean_of(sums, "top1").clip(0.0, 1.0),
        "top5_agreement": mean_of(sums, "top5").clip(0.0, 1.0),
    }


def _probability_change(found: Sequence[PositionFigures]) -> ProbabilityChange:
    changes = [figures.row("probability_change") for figures in found]
    squares = np.array([[np.mean(row**2)] for row in changes])
    return ProbabilityChange(
        mean=mean_of(_means(found), "probability_change"),
        rms=bootstrap(squares, lambda mean: np.sqrt(mean[..., 0])).clip(low=0.0),
        quantiles={f"{p:g}": quantile(changes, p / 100) for p in CHANGE_QUANTILES},
    )


def _by_position(found: Sequence[PositionFigures]) -> list[Group]:
    """Groups of positions, each twice as long as the one before it: 1-15, 16-31, 32-63 ..."""
    longest = max(figures.values.shape[1] for figures in found)
    edges = [0, *(2**power for power in range(4, 32) if 2**power <= longest), longest + 1]
    groups = []
    for low, high in pairwise(edges):
        # the first prediction is that of position 1, from the token at position 0
        parts = [PositionFigures(f.block, f.values[:, max(low - 1, 0) : high - 1]) for f in found]
        if parts := [part for part in parts if part.values.size]:
            group = summarize_group(f"{max(low, 1)}–{high - 1}", parts)
            groups.append(replace(group, by_sequence=[]))
    return groups


def summarize_group(name: str, found: Sequence[PositionFigures]) -> Group:
    """The main figures of the positions `found`, one entry a sequence."""
    sums = _means(found)
    decided = figures_of_means(sums)
    return Group(
        name=name,
        sequences=len(found),
        tokens=sum(figures.values.shape[1] for figures in found),
        perplexity_float=decided["perplexity_float"],
        perplexity_ratio=decided["perplexity_ratio"],
        kl_mean=decided["kl_mean"],
        top1_agreement=decided["top1_agreement"],
        by_sequence=sums.tolist(),
    )


def _means(found: Sequence[PositionFigures]) -> np.ndarray:
    """Means over each sequence, `[sequences, 6]`; all sequences are of one length."""
    return np.array([figures.values.mean(axis=1) for figures in found])


def mean_of(sums: np.ndarray, name: str) -> Estimate:
    """Mean of one of `FIGURES` over the rows of `figures_of_means`."""
    column = FIGURES.index(name)
    return bootstrap(sums, lambda mean: mean[..., column])


def _perplexity(sums: np.ndarray, column: int) -> Estimate:
    return bootstrap(sums, lambda mean: mean[..., column]).map(np.exp)


def _ratio(sums: np.ndarray) -> Estimate:
    return bootstrap(sums, lambda mean: mean[..., 1] - mean[..., 0]).map(np.exp)

"""What int8 costs on texts of several kinds, each judged by itself: a method may hold on one kind only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from telechat_kit.inference.model_pair import Pair, unseen_blocks
from telechat_kit.precision.divergence import Group, summarize_group
from telechat_kit.precision.positions import compare_positions
from telechat_kit.texts import Text, evaluation_texts
from telechat_kit.token_samples import Block

#: Fewer sequences of a kind give no interval, so no figure either
FEWEST = 2


@dataclass(frozen=True)
class KindLoss:
    """What int8 costs on one kind of text, and on which of its tokens that was measured.

    Attributes:
        kind: zh, en, code, chat or docs of the kit's texts; of other texts their name.
        blocks: the ranges of the text's joined tokens that both models read.
    """

    kind: str
    source: str
    sha256: str
    blocks: list[tuple[int, int]]
    figures: Group


def measure_kinds(pair: Pair, source: str, length: int, count: int, seed: int) -> list[KindLoss]:
    """The main figures on `count` sequences of `length` tokens of each kind, or as many as the kind has.

    Args:
        source: as `evaluation_texts` takes it. What calibration has seen of a text is left out.

    Raises:
        DataError: a kind has fewer than two sequences.
    """
    texts = evaluation_texts(source)
    blocks = kind_blocks(pair, texts, length, count, seed)
    found = compare_positions(pair, [block for part in blocks.values() for block in part])
    losses, start = list[KindLoss](), 0
    for kind, part in blocks.items():
        ranges = [(block.start, block.stop) for block in part]
        figures = summarize_group(kind, found[start : start + len(part)])
        losses.append(KindLoss(kind, texts[kind].source, texts[kind].sha256, ranges, figures))
        start += len(part)
    return losses


def kind_blocks(
    pair: Pair, texts: Mapping[str, Text], length: int, count: int, seed: int
) -> dict[str, list[Block]]:
    """The sequences of each kind."""
    return {
        kind: unseen_blocks(pair, text, length, count, seed, fewest=FEWEST) for kind, text in texts.items()
    }


def like_calibration(texts: Mapping[str, str], recipe: Mapping[str, Any]) -> list[str]:
    """Those of `texts` (kind or name -> SHA-256) that calibration read itself, or of which it read another of that kind.

    Args:
        recipe: how the weights were quantized, by the fields of `AppliedRecipe`.
    """
    shares = recipe.get("calibration_kinds", [])
    read = {recipe.get("calibration_sha256"), *(share["sha256"] for share in shares)}
    kinds = {share["kind"] for share in shares}
    return [name for name, sha256 in texts.items() if sha256 in read or name in kinds]

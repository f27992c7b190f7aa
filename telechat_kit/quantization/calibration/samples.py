"""The samples that a calibration runs on: blocks of a text, or lines of a `.jsonl` file, raw or as chat prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from telechat_kit.errors import ParameterError
from telechat_kit.provenance import combined_hash
from telechat_kit.texts import Text, load_text, texts_by_kind
from telechat_kit.token_samples import line_ranges, line_samples, token_blocks

#: "blocks" of equal length cut from the joined text; "lines" as they are; "chat": lines as questions to the model
CALIBRATION_FORMATS = ("blocks", "lines", "chat")


@dataclass(frozen=True)
class KindShare:
    """What one kind of text gives to a calibration.

    `blocks` are the ranges of the kind's joined tokens that were seen, for an evaluation to leave out. `bytes_per_token`
    is of their text: 1 where the tokenizer knows no more of a language than its bytes.
    """

    kind: str
    source: str
    sha256: str
    blocks: list[tuple[int, int]]
    tokens: int
    bytes_per_token: float


@dataclass(frozen=True)
class CalibrationSet:
    """Calibration samples and where they are from.

    Attributes:
        ids: token ids of each sample; their numbers may differ.
        ranges: what the samples cover of the ids of the joined text, for an evaluation to leave out.
        lines: number in the file of the line that each sample is; empty for blocks.
        cut: (line number, its tokens) of the lines that were cut to the number of tokens asked for.
        kinds: shares of the kinds where the source names several texts; `ranges` is empty then.
    """

    text: Text
    format: str
    ids: list[tuple[int, ...]]
    ranges: list[tuple[int, int]]
    lines: list[int]
    cut: list[tuple[int, int]]
    kinds: list[KindShare] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        """The ids of each sample as `[1, T]`."""
        return [torch.tensor([ids]) for ids in self.ids]

    def recipe(self) -> dict[str, Any]:
        """The fields of a `AppliedRecipe` that speak of calibration."""
        return {
            "calibration_source": self.text.source,
            "calibration_sha256": self.text.sha256,
            "calibration_format": self.format,
            "calibration_blocks": self.ranges,
            "calibration_lines": self.lines,
            "calibration_cut": self.cut,
            "calibration_sample_tokens": [len(ids) for ids in self.ids],
            "calibration_kinds": [asdict(share) for share in self.kinds],
            "calibration_samples_sha256": combined_hash(" ".join(map(str, ids)) for ids in self.ids),
        }


def calibration_set(
    tokenizer: Any,
    source: str,
    *,
    format: str,
    lines: str,
    samples: int,
    tokens: int,
    seed: int,
    context: int,
) -> CalibrationSet:
    """The samples that a profile asks for, of at most `tokens` tokens each, in a model trained on `context`.

    Args:
        source: as `texts_by_kind` takes it. Of several kinds each gives as many blocks, the first ones one more
            where `samples` is no multiple of their number.
        format: one of `CALIBRATION_FORMATS`.
        lines: which lines, for "lines" and "chat": "seed", "all" or numbers, as `line_samples` takes them.

    Raises:
        DataError, ParameterError: each names the file and line, or the parameter, and the remedy.
    """
    _check(format, lines, tokens, context)
    text = load_text(source)
    kinds = texts_by_kind(source)
    if format == "blocks" and len(kinds) > 1:
        return _mixed_set(tokenizer, text, kinds, samples, tokens, seed)
    if format == "blocks":
        blocks = token_blocks(tokenizer, text, tokens, samples, seed)
        return CalibrationSet(
            text, format, [b.ids for b in blocks], [(b.start, b.stop) for b in blocks], [], []
        )
    found = line_samples(
        tokenizer, text, lines, chat=format == "chat", tokens=tokens, count=samples, seed=seed
    )
    numbers = [line.number for line in found]
    cut = [(line.number, line.length) for line in found if line.length > len(line.ids)]
    return CalibrationSet(
        text, format, [line.ids for line in found], line_ranges(tokenizer, text, numbers), numbers, cut
    )


def _mixed_set(
    tokenizer: Any, text: Text, kinds: Mapping[str, Text], samples: int, tokens: int, seed: int
) -> CalibrationSet:
    """Blocks of every kind alike, taken in turns: whoever looks at the first ones only sees all kinds."""
    if samples < len(kinds):
        raise ParameterError(
            "calibration_samples {samples}: {count} kinds of text need a sample each ({kinds}).",
            samples=samples,
            count=len(kinds),
            kinds=", ".join(kinds),
        )
    drawn, shares = [], []
    for index, (kind, part) in enumerate(kinds.items()):
        count = samples // len(kinds) + (index < samples % len(kinds))
        blocks = token_blocks(tokenizer, part, tokens, count, seed)
        drawn.append([block.ids for block in blocks])
        ranges = [(block.start, block.stop) for block in blocks]
        seen = sum(len(tokenizer.decode(block.ids).encode()) for block in blocks)
        shares.append(
            KindShare(kind, part.source, part.sha256, ranges, count * tokens, seen / (count * tokens))
        )
    turns = [ids for turn in zip_longest(*drawn) for ids in turn if ids is not None]
    return CalibrationSet(text, "blocks", turns, [], [], [], shares)


def held_back_samples(
    tokenizer: Any, chosen: CalibrationSet, count: int, tokens: int, seed: int
) -> list[Tensor]:
    """Up to `count` samples `[1, tokens]` of what a calibration on blocks left of its texts, of every kind as many.

    None where it took lines, or left nothing.
    """
    if chosen.format != "blocks":
        return []
    texts = texts_by_kind(chosen.text.source)
    seen = {share.kind: share.blocks for share in chosen.kinds}
    blocks = [
        block
        for kind, text in texts.items()
        for block in token_blocks(
            tokenizer,
            text,
            tokens,
            max(1, count // len(texts)),
            seed,
            seen.get(kind, chosen.ranges),
            fewest=0,
        )
    ]
    return [torch.tensor([block.ids]) for block in blocks]


def random_samples(samples: Sequence[Tensor], vocabulary: int, seed: int) -> list[Tensor]:
    """As many ids, in samples of the same shapes `[1, T]`, drawn evenly from a `vocabulary`.

    They reach what a text of some thousand tokens leaves out: channels that answer to few tokens only.
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, sample.shape, generator=generator) for sample in samples]


def _check(format: str, lines: str, tokens: int, context: int) -> None:
    known: Sequence[str] = CALIBRATION_FORMATS
    if format not in known:
        raise ParameterError(
            'calibration_format "{format}" is unknown. Use one of {known}.',
            format=format,
            known=", ".join(known),
        )
    if format == "blocks" and lines != "seed":
        raise ParameterError(
            'calibration_lines "{lines}" has no meaning for blocks, which are cut from the joined text. Use '
            "calibration_format: lines or chat with it.",
            lines=lines,
        )
    if not 1 <= tokens <= context:
        raise ParameterError(
            "calibration_tokens is {tokens}: give at least 1 and at most {context}, the length that the "
            "model was trained on.",
            tokens=tokens,
            context=context,
        )

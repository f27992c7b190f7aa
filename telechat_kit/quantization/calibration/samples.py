"""The samples that a calibration runs on: blocks of a text, or lines of a `.jsonl` file, raw or as chat prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from telechat_kit.errors import ParameterError
from telechat_kit.provenance import combined_hash
from telechat_kit.texts import Text, line_ranges, line_samples, load_text, token_blocks

#: "blocks" of equal length cut from the joined text; "lines" as they are; "chat": lines as questions to the model
CALIBRATION_FORMATS = ("blocks", "lines", "chat")


@dataclass(frozen=True)
class CalibrationSet:
    """Calibration samples and where they are from.

    Attributes:
        ids: token ids of each sample; their numbers may differ.
        ranges: what the samples cover of the ids of the joined text, for an evaluation to leave out.
        lines: number in the file of the line that each sample is; empty for blocks.
        cut: (line number, its tokens) of the lines that were cut to the number of tokens asked for.
    """

    text: Text
    format: str
    ids: list[tuple[int, ...]]
    ranges: list[tuple[int, int]]
    lines: list[int]
    cut: list[tuple[int, int]]

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
        source: as `load_text` takes it.
        format: one of `CALIBRATION_FORMATS`.
        lines: which lines, for "lines" and "chat": "seed", "all" or numbers, as `line_samples` takes them.

    Raises:
        DataError, ParameterError: each names the file and line, or the parameter, and the remedy.
    """
    _check(format, lines, tokens, context)
    text = load_text(source)
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


def random_samples(samples: Sequence[Tensor], vocabulary: int, seed: int) -> list[Tensor]:
    """As many ids, in samples of the same shapes `[1, T]`, drawn evenly from a `vocabulary`.

    They reach what a text of some thousand tokens leaves out: channels that answer to few tokens only.
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, sample.shape, generator=generator) for sample in samples]


def _check(format: str, lines: str, tokens: int, context: int) -> None:
    known: Sequence[str] = CALIBRATION_FORMATS
    if format not in known:
        raise ParameterError(f'calibration_format "{format}" is unknown. Use one of {", ".join(known)}.')
    if format == "blocks" and lines != "seed":
        raise ParameterError(
            f'calibration_lines "{lines}" has no meaning for blocks, which are cut from the joined text. '
            "Use calibration_format: lines or chat with it."
        )
    if not 1 <= tokens <= context:
        raise ParameterError(
            f"calibration_tokens is {tokens}: give at least 1 and at most {context}, the length that the model was "
            "trained on."
        )

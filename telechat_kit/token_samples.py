"""What a model is given of a text: its tokens, blocks of them drawn by a seed, lines of a file, questions as chat prompts."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from telechat_kit.errors import CheckpointError, DataError, ParameterError
from telechat_kit.messages import Message
from telechat_kit.strict_json import encodes
from telechat_kit.texts import Text


@dataclass(frozen=True)
class Block:
    """Tokens `start .. stop` of a text: one sample of a calibration or an evaluation."""

    start: int
    stop: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """One line of a `.jsonl` text as a sample: its number in the file, its ids, how many it has before a cut."""

    number: int
    ids: tuple[int, ...]
    length: int


def token_blocks(
    tokenizer: Any,
    text: Text,
    length: int,
    count: int,
    seed: int,
    exclude: Sequence[tuple[int, int]] = (),
    fewest: int | None = None,
) -> list[Block]:
    """`count` blocks of `length` tokens of `text`, drawn by `seed` among those that touch no range of `exclude`.

    The lines are joined by newlines and cut every `length` tokens. Blocks come in the order of the draw. Of a text
    that has less all are taken, down to `fewest` (none: `count`).

    Raises:
        DataError: the text is too short for so many blocks.
        ParameterError: no blocks are asked for, or blocks of no tokens.
    """
    if length < 1 or count < 1:
        raise ParameterError(
            "{count} blocks of {length} tokens: both numbers must be at least 1.", count=count, length=length
        )
    ids = joined_ids(tokenizer, text)
    starts = [
        start
        for start in range(0, len(ids) - length + 1, length)
        if all(start + length <= low or start >= high for low, high in exclude)
    ]
    needed = count if fewest is None else min(count, fewest)
    if len(starts) < needed:
        raise DataError(
            "{source} gives {count} free blocks of {length} tokens ({tokens} tokens in all), {needed} are "
            "asked for. Give a longer text, or ask for fewer or shorter blocks.",
            source=text.source,
            count=len(starts),
            length=length,
            tokens=len(ids),
            needed=needed,
        )
    return [
        Block(start, start + length, tuple(ids[start : start + length]))
        for start in random.Random(seed).sample(starts, min(count, len(starts)))
    ]


def joined_ids(tokenizer: Any, text: Text) -> list[int]:
    """Token ids of the whole text: lines joined by newlines, or one conversation after the other.

    To a tokenizer without a chat format questions and answers are lines like others.
    """
    pairs = list(zip(text.lines, text.answers, strict=True)) if text.answers else []
    if not pairs:
        return text_ids(tokenizer, "\n".join(text.lines))
    if not getattr(tokenizer, "chat_template", None):
        return text_ids(tokenizer, "\n".join(line for pair in pairs for line in pair))
    return [number for question, answer in pairs for number in conversation_ids(tokenizer, question, answer)]


def conversation_ids(tokenizer: Any, question: str, answer: str) -> list[int]:
    """Ids of a question and its answer in the chat format of the model."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text alone, without what a prompt begins or ends with."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def line_samples(
    tokenizer: Any, text: Text, lines: str, *, chat: bool, tokens: int, count: int, seed: int
) -> list[Line]:
    """Some lines of a `.jsonl` text, each a sample of its own length.

    Args:
        lines: "seed": `count` lines drawn by `seed`, in the order of the draw; "all"; or their numbers in the
            file, such as "3,17,20-25".
        chat: as a question in the chat format of the model, up to where the answer begins; else as they are.
        tokens: a longer line is cut to its first `tokens` ids.

    Raises:
        DataError: there are fewer lines, or one of them has no tokens; the message names file and line.
        ParameterError: the text has no lines, or `lines` cannot be understood.
    """
    samples = []
    for index in _chosen_lines(text, lines, count, seed):
        number, line = text.numbers[index], text.lines[index]
        where = Message("{path}, line {number}", path=text.source, number=number)
        ids = chat_ids(tokenizer, line, where) if chat else text_ids(tokenizer, line)
        if not ids:
            raise DataError("{where}: the text has no tokens. Correct or remove the line.", where=where)
        samples.append(Line(number, tuple(ids[:tokens]), len(ids)))
    return samples


def _chosen_lines(text: Text, lines: str, count: int, seed: int) -> list[int]:
    """Indexes of the chosen lines."""
    if not text.numbers:
        raise ParameterError(
            '{source} is one text without lines of its own. Give a .jsonl file of {{"input": ...}} lines, or '
            "use calibration_format: blocks.",
            source=text.source,
        )
    if lines == "all":
        return list(range(len(text.lines)))
    if lines != "seed":
        return [_line_index(text, number) for number in dict.fromkeys(_line_numbers(text, lines))]
    if not 1 <= count <= len(text.lines):
        raise DataError(
            "{source} has {count} lines, {asked} are asked for. Ask for at least one and at most as many as "
            "there are, or use calibration_lines: all.",
            source=text.source,
            count=len(text.lines),
            asked=count,
        )
    return random.Random(seed).sample(range(len(text.lines)), count)


def _line_numbers(text: Text, lines: str) -> Iterator[int]:
    for part in lines.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ParameterError(
                'calibration_lines "{lines}" is unknown at "{part}". Use seed, all, or line numbers such as '
                "3,17,20-25.",
                lines=lines,
                part=part,
            )
        if last > text.numbers[-1]:
            raise DataError(
                "{source} ends with line {numbers}, calibration_lines asks for line {last}.",
                source=text.source,
                numbers=text.numbers[-1],
                last=last,
            )
        yield from range(first, last + 1)


def _line_index(text: Text, number: int) -> int:
    if number not in text.numbers:
        raise DataError(
            "{source}, line {number} is empty, but calibration_lines asks for it. Leave it out.",
            source=text.source,
            number=number,
        )
    return text.numbers.index(number)


def line_ranges(tokenizer: Any, text: Text, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Where the lines with these `numbers` stand in the ids of the joined text that `token_blocks` cuts.

    Neighboring lines are one range. A range is a token wider on each side: one may reach over the end of a line.
    """
    chosen = [number in numbers for number in text.numbers]
    ranges = []
    for first, is_chosen in enumerate(chosen):
        if is_chosen and not (first and chosen[first - 1]):
            last = next((i for i in range(first, len(chosen)) if not chosen[i]), len(chosen))
            before = "".join(f"{line}\n" for line in text.lines[:first])
            start = len(text_ids(tokenizer, before)) if before else 0
            stop = len(text_ids(tokenizer, before + "\n".join(text.lines[first:last])))
            ranges.append((max(start - 1, 0), stop + 1))
    return ranges


def chat_ids(tokenizer: Any, question: str, where: str = "the question") -> list[int]:
    """Prompt ids of one question in the chat format of the model, up to where the answer begins.

    A question that stands in that format already loses its marks first, so that it gets them once.

    Raises:
        CheckpointError: the tokenizer has no chat template.
        DataError: the question is no text, or holds several turns; `where` names it.
    """
    if not isinstance(question, str) or not encodes(question):
        raise DataError(
            "{where}: {question!a:.60} is no text, or holds half a character. Correct it.",
            where=where,
            question=question,
        )
    if not tokenizer.chat_template:
        raise CheckpointError(
            "the tokenizer has no chat template, which questions and chat calibration need. Give the tokenizer of the "
            "chat model, or put its chat_template.jinja into the checkpoint folder."
        )
    turns = [{"role": "user", "content": _bare(tokenizer, question, where)}]
    return list(
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    )


#: Stands for a question while a template is looked at; no text has it
_HOLE = "\ue0f0"


def _bare(tokenizer: Any, question: str, where: str) -> str:
    """`question` without the marks of the chat format that it may begin and end with."""
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": _HOLE}], add_generation_prompt=True, tokenize=False
    )
    before, _, after = rendered.partition(_HOLE)
    marks = [token for token in {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} if token]
    opening = max((mark for mark in marks if mark in before), key=before.rindex, default="")
    if not opening or not question.lstrip().startswith(opening):
        return question
    before, after = before[before.rindex(opening) :].strip(), after.strip()
    content, _, answer = question.strip().removeprefix(before).partition(after or "\n")
    if not question.strip().startswith(before) or any(
        mark in content or (mark == opening and mark in answer) for mark in marks
    ):
        raise DataError(
            '{where} begins with "{opening}": it is a chat of several turns, or of another format. Give one '
            "question without marks.",
            where=where,
            opening=opening,
        )
    return content.strip()


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of equal ids from the start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))

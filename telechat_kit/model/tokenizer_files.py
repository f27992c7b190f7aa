"""The files of a tokenizer: which there are, whether each can be read, and whether its chat template comes to an end."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from telechat_kit.errors import CheckpointError
from telechat_kit.messages import Message, marked
from telechat_kit.model.bounds import more_memory, within
from telechat_kit.model.config_files import given, read_object
from telechat_kit.strict_json import no_content

#: All that decides how a text becomes ids
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
#: Seconds that a chat template may take for one short question
MOST_SECONDS = 5.0
#: Bytes that it may take for it
_MOST_BYTES = 1 << 30
#: Code of a template, the texts in it, and a power
_CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_POWER = re.compile(r"[\w)\]'|]\s*\*\*")
_PROBE = "一 a <_user>1"
_QUESTION = "Why 7?"
#: Signs that a normalizer may put for one, and a template around a question
_MOST_GROWTH, _MOST_SIGNS = 1000, 100_000


def require_readable(folder: Path) -> None:
    """Refuse tokenizer files that are empty, pointers of git-lfs, or no JSON where they should be.

    Raises:
        CheckpointError: the file and what is wrong with it.
    """
    for path in (folder / name for name in FILES if given(folder / name)):
        if path.suffix == ".json":
            values = read_object(path)
            if path.name == FILES[0]:
                _require_steady(path, values)
        elif problem := no_content(path.read_bytes()):
            raise CheckpointError(
                "{path} {rstrip}. Copy the file again from its publisher.",
                path=path,
                rstrip=problem.rstrip("."),
            )


def _require_steady(path: Path, values: dict[str, Any]) -> None:
    """Refuse a tokenizer.json that gives the same text other ids each time, or makes a short text endless."""
    model = values.get("model")
    dropout = model.get("dropout") if isinstance(model, dict) else None
    if dropout:
        raise CheckpointError(
            "{path}: model.dropout is {dropout}: the same text would get other ids each time. Set it to null.",
            path=path,
            dropout=dropout,
        )
    growth = _growth(values.get("normalizer"))
    if growth > _MOST_GROWTH:
        raise CheckpointError(
            "{path}: its normalizer makes texts up to {growth:,} times as long. Get the file from its publisher.",
            path=path,
            growth=growth,
        )


def _growth(normalizer: Any) -> int:
    """By how much a normalizer can make a text longer: what it puts for a sign, one step after the other."""
    if not isinstance(normalizer, dict):
        return 1
    steps = normalizer.get("normalizers")
    own = len(str(normalizer.get("content") or ""))
    return max(1, own) * math.prod(map(_growth, steps if isinstance(steps, list) else []))


def guarded(folder: Path, load: Callable[[], Any]) -> Any:
    """The tokenizer that `load` gives, once it has encoded a text and rendered a question.

    Raises:
        CheckpointError: a file is damaged, or the chat template fails, does not end, or leaves the question out.
    """
    require_readable(folder)
    present = ", ".join(name for name in FILES if (folder / name).is_file())
    try:
        tokenizer = load()
        tokenizer.decode(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    except BaseException as error:  # tokenizers written in Rust panic with an error that is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | CheckpointError):
            raise
        raise CheckpointError(
            "{folder}: its tokenizer ({present}) cannot be read: {short}. Copy these files again from their "
            "publisher.",
            folder=folder,
            present=present,
            short=_short(error),
        ) from error
    if tokenizer.chat_template:
        _require_end(folder, tokenizer)
    return tokenizer


def _require_end(folder: Path, tokenizer: Any) -> None:
    chat = [{"role": "user", "content": _QUESTION}]

    def rendered() -> set[str]:
        return {
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for _ in range(3)
        }

    try:
        _require_no_powers(tokenizer.get_chat_template())
        with more_memory(_MOST_BYTES):
            texts = within(MOST_SECONDS, rendered)
        if not all(_QUESTION in text for text in texts):
            raise ValueError(marked("it leaves the question out"))
        if (longest := max(map(len, texts))) > _MOST_SIGNS:
            raise ValueError(Message("it makes {count} signs of {own}", count=longest, own=len(_QUESTION)))
        if len(texts) > 1:
            raise ValueError(marked("it gives another text each time"))
    except TimeoutError as error:
        raise CheckpointError(
            "{folder}: the chat template of its tokenizer does not end within {most_seconds:g} seconds for "
            "one question. Get the tokenizer from its publisher.",
            folder=folder,
            most_seconds=MOST_SECONDS,
        ) from error
    except Exception as error:  # templates raise what they like
        raise CheckpointError(
            "{folder}: the chat template of its tokenizer fails for one question: {short}. Get the tokenizer "
            "from its publisher.",
            folder=folder,
            short=_short(error),
        ) from error


def _require_no_powers(template: str) -> None:
    """Refuse `10 ** 10 ** 9`, which nothing can interrupt; no chat format reckons with powers."""
    code = " ".join(_CODE.findall(template))
    if _POWER.search(_STRING.sub("''", code)):
        raise ValueError(marked("it computes powers"))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

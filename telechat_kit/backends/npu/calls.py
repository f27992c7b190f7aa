"""Calls of torch_npu's operators, and which way each verb of the backend went: for the records."""

from collections import defaultdict
from typing import Any

from telechat_kit.backends.npu.runtime import torch_npu

PLAIN = "plain torch"

used: defaultdict[str, set[str]] = defaultdict(set)


def operators() -> dict[str, str]:
    """Which operator did each of the backend's verbs in this process so far; several if shapes decided."""
    return {verb: ", ".join(sorted(ways)) for verb, ways in sorted(used.items())}


def call(verb: str, operator: str, *args: Any, **options: Any) -> Any:
    used[verb].add(operator)
    return getattr(torch_npu(), operator)(*args, **options)


def slower(verb: str) -> None:
    used[verb].add(PLAIN)

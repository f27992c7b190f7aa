"""Ids that W8A8 generated while it was timed, against transformers' own loop on the same model."""

from collections.abc import Sequence
from dataclasses import dataclass

from telechat_kit.inference.generation import generate_by_transformers
from telechat_kit.messages import marked
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.performance.timed_samples import Answer
from telechat_kit.progress import track
from telechat_kit.token_samples import common_prefix


@dataclass(frozen=True)
class IdCheck:
    """Ids that W8A8 generated behind a prompt while it was timed, beside those of transformers' `generate()`."""

    input_tokens: int
    compared: int
    #: leading ids that are equal
    equal: int
    #: whether all timed runs of the prompt gave the same ids, as far as each went
    runs_agree: bool


def check_ids(
    model: TelechatForCausalLM, prompt: list[int], answers: Sequence[Answer], tokens: int
) -> list[IdCheck]:
    """The longest answer behind each prompt length against `model.generate()`, up to `tokens` ids; none for 0."""
    if tokens < 1:
        return []
    runs: dict[int, list[list[int]]] = {}
    for inputs, ids in answers:
        runs.setdefault(inputs, []).append(ids)
    checks = []
    for inputs, found in track(list(runs.items()), marked("ids beside those of generate()")):
        longest = max(found, key=len)
        judge = generate_by_transformers(model, prompt[:inputs], min(tokens, len(longest))).token_ids
        agree = all(ids == longest[: len(ids)] for ids in found)
        checks.append(IdCheck(inputs, len(judge), common_prefix(longest, judge), agree))
    return checks

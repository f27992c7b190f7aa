"""Device against device: whether two runs of the same text are aligned, from the bundles that they left."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.messages import Message, marked
from telechat_kit.precision.bundle import BUNDLE, Bundle, read_bundle, save_bundle
from telechat_kit.provenance import combined_hash
from telechat_kit.statistics import Estimate, mean_over_sequences
from telechat_kit.token_samples import common_prefix

__all__ = [
    "BUNDLE",
    "Alignment",
    "Difference",
    "DifferingAnswer",
    "Tolerances",
    "check_alignment",
    "compare_bundles",
    "save_bundle",
]


@dataclass(frozen=True)
class Tolerances:
    """What two runs may differ by and still be called aligned."""

    kl_mean: float = 1e-3  # nats per token
    top1_agreement: float = 0.98


@dataclass(frozen=True)
class Difference:
    """A condition in which two runs differ."""

    condition: str
    first: str
    second: str


@dataclass(frozen=True)
class DifferingAnswer:
    """The first answer that is not the same in both runs."""

    number: int  # of the question, from 1
    question: str
    common_tokens: int
    first: str
    second: str


@dataclass(frozen=True)
class Alignment:
    """Whether two runs agree: "aligned", "not aligned", or "undecided" where the text is too short to tell."""

    verdict: str
    reasons: list[str]
    tolerances: Tolerances
    sequences: int
    positions: int
    kl_mean: Estimate  # KL(first || second), nats per token
    kl_max: float
    top1_agreement: Estimate
    answers: int
    equal_answers: int
    first_differing_answer: DifferingAnswer | None
    differences: list[Difference]

    def __str__(self) -> str:
        divergence, agreement = self.reasons
        return Message(
            "{verdict}: {divergence}; {agreement}",
            verdict=self.verdict,
            divergence=divergence,
            agreement=agreement,
        )


def compare_bundles(first: str | Path, second: str | Path, tolerances: Tolerances | None = None) -> Alignment:
    """Whether the runs of two bundles (files, or run folders that hold one) are aligned.

    The divergence is that of the tokens in both lists and of all others as one: at most the true one, and equal to
    it as far as the lists hold all that is likely.

    Raises:
        DataError: a bundle is missing or damaged, or the two are of different texts or tokenizers.
        ParameterError: tolerances that nothing can meet or miss.
    """
    tolerances = tolerances or Tolerances()
    if not 0 <= tolerances.top1_agreement <= 1 or tolerances.kl_mean < 0:
        raise ParameterError(
            "{tolerances}: the agreement lies between 0 and 1, the divergence is not negative.",
            tolerances=tolerances,
        )
    a, b = read_bundle(first), read_bundle(second)
    _check_same_text(a, b)
    kl = _divergence(a.tensors, b.tensors)
    same = (a.tensors["ids"][..., 0] == b.tensors["ids"][..., 0]).astype(float)
    kl_mean = mean_over_sequences(kl.mean(axis=1, keepdims=True)).clip(low=0.0)
    top1 = mean_over_sequences(same.mean(axis=1, keepdims=True)).clip(0.0, 1.0)
    verdict, reasons = _verdict(kl_mean, top1, tolerances)
    differences = _differences(a.meta, b.meta)
    comparable = a.meta["questions"] == b.meta["questions"]
    answers = list(zip(a.answers(), b.answers(), strict=True)) if comparable else []
    return Alignment(
        verdict=verdict,
        reasons=reasons,
        tolerances=tolerances,
        sequences=len(kl),
        positions=kl.size,
        kl_mean=kl_mean,
        kl_max=float(kl.max()),
        top1_agreement=top1,
        answers=len(answers),
        equal_answers=sum(one == other for one, other in answers),
        first_differing_answer=_first_differing(a.meta, b.meta, answers),
        differences=differences,
    )


def check_alignment(
    run_folder: str | Path,
    compare_with: str | Path,
    kl_tolerance: float = Tolerances.kl_mean,
    agreement_tolerance: float = Tolerances.top1_agreement,
) -> Alignment | None:
    """Whether a run is aligned with one elsewhere, by `compare_bundles`; None where there is none to compare with.

    Args:
        run_folder: of this run, which has written its bundle.
        compare_with: bundle of the other run, file or run folder; empty: none.
        kl_tolerance: largest mean KL between aligned runs, nats per token.
        agreement_tolerance: least share of positions with the same most likely token in aligned runs.

    Raises:
        DataError: a bundle is missing or damaged, or the two are of different texts or tokenizers.
        ParameterError: tolerances that nothing can meet or miss.

    Example:
        >>> alignment = check_alignment("results/tiny", "results/tiny")
        >>> alignment.kl_mean.value
        0.0
    """
    if not compare_with:
        return None
    return compare_bundles(run_folder, compare_with, Tolerances(kl_tolerance, agreement_tolerance))


def _check_same_text(a: Bundle, b: Bundle) -> None:
    if a.meta["tokenizer"] != b.meta["tokenizer"]:
        raise DataError(
            "{path} and {other} were made with different tokenizers: their positions cannot be compared. Use "
            "the tokenizer files of one checkpoint for both runs.",
            path=a.path,
            other=b.path,
        )
    if not np.array_equal(a.tensors["tokens"], b.tensors["tokens"]):
        raise DataError(
            '{path} (text "{text}") and {other} (text "{other_text}") do not hold the same text: they cannot be '
            "compared. Use the same text_path, text_sequences, text_tokens, seed and calibration.",
            path=a.path,
            text=a.meta["text"],
            other=b.path,
            other_text=b.meta["text"],
        )


def _divergence(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> np.ndarray:
    """KL(a || b) `[sequences, T - 1]` of the distributions over tokens that both list, all others taken together."""
    rows = []
    for index in range(len(a["ids"])):
        match = a["ids"][index][:, :, None] == b["ids"][index][:, None, :]
        p, q = (x["log_probabilities"][index].astype(np.float64) for x in (a, b))
        rest_p, rest_q = (x["rest"][index].astype(np.float64) for x in (a, b))
        in_both, place = match.any(-1), match.argmax(-1)
        found = np.take_along_axis(q, place, -1)
        shared = np.where(in_both, np.exp(p) * (p - found), 0.0).sum(-1)
        left_p = _log_sum(rest_p, p, ~in_both)
        left_q = _log_sum(rest_q, q, ~match.any(-2))
        rows.append(np.maximum(shared + np.exp(left_p) * (left_p - left_q), 0.0))
    return np.array(rows)


def _log_sum(rest: np.ndarray, log_probabilities: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Log of the rest and of the `chosen` listed probabilities together, `[T - 1]`."""
    parts = np.concatenate([rest[:, None], np.where(chosen, log_probabilities, -np.inf)], axis=1)
    return np.logaddexp.reduce(parts, axis=1)


def _verdict(kl: Estimate, top1: Estimate, tolerances: Tolerances) -> tuple[str, list[str]]:
    reasons: list[str] = [
        Message(
            "KL {value:.3g} [{low:.3g}, {high:.3g}] nats per token, {kl_mean:g} allowed",
            value=kl.value,
            low=kl.low,
            high=kl.high,
            kl_mean=tolerances.kl_mean,
        ),
        Message(
            "same most likely token at {value:.2%} [{low:.2%}, {high:.2%}] of the positions, "
            "{top1_agreement:.2%} asked for",
            value=top1.value,
            low=top1.low,
            high=top1.high,
            top1_agreement=tolerances.top1_agreement,
        ),
    ]
    if kl.value > tolerances.kl_mean or top1.value < tolerances.top1_agreement:
        return marked("not aligned"), reasons
    sure = kl.coverage and kl.high <= tolerances.kl_mean and top1.low >= tolerances.top1_agreement
    return (marked("aligned") if sure else marked("undecided")), reasons


def _differences(a: dict[str, Any], b: dict[str, Any]) -> list[Difference]:
    """What a reader must know before the verdict, by name."""
    one, other = _named(a), _named(b)
    return [
        Difference(name, one.get(name, "none"), other.get(name, "none"))
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def _named(meta: dict[str, Any]) -> dict[str, str]:
    found = meta["conditions"]
    named = {key: str(meta[key]) for key in ("precision", "dtype", "weights", "text")}
    named |= {key: str(found[key]) for key in ("device", "device_name", "threads", "system", "code")}
    named |= {Message("version of {name}", name=name): version for name, version in found["versions"].items()}
    return named | {
        "questions": Message(
            "{count} lines, {combined_hash}",
            count=len(meta["questions"]),
            combined_hash=combined_hash(meta["questions"])[:12],
        )
    }


def _first_differing(
    a: dict[str, Any], b: dict[str, Any], answers: Sequence[tuple[list[int], list[int]]]
) -> DifferingAnswer | None:
    for number, (one, other) in enumerate(answers):
        if one != other:
            return DifferingAnswer(
                number + 1,
                a["questions"][number],
                common_prefix(one, other),
                a["answer_texts"][number],
                b["answer_texts"][number],
            )
    return None

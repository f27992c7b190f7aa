"""The seed of trust: models that sleep a known time for each call, timed by the harness of `04_performance`.

Fails where a figure is off by more than 2 %. A sleep ends late on a busy machine, so run it on an idle one; the test
of the same is exact, on a clock of its own.

    python benchmarks/harness.py
"""

import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from telechat_kit.model import TelechatConfig
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.performance.cases import Case
from telechat_kit.performance.roofline import ModelSize, Peaks
from telechat_kit.performance.timed_runs import Timing, time_cases
from telechat_kit.performance.timed_samples import CaseResult, Journal, summarize

PER_CALL, PER_TOKEN = 0.040, 0.001
FACTORS = {"float": 3.0, "w8a8": 1.0}
CASES = [Case(10, 1), Case(10, 10), Case(200, 10)]
REPEATS, TOLERANCE = 6, 0.02


class Sleeper(TelechatForCausalLM):
    """Sleeps 40 ms for a call and 1 ms for each of its tokens, times a factor."""

    factor = 1.0

    def forward(self, ids: torch.Tensor, **_: Any) -> Any:
        time.sleep(self.factor * (PER_CALL + PER_TOKEN * ids.shape[1]))
        return SimpleNamespace(logits=torch.zeros(1, 1, self.config.vocab_size))


def sleeper(factor: float) -> Sleeper:
    model = Sleeper(TelechatConfig(vocab_size=16, hidden_size=32, n_layer=1, n_head=2, ffn_hidden_size=48))
    model.factor = factor
    return model


def errors(case: CaseResult) -> dict[str, float]:
    """Reported over true, less 1, by figure."""
    factor = FACTORS[case.precision]
    first = factor * (PER_CALL + PER_TOKEN * case.input_tokens)
    step = factor * (PER_CALL + PER_TOKEN)
    total = first + (case.output_tokens - 1) * step
    found = {
        "first token": case.time_to_first_token.value / first - 1,
        "tokens/s": case.tokens_per_second.value * total / case.output_tokens - 1,
    }
    if case.time_per_output_token is not None:
        found["per token"] = case.time_per_output_token.value / step - 1
    return found


def main() -> None:
    models = {name: sleeper(factor) for name, factor in FACTORS.items()}
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "samples.jsonl", "known sleeps")
        samples = list(time_cases(models, CASES, Timing([7] * 200, REPEATS, journal)))
    sizes = [ModelSize(name, 0, 1, 1) for name in models]
    worst = 0.0
    for case in summarize(samples, sizes, Peaks(1.0, "none")):
        found = errors(case)
        worst = max(worst, *map(abs, found.values()))
        parts = "   ".join(f"{name} {error:+.2%}" for name, error in found.items())
        print(f"{case.precision:6} {case.input_tokens:4} / {case.output_tokens:<4} {parts}")
    print(f"largest error {worst:.2%}, allowed {TOLERANCE:.0%}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()

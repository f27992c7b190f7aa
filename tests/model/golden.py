"""Golden vectors of the later family, and the ways of running a model that they are compared with."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from telechat_kit.inference.loading import load_model
from telechat_kit.model import TelechatForCausalLM

DATA = Path(__file__).parent.parent / "data"
FAMILIES = ("model-telechat2", "model-telechat3")
FACTS = {
    f"{family}/{case['name']}": case
    for family in FAMILIES
    for case in json.loads((DATA / family / "cases.json").read_text())["cases"]
}
CASES = sorted(FACTS)
PAST_TRAINED = "model-telechat2/gqa-past-trained"


@functools.cache
def golden_model(case: str) -> TelechatForCausalLM:
    model = load_model(DATA / case, device="cpu")
    model.generation_config.eos_token_id = None  # the vectors go on after an eos
    return model


@functools.cache
def vectors(case: str) -> dict[str, Tensor]:
    return load_file(DATA / case / "vectors.safetensors")


def assert_golden(actual: Tensor, expected: Tensor) -> None:
    """To 1e-5, but for the few values that the vectors themselves do not know so well; none to more than 2e-5.

    The vectors are float32 sums: up to 2.4e-5 off a float64 run of the same network, as the kit's are (2.6e-5), and of
    one case their own full and cached logits are 1.3e-5 apart. On an EPYC 13 values of 261,120 are more than 1e-5 off,
    1.35e-5 at most, where values go up to 10; with sums in float64 they are 133, not fewer. A Xeon with AMX sums
    otherwise: 1.41e-5. The root mean square, which single sums do not move, has the narrower bound.
    """
    difference = (actual - expected).abs()
    assert difference.max() < 2e-5
    assert (difference > 1e-5).float().mean() < 2e-3
    assert difference.pow(2).mean().sqrt() < 4e-6


def step_by_step(model: TelechatForCausalLM, ids: Tensor, prefill: int, cache: Any = None) -> Tensor:
    """Logits of all positions of `ids [1, T]`: a prefill, then one token at a time on its cache."""
    out = model(ids[:, :prefill], past_key_values=cache, use_cache=True)
    logits, past = [out.logits], out.past_key_values
    for i in range(prefill, ids.shape[1]):
        logits.append(model(ids[:, i : i + 1], past_key_values=past).logits)
    return torch.cat(logits, dim=1)


def greedy(case: str, part: str, **options: Any) -> tuple[list[int], Tensor]:
    """Ids and raw logits `[1, new, vocab]` of transformers' `generate` from the prompt `part`."""
    prompt, model = vectors(case)[f"{part}_prompt_ids"], golden_model(case)
    out = model.generate(
        prompt, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(prompt),
        repetition_penalty=FACTS[case]["repetition_penalty"], output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences[0, prompt.shape[1] :].tolist(), torch.stack(out.logits, dim=1)

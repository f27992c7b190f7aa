"""What one chip and two chips that share a model give, on the stand-ins: printed as one JSON object.

python tests/stand_ins/two_chips.py FOLDER...        with the environment of `call_list.environment`

By the operators of the chip, and with exact int8 products in their place: a part that an operator has rounded adds up to
another sum than the whole. Of each folder the ids that one chip and two generate for each prompt, and how far the logits
of a text are apart, as a share of the largest.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from telechat_kit.backends import npu
from telechat_kit.inference.generation import generate
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import NetworkRun

PROMPTS = ([11, 5, 200, 17, 42, 8, 99], [7, 30, 31, 32])
#: Follow the first prompt, one by one
TEXT = [7 * i % 250 for i in range(16)]


def given(folder: str, device: str) -> tuple[list[list[int]], Tensor]:
    """Generated ids of each prompt, and the logits of a text `[tokens, vocab]`."""
    model = load_model(folder, device)
    with torch.inference_mode():
        run = NetworkRun(model, len(PROMPTS[0]) + len(TEXT))
        logits = [run.logits(ids).float().cpu() for ids in (PROMPTS[0], *([token] for token in TEXT))]
    return [generate(model, prompt, 12).token_ids for prompt in PROMPTS], torch.cat(logits)


def compared(folder: str) -> dict[str, Any]:
    """`ids` of one chip and of two, and `apart`: the largest difference of their logits."""
    (one, logits), (two, others) = (given(folder, device) for device in ("npu:0", "npu:0,npu:1"))
    return {"ids": [one, two], "apart": float((logits - others).abs().max() / logits.abs().max())}


if __name__ == "__main__":
    folders = sys.argv[1:]
    found = [compared(folder) for folder in folders]
    operators = npu.operators()
    for form in ("int8_linear", "dynamic_int8_linear"):
        npu.operations.use_slower(form, "to compare")
    exact = [compared(folder) for folder in folders]
    print(json.dumps({"found": found, "exact": exact, "operators": operators}))

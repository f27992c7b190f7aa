"""What one chip and two chips that share a model generate, on the stand-ins: printed as one JSON object.

python tests/stand_ins/two_chips.py FOLDER...        with the environment of `call_list.environment`

By the operators of the chip, and with exact int8 products in their place: a part that an operator has rounded adds up to
another sum than the whole.
"""

import json
import sys

from telechat_kit.backends import npu
from telechat_kit.inference.generation import generate
from telechat_kit.inference.loading import load_model

PROMPTS = ([11, 5, 200, 17, 42, 8, 99], [7, 30, 31, 32])


def ids(folder: str, device: str) -> list[list[int]]:
    """Generated ids of each prompt."""
    model = load_model(folder, device)
    return [generate(model, prompt, 24).token_ids for prompt in PROMPTS]


if __name__ == "__main__":
    devices, folders = ("npu:0", "npu:0,npu:1"), sys.argv[1:]
    found = {folder: [ids(folder, device) for device in devices] for folder in folders}
    operators = npu.operators()
    for form in ("int8_linear", "dynamic_int8_linear"):
        npu.operations.use_slower(form, "to compare")
    exact = {folder: [ids(folder, device) for device in devices] for folder in folders}
    print(json.dumps({"ids": found, "exact": exact, "operators": operators}))

"""What one chip and two chips that share a model generate, on the stand-ins: printed as one JSON object.

python tests/stand_ins/two_chips.py FOLDER...        with the environment of `call_list.environment`
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
    found = {folder: [ids(folder, device) for device in ("npu:0", "npu:0,npu:1")] for folder in sys.argv[1:]}
    print(json.dumps({"ids": found, "operators": npu.operators()}))

"""Ways to change a checkpoint folder that a test then reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from telechat_kit.model.hashes import WEIGHTS


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    forget_hashes(path.parent)


def forget_hashes(folder: Path) -> None:
    """As if a tool without hashes had written the weights: what is wrong with them must be told by tensor."""
    for path in (folder / "quantize.json", folder / "export.json"):
        if path.is_file():
            change_json(path, lambda values: values.pop(WEIGHTS, None))

"""The conditions of a measurement here and now: device, software, and the hashes of the checkpoints that it reads."""

import platform
from datetime import datetime, timezone
from pathlib import Path

import psutil
import torch

from telechat_kit.backends import backend_for
from telechat_kit.model.hashes import settings_hash, tokenizer_hash, weights_hash
from telechat_kit.provenance import Conditions, code_version, versions


def conditions(device: torch.device, devices: int = 1, /, **folders: Path) -> Conditions:
    """Conditions here and now on `device`, with the hashes of the weights, tokenizer and settings of each named folder.

    `devices`: how many like it share a model.
    """
    backend, hashes = backend_for(device.type), {}
    for name, folder in folders.items():
        hashes[f"{name}_weights"] = weights_hash(folder)
        hashes[f"{name}_tokenizer"] = tokenizer_hash(folder)
        hashes[f"{name}_settings"] = settings_hash(folder)
    return Conditions(
        device=device.type,
        device_name=backend.device_name() if devices == 1 else f"{devices} x {backend.device_name()}",
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.machine()}",
        versions=versions(),
        code=code_version(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        hashes=hashes,
        operators=backend.operators(),
    )

"""What is here against what is needed: versions, device, memory, disk, the checkpoint."""

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from packaging.version import Version

from telechat_kit.backends import backend_for, resolve_device
from telechat_kit.errors import CheckpointError, KitError, ParameterError
from telechat_kit.files import project_root, relative, resolve
from telechat_kit.model.checkpoint import origin, read_config, weight_files
from telechat_kit.model.demo import build_demo
from telechat_kit.model.shards import Shards
from telechat_kit.model.tiny import build_tiny
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.provenance import Conditions, conditions

SCHEMA = "telechat-kit/setup/1"
#: Checkpoints that the kit can make by itself, under the name that a profile gives
EMBEDDED_MODELS = {"smollm2-135m": build_demo, "tiny-random": build_tiny}


@dataclass(frozen=True)
class Check:
    """One row of the set-up table. `verdict`: "ok", "warning" or "missing"."""

    component: str
    found: str
    required: str
    verdict: str
    advice: str


@dataclass(frozen=True)
class Part:
    """Parameters and bytes of one part of the network."""

    part: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class SetupRecord:
    """What `01_setup` found."""

    schema: str
    checkpoint_path: str
    checks: list[Check]
    architecture: dict[str, int]
    parts: list[Part]
    checkpoint_bytes: int
    origin: dict[str, Any]
    conditions: Conditions


def prepare_checkpoint(checkpoint_path: str | Path, embedded_model: str = "") -> Path:
    """The float checkpoint folder; if it is not there and an embedded model is named, it is made first.

    Raises:
        CheckpointError: the folder is not there, incomplete or damaged.
        ParameterError: no embedded model has that name.
    """
    folder = resolve(checkpoint_path)
    if embedded_model and embedded_model not in EMBEDDED_MODELS:
        known = ", ".join(EMBEDDED_MODELS)
        raise ParameterError(
            f'embedded_model "{embedded_model}" is unknown. Use one of {known}, or leave it empty.'
        )
    # a folder with other files is somebody's checkpoint, perhaps half copied: never replaced
    if embedded_model and not (folder.is_dir() and any(folder.iterdir())):
        EMBEDDED_MODELS[embedded_model](folder)
    read_config(folder)
    weight_files(folder)
    return folder


def check_setup(checkpoint_path: str | Path, run_folder: str | Path, device: str = "auto") -> SetupRecord:
    """Everything a run needs, checked before it starts: nothing is changed, nothing is raised for a bad row.

    Raises:
        CheckpointError, DeviceError: there is no checkpoint or no device to describe.
    """
    folder, target = resolve(checkpoint_path), resolve_device(device)
    config, files = read_config(folder), weight_files(folder)
    size = sum(path.stat().st_size for path in files)
    checks = [
        *_version_checks(target.type),
        *_resource_checks(target, size, resolve(run_folder)),
        *_model_checks(folder, size),
    ]
    return SetupRecord(
        schema=SCHEMA,
        checkpoint_path=relative(folder),
        checks=checks,
        architecture={
            "blocks": config.n_layer,
            "hidden size": config.hidden_size,
            "attention heads": config.n_head,
            "feed-forward size": config.ffn_hidden_size,
            "vocabulary": config.vocab_size,
            "trained length": config.training_seqlen,
        },
        parts=model_parts(folder),
        checkpoint_bytes=size,
        origin=origin(folder),
        conditions=conditions(target, float=folder),
    )


def required_versions(device_type: str) -> dict[str, str]:
    """Lowest versions for a kind of device, from `environment/versions.yaml`."""
    path = project_root() / "environment" / "versions.yaml"
    if not path.is_file():
        raise KitError(f"{path} is missing. Run the kit from a checkout of the project.")
    sets = yaml.safe_load(path.read_text(encoding="utf-8"))
    return next(entry["required"] for entry in sets.values() if device_type in entry["devices"])


def _version_checks(device_type: str) -> Iterator[Check]:
    for name, required in required_versions(device_type).items():
        found = platform.python_version() if name == "python" else _package_version(name)
        good = found is not None and Version(found) >= Version(required)
        advice = "" if good else f"install {name} {required} or newer"
        yield Check(
            name, found or "not installed", f"{required} or newer", "ok" if good else "missing", advice
        )


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _resource_checks(device: torch.device, checkpoint_bytes: int, run_folder: Path) -> Iterator[Check]:
    yield Check(
        "device", f"{device.type}: {backend_for(device.type).device_name()}", "cpu, cuda or npu", "ok", ""
    )
    # weights, their int8 form and the calibration's copies: 2.1 GB were measured for the demo model's 0.59 GB
    needed, free = 3.5 * checkpoint_bytes + 1e9, psutil.virtual_memory().available
    yield _amount("free memory", free, needed, "close other programs, or use a machine with more memory")
    existing = next(parent for parent in (run_folder, *run_folder.parents) if parent.exists())
    yield _amount(
        "free disk",
        shutil.disk_usage(existing).free,
        checkpoint_bytes,
        "free space or choose another run_folder",
    )


def _amount(component: str, found: float, needed: float, advice: str) -> Check:
    good = found >= needed
    row = (f"{found / 1e9:.1f} GB", f"{needed / 1e9:.1f} GB")
    return Check(component, *row, "ok" if good else "warning", "" if good else advice)


def _model_checks(folder: Path, size: int) -> Iterator[Check]:
    yield Check(
        "weights", f"{size / 1e6:,.1f} MB in {relative(folder)}", "all files, none cut short", "ok", ""
    )
    try:
        tokenizer, vocabulary = load_tokenizer(folder), read_config(folder).vocab_size
    except CheckpointError as error:
        yield Check("tokenizer", "not readable", "the model's own", "missing", str(error))
        return
    good = len(tokenizer) <= vocabulary
    advice = "" if good else "copy the tokenizer that belongs to the weights"
    yield Check(
        "tokenizer",
        f"{len(tokenizer):,} tokens",
        f"at most {vocabulary:,}",
        "ok" if good else "missing",
        advice,
    )


def model_parts(folder: Path) -> list[Part]:
    """Parameters and bytes of embedding, attention, feed-forward, head and norms, from the files' own tables."""
    groups = {
        "self_attention": "attention",
        "mlp": "feed-forward",
        "word_embeddings.": "embedding",
        "lm_head": "head",
    }
    totals: dict[str, list[int]] = {}
    for name, stored in Shards(folder).tensors.items():
        part = next((label for key, label in groups.items() if key in name), "norms")
        counts = totals.setdefault(part, [0, 0])
        counts[0] += stored.shape.numel()
        counts[1] += stored.nbytes
    return [Part(part, *counts) for part, counts in totals.items()]

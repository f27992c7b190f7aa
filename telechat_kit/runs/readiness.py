"""What a run needs and can be looked for before its first kernel starts: the device's driver, checkpoints, texts."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from telechat_kit.errors import ParameterError
from telechat_kit.files import relative, resolve
from telechat_kit.messages import Message, joined
from telechat_kit.runs.profile import Profile, default_values
from telechat_kit.runs.state import Step
from telechat_kit.texts import text_files

#: Parameters that name texts, and those that name one file or folder to read; empty means none
_TEXTS = ("calibration_path", "text_path", "kinds_path", "languages_path")
_FILES = ("jsonl_path", "tasks_path")
#: Where the driver of an Ascend card shows its devices
_NPU_DEVICES = "davinci[0-9]*"


def require_inputs(profile: Profile, steps: Sequence[Step]) -> None:
    """Refuse a run that would stop for want of a file or device which `steps` name, and say all of them at once.

    Raises:
        ParameterError: what is missing, a line each, by the parameter that names it.
    """
    names, values = {step.name for step in steps}, dict[str, Any]()
    for name in names - {"01_setup"}:  # which is there to say what is missing
        values |= default_values(name) | profile.for_notebook(name)
    missing = [
        *_without_device(values),
        *_missing_checkpoints(profile, names, values),
        *_missing_texts(values),
    ]
    if missing:
        told = joined("\n  ", missing)
        raise ParameterError(
            "{path}: what this run needs is not there:\n  {told}\nNothing was run. Correct the profile, or see "
            "what is here with: telechat-kit check --profile {path}",
            path=relative(profile.path),
            told=told,
        )


def _without_device(values: Mapping[str, Any]) -> Iterator[str]:
    device = values.get("device", "")
    if not device.startswith("npu"):
        return  # torch says of the others whether they are there
    if importlib.util.find_spec("torch_npu") is None:
        if list(Path("/dev").glob(_NPU_DEVICES)):
            yield Message("device: {device}, and torch_npu is not installed", device=device)
        else:
            yield Message(
                "device: {device}, and torch_npu is not installed, nor does a driver show an NPU",
                device=device,
            )


def _missing_checkpoints(profile: Profile, names: set[str], values: Mapping[str, Any]) -> Iterator[str]:
    """Checkpoint folders that are read and that no earlier step of the run makes."""
    setup = default_values("01_setup") | profile.for_notebook("01_setup")
    made = (
        {resolve(setup["checkpoint_path"])} if "01_setup" in names and setup.get("embedded_model") else set()
    )
    read = ["checkpoint_path", "model_path"]
    if "02_quantize" not in names or values.get("given_weights"):
        read.append("quant_path")
    for key in (key for key in read if key in values):
        folder = resolve(values[key])
        if folder not in made and not folder.exists():
            yield Message("{key}: the folder {values} does not exist", key=key, values=values[key])


def _missing_texts(values: Mapping[str, Any]) -> Iterator[str]:
    named = [(key, path) for key in _TEXTS if values.get(key) for path in text_files(values[key])]
    named += [(key, resolve(values[key])) for key in _FILES if values.get(key)]
    for key, path in named:
        if not path.exists():
            yield Message("{key}: {path} does not exist", key=key, path=relative(path))

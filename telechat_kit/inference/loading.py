"""A checkpoint's model on the device that runs it, or shared by several, its weights in the form multiplied with."""

from pathlib import Path

import torch

from telechat_kit.backends import backend_for, resolve_device, split_devices
from telechat_kit.backends.cpu_kernels import huge_pages
from telechat_kit.errors import CheckpointError
from telechat_kit.files import absolute
from telechat_kit.inference.engine import require_cache_dtype, set_cache_dtype
from telechat_kit.inference.memory import explained, require_room
from telechat_kit.inference.parallel import team_of
from telechat_kit.model.checkpoint import build_float, build_float_part, build_w8a8, config_folder
from telechat_kit.model.folder import is_w8a8, read_config
from telechat_kit.model.hashes import require_recorded_weights
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.sharding import WHOLE, Shard, join
from telechat_kit.model.w8a8 import prepare


def load_model(
    folder: str | Path,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    *,
    model_path: str | Path | None = None,
    check_hash: bool = False,
    cache_dtype: str = "auto",
) -> TelechatForCausalLM:
    """The TeleChat model of a float or W8A8 checkpoint folder, in eval mode on `device`.

    Args:
        folder: an official checkpoint, the demo model, or a quantized folder: the kit's and msModelSlim's
            safetensors (either description), msModelSlim's `.npy` dictionaries, compressed-tensors. A
            relative path is relative to the current folder.
        device: "auto", "cpu", or a device that is present; several with commas between them share the model.
        dtype: of the float tensors; None takes float32 on the CPU and a half precision elsewhere, the
            checkpoint's own if the device has it. Int8 weights stay int8.
        model_path: the float folder after outlier suppression that belongs to `.npy` dictionaries (scenario
            two); for other quantized folders, where to find config.json if they have none.
        check_hash: compare the weight files with the hashes that `quantize.json` or `export.json` beside them
            holds, which reads all of them once more. Runs always do.
        cache_dtype: "auto", or "bfloat16" or "float16", in which the CPU's compiled engine keeps keys and
            values: half the memory and less to read for a token, at some loss. With bfloat16 attention is
            multiplied in it, too, which reads a long prompt faster. Sequences beyond the trained length go
            without the engine, and without this.

    Raises:
        CheckpointError: the folder is missing, incomplete, damaged or of another architecture; with `check_hash`
            the weights are others than were written, or nothing beside them tells.
        DeviceError: the device is not there, too small for the model, or cannot calculate in `dtype`.
        ParameterError: `cache_dtype` is unknown, or the engine does not run this model.

    Example:
        >>> model = load_model("models/tiny-w8a8", "cpu")
        >>> model.config.n_layer
        4
    """
    require_cache_dtype(cache_dtype)
    folder, beside = absolute(folder), None if model_path is None else absolute(model_path)
    if check_hash and not require_recorded_weights(folder):
        raise CheckpointError(
            "{folder}: no quantize.json or export.json there holds hashes of the weights, so they cannot be "
            "checked. Quantize again with this kit, or leave check_hash out.",
            folder=folder,
        )
    if len(devices := split_devices(device)) > 1:
        model = team_of(devices).load(load_part, join_parts, folder, beside, dtype)
    else:
        model = load_part(folder, beside, dtype, device)
        prepare(model)
        if model.device.type == "cpu":
            huge_pages.gather([*model.parameters(), *model.buffers()])
    set_cache_dtype(model, cache_dtype)
    return model


def load_part(
    folder: Path, model_path: Path | None, dtype: torch.dtype | None, device: str, shard: Shard = WHOLE
) -> TelechatForCausalLM:
    """This part of the model on `device`, in eval mode, its weights not yet `prepare`d; errors as in `load_model`."""
    target, beside = resolve_device(device), config_folder(folder, model_path)
    config = read_config(beside)
    dtype = backend_for(target.type).choose_dtype(dtype, config.dtype)
    quantized = is_w8a8(folder)
    shard.require_even(config)
    require_room(config, quantized, dtype, target, shard.count)
    if quantized:
        model = build_w8a8(folder, beside, config, dtype, shard)
    else:
        model = build_float(folder, dtype) if shard.count == 1 else build_float_part(folder, dtype, shard)
    with explained(f"loading {folder}", backend_for(target.type)):
        return model.to(target).eval()


def join_parts(model: TelechatForCausalLM, shard: Shard) -> None:
    """Bring together the parts of a model that every process has loaded: all of them must call this."""
    with explained("preparing the weights", backend_for(model.device.type)):
        join(model, shard)
        prepare(model)

"""What config.json says of the network and no table of contents of the weights tells: the number of heads, the rotary
base and what else changes every answer while all shapes fit. The kit writes it beside the weights that it makes.
"""

from pathlib import Path
from typing import Any

from telechat_kit.errors import CheckpointError
from telechat_kit.model.config_files import read_object
from telechat_kit.model.configuration import TelechatConfig

#: Entry of `quantize.json` beside quantized weights
NETWORK = "network"
_RECORD = "quantize.json"
_KEYS = (
    "n_head",
    "layer_norm_epsilon",
    "rope_theta",
    "rope_scaling",
    "rope_table_dtype",
    "training_seqlen",
    "apply_residual_connection_post_layernorm",
    "online_rotation",
)
#: What quantization may change on purpose
_OF_THE_WEIGHTS = ("online_rotation",)


def network_values(config: TelechatConfig) -> dict[str, Any]:
    """The values by their keys; of `base_seqlen` the one that is used where the file has none."""
    values = {key: getattr(config, key, None) for key in _KEYS}
    return {**values, "base_seqlen": getattr(config, "ntk_base_context", None)}


def require_recorded_network(folder: Path, config: TelechatConfig) -> None:
    """Hold `config` against what `quantize.json` in `folder` says that the weights were made for, where it does.

    Raises:
        CheckpointError: config.json was changed since; names the key.
    """
    path = folder / _RECORD
    recorded = read_object(path).get(NETWORK) if path.is_file() else None
    for key, value in network_values(config).items():
        if isinstance(recorded, dict) and key in recorded and recorded[key] != value:
            raise CheckpointError(
                "{folder}: config.json says {key} {value}, the weights were made for {recorded} ({record}). Copy "
                "config.json again, or quantize again.",
                folder=folder,
                key=key,
                value=value,
                recorded=f"{recorded[key]!s:.60}",
                record=_RECORD,
            )


def require_one_network(
    float_folder: Path, float_config: TelechatConfig, quant_folder: Path, quant_config: TelechatConfig
) -> None:
    """Refuse two folders whose configurations compute differently, whatever their weights.

    Raises:
        CheckpointError: names the key.
    """
    given, other = network_values(float_config), network_values(quant_config)
    for key in given:
        if key not in _OF_THE_WEIGHTS and given[key] != other[key]:
            raise CheckpointError(
                "{float_folder} (config.json says {key} {value}) and {quant_folder} ({key} {other}) do not belong "
                "together. Give a pair of one model.",
                float_folder=float_folder,
                key=key,
                value=given[key],
                quant_folder=quant_folder,
                other=other[key],
            )

"""The code by which transformers finds the kit in a process that has not imported it: lm-evaluation-harness's command,
say. What the kit writes under TeleChat's names carries it, and it runs where `trust_remote_code` is given.

The published checkpoints bring code of their own, and float folders keep its entry. It reads no W8A8 weights: there the
kit's takes its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from telechat_kit.files import write_json, write_text

if TYPE_CHECKING:
    from telechat_kit.model.configuration import TelechatConfig

_MODULE = "modeling_telechat_kit"
#: The file in the folder, which transformers copies to its cache of modules and imports from there
REMOTE_CODE = f"{_MODULE}.py"
_TEXT = '''"""TeleChat for transformers, with trust_remote_code: the networks are those of the installed package telechat-kit.

Importing it registers all that reads this folder: configuration, networks, tokenizers, W8A8 weights.
"""

from telechat_kit.model import Telechat3Config, Telechat3ForCausalLM, TelechatConfig, TelechatForCausalLM

__all__ = ["Telechat3Config", "Telechat3ForCausalLM", "TelechatConfig", "TelechatForCausalLM"]
'''
#: model_type -> what the class names begin with
_FAMILIES = {"telechat": "Telechat", "telechat3": "Telechat3"}


def auto_map(model_type: str) -> dict[str, str]:
    """`auto_map` of a config.json: Auto class -> class in the module beside it."""
    family = f"{_MODULE}.{_FAMILIES[model_type]}"
    return {"AutoConfig": f"{family}Config", "AutoModelForCausalLM": f"{family}ForCausalLM"}


def write_remote_code(folder: Path) -> None:
    """Write the module that `auto_map` names."""
    write_text(folder / REMOTE_CODE, _TEXT)


def write_config(folder: Path, values: dict[str, Any], config: TelechatConfig) -> None:
    """Write `values` as config.json of a folder that the kit has made, and the code that they name.

    `config` is what they describe: of a TeleChat2 that was known by the names of its published code alone.
    """
    told = {"num_key_value_heads": config.kv_heads} if config.keys_keep_tables else {}
    write_json(folder / "config.json", {**values, **told, "auto_map": auto_map(config.model_type)})
    write_remote_code(folder)

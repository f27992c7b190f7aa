"""The two models of a comparison: loaded when they are needed, both at once or one after the other."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import BaseModel, ValidationError

from telechat_kit.backends import backend_for, resolve_device, split_devices
from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.files import resolve
from telechat_kit.inference.conditions import conditions
from telechat_kit.inference.engine import require_cache_dtype
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.memory import explained, needs
from telechat_kit.model.checkpoint import config_folder, needed_model_path
from telechat_kit.model.config_files import read_object
from telechat_kit.model.folder import read_config, weight_files
from telechat_kit.model.hashes import require_recorded_weights, tokenizer_hash
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.network_values import require_one_network
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.provenance import Conditions
from telechat_kit.texts import Text, load_text
from telechat_kit.token_samples import Block, token_blocks

#: How many of the two models may be in memory: both, one at a time, or as the free memory allows
MEMORY = ("both", "one", "auto")
#: Without it a checkpoint brings no tokenizer of its own
_TOKENIZER_CONFIG = "tokenizer_config.json"


class Pair:
    """Float and W8A8 model of one tokenizer, checked to belong together before either is loaded.

    Args:
        memory: "both" keeps both models loaded, "one" frees each after its turn, "auto" decides by free memory.
        cache_dtype: what the engine keeps keys and values of both in, as `load_model` takes it.
    """

    def __init__(
        self,
        model_path: str | Path,
        quant_path: str | Path,
        device: str = "auto",
        memory: str = "both",
        cache_dtype: str = "auto",
    ) -> None:
        require_cache_dtype(cache_dtype)
        if memory not in MEMORY:
            raise ParameterError(
                'memory "{memory}" is unknown. Use one of {choices}.',
                memory=memory,
                choices=", ".join(MEMORY),
            )
        self.float_folder, self.w8a8_folder = resolve(model_path), resolve(quant_path)
        if not self.w8a8_folder.exists():
            raise CheckpointError(
                "the W8A8 folder {w8a8_folder} does not exist. Run 02_quantize, which makes it, or correct "
                "quant_path.",
                w8a8_folder=self.w8a8_folder,
            )
        self.folders = {"float": self.float_folder, "w8a8": self.w8a8_folder}
        self.device_name, self.device = device, resolve_device(device)
        self.cache_dtype = cache_dtype
        self.devices = len(split_devices(device))
        self.configs = {
            name: read_config(config_folder(folder, self._beside(name)))
            for name, folder in self.folders.items()
        }
        self.tokenizer = load_tokenizer(self.float_folder)
        require_recorded_weights(self.w8a8_folder)  # hashed for the conditions anyway
        self._check()
        self.together = memory == "both" or (memory == "auto" and self._fits())
        self._loaded: dict[str, TelechatForCausalLM] = {}

    def _check(self) -> None:
        sizes = {name: config.vocab_size for name, config in self.configs.items()}
        if len(set(sizes.values())) > 1 or len(self.tokenizer) > sizes["float"]:
            raise CheckpointError(
                "{float_folder} (vocabulary {float_size}, tokenizer {tokenizer_size}) and {w8a8_folder} (vocabulary {w8a8_size}) "
                "do not belong together. Give a pair of one model.",
                float_folder=self.float_folder,
                float_size=sizes["float"],
                tokenizer_size=len(self.tokenizer),
                w8a8_folder=self.w8a8_folder,
                w8a8_size=sizes["w8a8"],
            )
        require_one_network(self.float_folder, self.configs["float"], self.w8a8_folder, self.configs["w8a8"])
        if not (self.w8a8_folder / _TOKENIZER_CONFIG).is_file() or (
            tokenizer_hash(self.float_folder) == tokenizer_hash(self.w8a8_folder)
        ):
            return
        if load_tokenizer(self.w8a8_folder).get_vocab() != self.tokenizer.get_vocab():
            raise CheckpointError(
                "the tokenizers of {float_folder} and {w8a8_folder} know different tokens: the folders do not "
                "belong together. Give a pair of one model.",
                float_folder=self.float_folder,
                w8a8_folder=self.w8a8_folder,
            )

    def _fits(self) -> bool:
        """Whether both models and a quarter of the float one as working room fit into what is free now."""
        sizes = {
            name: sum(f.stat().st_size for f in weight_files(path)) for name, path in self.folders.items()
        }
        if self.device.type == "cpu":
            widened = 1 if self.configs["float"].dtype == torch.float32 else 2
            return psutil.virtual_memory().available > 1.25 * widened * sizes["float"] + sizes["w8a8"]
        free = backend_for(self.device.type).free_memory_bytes()
        own = {
            name: needs(config, name == "w8a8", devices=self.devices).weight_bytes
            for name, config in self.configs.items()
        }
        return free > 1.25 * own["float"] + own["w8a8"]

    def _beside(self, name: str) -> Path | None:
        """The folder that completes `name`: `.npy` dictionaries hold int8 linears and norms only."""
        return needed_model_path(self.w8a8_folder, self.float_folder) if name == "w8a8" else None

    def _load(self, name: str) -> TelechatForCausalLM:
        return load_model(
            self.folders[name],
            self.device_name,
            model_path=self._beside(name),
            cache_dtype=self.cache_dtype,
        )

    @contextmanager
    def model(self, name: str) -> Iterator[TelechatForCausalLM]:
        """The model "float" or "w8a8"; freed afterwards if only one may be in memory."""
        model = self._loaded.get(name) or self._load(name)
        if self.together:
            self._loaded[name] = model
        # what a device says late comes wherever its results are read
        with explained(f"the {name} model", backend_for(self.device.type)):
            yield model

    @property
    def models(self) -> dict[str, TelechatForCausalLM]:
        """Both models, loaded and kept, for work that needs them in turn."""
        for name in self.folders:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
        return self._loaded

    @property
    def recipe(self) -> dict[str, Any]:
        """How the W8A8 weights were made, as their `quantize.json` tells; empty where it does not."""
        return _read_recipe(self.w8a8_folder / "quantize.json")

    def conditions(self) -> Conditions:
        """Conditions of a measurement on this pair."""
        return conditions(self.device, self.devices, **self.folders)


def evaluation_blocks(pair: Pair, source: str, length: int, count: int, seed: int) -> list[Block]:
    """Blocks of the text `source` that the W8A8 model was not calibrated on, as its `quantize.json` tells."""
    return unseen_blocks(pair, load_text(source), length, count, seed)


def unseen_blocks(
    pair: Pair, text: Text, length: int, count: int, seed: int, fewest: int | None = None
) -> list[Block]:
    """Blocks of `text` that the W8A8 model was not calibrated on; `fewest` as `token_blocks` takes it."""
    if length < 2:
        raise ParameterError(
            "sequences of {length} tokens: at least 2 tokens are needed, one to predict the next.",
            length=length,
        )
    context = min(config.training_seqlen for config in pair.configs.values())
    if length > context:
        raise ParameterError(
            "sequences of {length} tokens: the model was trained on at most {context}. Beyond that neither "
            "side is what its users see; lower text_tokens.",
            length=length,
            context=context,
        )
    seen = calibrated_on(pair.recipe, text)
    return token_blocks(pair.tokenizer, text, length, count, seed, exclude=seen, fewest=fewest)


def calibrated_on(recipe: Mapping[str, Any], text: Text) -> list[tuple[int, int]]:
    """Ranges of the text's tokens that calibration has seen, of this text alone or as one kind among others."""
    seen = recipe.get("calibration_blocks", []) if recipe.get("calibration_sha256") == text.sha256 else []
    for share in recipe.get("calibration_kinds", []):
        seen = seen + share["blocks"] if share["sha256"] == text.sha256 else seen
    return [(low, high) for low, high in seen]


class _Share(BaseModel):
    sha256: str
    blocks: list[tuple[int, int]]


class _Recipe(BaseModel):
    """What an evaluation reads of the recipe in `quantize.json`."""

    calibration_sha256: str = ""
    calibration_blocks: list[tuple[int, int]] = []
    calibration_kinds: list[_Share] = []
    ingredients: list[str] = []
    seed: int = 0


def _read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in `quantize.json`; empty where there is none."""
    found = (read_object(path).get("recipe") or {}) if path.is_file() else {}
    try:
        _Recipe.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            "{path}: recipe.{map}: {first}. Quantize again, or remove the file: then nothing tells which "
            "text calibration has seen.",
            path=path,
            map=".".join(map(str, first["loc"])),
            first=first["msg"],
        ) from error
    return found

"""What the JSON files of a checkpoint must look like before anything is built from them: one pydantic model a file.

Sizes have bounds that no model of the family comes near: what lies beyond would only hang or ask for all memory.
"""

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from transformers import GenerationConfig

from telechat_kit.errors import CheckpointError, DataError
from telechat_kit.files import read_json
from telechat_kit.messages import marked

GENERATION_CONFIG = "generation_config.json"
_REMEDY = marked("Copy the file again from its publisher.")
#: Shards lie beside their index; no name leads elsewhere
_SHARD = re.compile(r"[^/\\\x00]{1,200}\.(?:safetensors|bin)")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def given(path: Path) -> bool:
    """Whether a file is there that a checkpoint may do without.

    Raises:
        CheckpointError: its name is there, and no file: transformers would go on without it, and answer otherwise.
    """
    if not path.is_file() and os.path.lexists(
        path
    ):  # a copied cache of the hub is full of links that lead nowhere
        raise CheckpointError(
            "{path} is no file, but a folder, a pipe or a link that leads nowhere. {remedy}",
            path=path,
            remedy=_REMEDY,
        )
    return path.is_file()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        CheckpointError: there is none, or it begins with a byte order mark, at which transformers stops.
    """
    try:
        values = read_json(path, _REMEDY, once=True)
    except DataError as error:
        raise CheckpointError(
            "{parent} is no checkpoint folder: {error}", parent=path.parent, error=error
        ) from error
    with path.open("rb") as file:
        if file.read(3) == _BYTE_ORDER_MARK:
            raise CheckpointError(
                "{path} begins with a byte order mark, which transformers does not read. Save it as UTF-8 "
                "without one.",
                path=path,
            )
    if not isinstance(values, dict):
        raise CheckpointError("{path} holds no JSON object. {remedy}", path=path, remedy=_REMEDY)
    return values


class _File(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def _size(most: int, least: int = 1) -> Any:
    return Field(ge=least, le=most)


def _named(name: str, *others: str, **bounds: Any) -> Any:
    return Field(default=None, validation_alias=AliasChoices(name, *others), **bounds)


_Id = Annotated[int, Field(ge=-1, lt=1 << 24)]
_Ids = _Id | list[_Id] | None
_Dtype = Literal["float16", "bfloat16", "float32", "float64"] | None


class _Config(_File):
    """`config.json`, by TeleChat's names or Llama's; what transformers gives a meaning to is held too."""

    model_type: str | None = None
    architectures: list[str] | None = None
    auto_map: dict[str, str | list[str | None]] | None = None

    vocab_size: Annotated[int, _size(1 << 24)] | None = None
    hidden_size: int | None = _named("n_embed", "hidden_size", ge=4, le=1 << 17)
    n_layer: int | None = _named("n_layer", "num_hidden_layers", ge=1, le=1024)
    n_head: int | None = _named("n_head", "num_attention_heads", ge=1, le=4096)
    num_key_value_heads: Annotated[int, _size(4096)] | None = None
    ffn_hidden_size: int | None = _named("ffn_hidden_size", "intermediate_size", ge=1, le=1 << 20)
    layer_norm_epsilon: float | None = _named("layer_norm_epsilon", "rms_norm_eps", gt=0, lt=1)
    training_seqlen: int | None = _named("training_seqlen", "max_position_embeddings", ge=1, le=1 << 20)
    base_seqlen: Annotated[int, _size(1 << 24)] | None = None
    rope_theta: Annotated[float, Field(gt=1, lt=1e12)] = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_table_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    tie_word_embeddings: bool = True
    embed_layernorm: bool = False
    apply_residual_connection_post_layernorm: bool = False
    bos_token_id: _Ids = None
    eos_token_id: _Ids = None
    pad_token_id: _Id | None = None
    online_rotation: bool = False
    hidden_act: Literal["silu"] | None = None
    num_labels: Annotated[int, Field(ge=0, le=1 << 16)] | None = None
    id2label: dict[str, str] | None = None
    return_dict: Literal[True] | None = None
    dtype: _Dtype = None
    torch_dtype: _Dtype = None
    quantize: str | None = None
    quantization_config: dict[str, Any] | None = None


#: What no config.json may leave out: a default would be another model's
_SHAPE = ("vocab_size", "hidden_size", "n_layer", "n_head", "ffn_hidden_size")


class _Generation(_File):
    """What `generation_config.json` may say, as far as answers depend on it."""

    bos_token_id: _Ids = None
    eos_token_id: _Ids = None
    pad_token_id: _Id | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    do_sample: bool | None = None


def _shard_name(name: str) -> str:
    if not _SHARD.fullmatch(name):
        raise PydanticCustomError(
            "shard", marked("must be the name of a .safetensors or .bin file beside the index")
        )
    return name


class _Index(_File):
    """The list of shards: tensor -> name of a file in the same folder."""

    weight_map: dict[str, Annotated[str, AfterValidator(_shard_name)]] = Field(min_length=1)


def require_config(path: Path, values: dict[str, Any]) -> None:
    """Refuse a `config.json` whose values have other types than theirs, or no meaning.

    Raises:
        CheckpointError: the key is named.
    """
    config = _validated(path, values, _Config)
    hidden, heads = config.hidden_size, config.n_head
    _require_given(path, config, [key for key in _SHAPE if key in values])
    if config.vocab_size is not None:
        _require_known_ids(path, config.eos_token_id, config.vocab_size)
    if (
        hidden is not None
        and heads is not None
        and (hidden % heads or hidden // heads % 2 or hidden // heads < 4)
    ):
        raise CheckpointError(
            "{path}: hidden_size {hidden} in {heads} heads gives no even head size of at least 4. {remedy}",
            path=path,
            hidden=hidden,
            heads=heads,
            remedy=_REMEDY,
        )


def require_sizes(path: Path) -> None:
    """Refuse a `config.json` that leaves out a size of the network; a tokenizer alone needs none."""
    _require_given(path, _validated(path, read_object(path), _Config), _SHAPE)


def _require_given(path: Path, config: _Config, keys: Iterable[str]) -> None:
    for key in keys:
        if getattr(config, key) is None:
            raise CheckpointError("{path}: {key} is missing. {remedy}", path=path, key=key, remedy=_REMEDY)


def _require_known_ids(path: Path, ids: int | list[int] | None, vocab_size: int) -> None:
    """Refuse an id to stop at that the model cannot give: its answers would not end."""
    for number in ids if isinstance(ids, list) else [ids]:
        if number is not None and number >= vocab_size:
            raise CheckpointError(
                "{path}: eos_token_id {number} is beyond the {vocab_size} ids of the vocabulary. {remedy}",
                path=path,
                number=number,
                vocab_size=vocab_size,
                remedy=_REMEDY,
            )


def read_index(path: Path) -> list[Path]:
    """The weight files that an index names, each once, by name."""
    index = _validated(path, read_object(path), _Index)
    return [path.parent / name for name in sorted(set(index.weight_map.values()))]


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """The generation settings of a folder; None if it has none.

    Raises:
        CheckpointError: the file is damaged. transformers would go on with other settings and say nothing.
    """
    path = folder / GENERATION_CONFIG
    if not given(path):
        return None
    settings = _validated(path, read_object(path), _Generation)
    vocab_size = read_object(folder / "config.json").get("vocab_size")
    if isinstance(vocab_size, int):
        _require_known_ids(path, settings.eos_token_id, vocab_size)
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:  # of many kinds, by what is wrong
        raise CheckpointError(
            "{path} cannot be read ({short}). {remedy}", path=path, short=_short(error), remedy=_REMEDY
        ) from error


def _validated(path: Path, values: dict[str, Any], kind: type[Any]) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part)[:60] for part in first["loc"])
        raise CheckpointError(
            "{path}: {key}: {first}, not {told}. {remedy}",
            path=path,
            key=key,
            first=first["msg"],
            told=_told(first["input"]),
            remedy=_REMEDY,
        ) from error


def _told(value: Any) -> str:
    """A value in an error message, never longer than a line."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return type(value).__name__ if isinstance(value, dict | list) else repr(value)[:60]


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

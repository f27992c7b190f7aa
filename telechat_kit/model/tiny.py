"""A TeleChat of random weights and a byte tokenizer: a whole checkpoint in a second, for tests and dry runs."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from telechat_kit.files import atomic_folder, write_json
from telechat_kit.messages import marked
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import ORIGIN
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.telechat3 import network_of
from telechat_kit.progress import bars_of_transformers

SPECIAL = ("<_unk>", "<_start>", "<_end>", "<_pad>", "<_user>", "<_bot>")


def build_tiny(folder: Path, seed: int = 0) -> Path:
    """Write a TeleChat checkpoint of 4 blocks with weights drawn by `seed`; its texts mean nothing."""
    return write_random(folder, tiny_config(), seed)


def tiny_config(ffn_hidden_size: int = 176) -> TelechatConfig:
    """The shape of `build_tiny`: 4 blocks and 4 heads of the 7B form."""
    return TelechatConfig(
        architectures=["TelechatForCausalLM"],
        vocab_size=len(byte_tokenizer()),
        hidden_size=64,
        n_layer=4,
        n_head=4,
        ffn_hidden_size=ffn_hidden_size,
        training_seqlen=512,
        seq_length=512,
        base_seqlen=512,
        initializer_range=0.15,
        dtype="float32",
    )


def write_random(folder: Path, config: TelechatConfig, seed: int = 0) -> Path:
    """Write a checkpoint of the shape of `config` with weights drawn by `seed`, and the byte tokenizer beside it."""
    with atomic_folder(folder) as temporary:
        with bars_of_transformers():
            _random_model(config, seed).save_pretrained(temporary)
        byte_tokenizer().save_pretrained(temporary)
        write_json(
            temporary / ORIGIN,
            {"name": marked("random TeleChat"), "license": marked("none (random numbers)"), "seed": seed},
        )
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the 256 bytes after TeleChat's special tokens; it encodes any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<_unk>",
        bos_token="<_start>",
        eos_token="<_end>",
        pad_token="<_pad>",
        additional_special_tokens=["<_user>", "<_bot>"],
    )


def _random_model(config: TelechatConfig, seed: int) -> TelechatForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network_of(config)(config)

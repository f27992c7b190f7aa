"""The engine: the ids and logits of the network's modules, W8A8 or float, whatever the shape, and when it steps back."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from telechat_kit.backends.cpu_kernels import library
from telechat_kit.backends.cpu_kernels.panels import LANES
from telechat_kit.errors import CheckpointError
from telechat_kit.inference.engine import Engine, EngineRun, engine_for, unsuited
from telechat_kit.inference.generation import generate, generate_batch, generate_by_transformers, start_run
from telechat_kit.inference.loading import load_model, prepare
from telechat_kit.inference.network_run import NetworkRun
from telechat_kit.model import TelechatForCausalLM
from telechat_kit.model.configuration import Telechat3Config, TelechatConfig
from telechat_kit.model.int8_linears import DynamicW8A8Linear, FloatLinear, W8A8Linear
from telechat_kit.model.telechat3 import network_of
from telechat_kit.model.w8a8 import linear_names
from telechat_kit.quantization.int8.packing import pack_dynamic_linear, pack_linear

pytestmark = pytest.mark.skipif(library.library() is None, reason=library.description())


@pytest.fixture(scope="module")
def model(tiny_w8a8_folder: Path) -> TelechatForCausalLM:
    return load_model(tiny_w8a8_folder, device="cpu")


def random_model(
    kv_heads: int = 6, float_linears: tuple[str, ...] = (), dynamic: bool = False, **changes: Any
) -> TelechatForCausalLM:
    """A W8A8 model of random weights, 6 heads on `kv_heads` of keys and values."""
    shape = {"vocab_size": 300, "hidden_size": 96, "n_layer": 2, "n_head": 6}
    changes = {"ffn_hidden_size": 100, **changes}
    if kv_heads != 6:
        changes |= {"num_key_value_heads": kv_heads, "base_seqlen": 400}
    config = TelechatConfig(**shape, training_seqlen=400, initializer_range=0.15, **changes)
    return quantized(config, float_linears, dynamic)


def quantized(
    config: TelechatConfig, float_linears: tuple[str, ...], dynamic: bool = False
) -> TelechatForCausalLM:
    """Random weights of the shape of `config`, in int8 but for the `float_linears`."""
    torch.manual_seed(0)
    model = network_of(config)(config).eval()
    for name in linear_names(model):
        linear = model.get_submodule(name)
        if name.endswith(float_linears):
            other = FloatLinear(*linear.weight.shape[::-1], linear.bias is not None)
            other.load_state_dict(linear.state_dict())
            model.set_submodule(name, other)
        elif dynamic:
            packed = pack_dynamic_linear(linear.weight, linear.bias)
            model.set_submodule(name, DynamicW8A8Linear(packed))
        else:
            packed = pack_linear(linear.weight, linear.bias, torch.tensor([0.02]), torch.tensor([3.0]))
            model.set_submodule(name, W8A8Linear(packed))
    model.requires_grad_(False)
    prepare(model)
    return model


def prompt(length: int, vocabulary: int = 262) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(6, vocabulary, (length,), generator=generator).tolist()


@torch.inference_mode()
def assert_equal_runs(model: TelechatForCausalLM, length: int, new: int = 4) -> None:
    """Engine and modules on the same ids: prefill, then steps. What is before the head is bit for bit the same."""
    engine = engine_for(model)
    assert engine is not None, unsuited(model)
    fast, slow, step = engine.run(length + new), NetworkRun(model, length + new), prompt(length)
    for _ in range(new):
        logits, expected = fast.logits(step), slow.logits(step)
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
        step = [int(expected.argmax())]
    slow_keys = slow.cache.slots[-1, 0, 0, :, : slow.cache.length]
    assert torch.equal(last_keys(fast, slow.cache.length), slow_keys)


def last_keys(run: EngineRun, positions: int) -> torch.Tensor:
    """Keys `[heads, positions, head_dim]` of the last block: they hold all that was computed before it."""
    keys = run.slots[0, -1]
    heads, _, dim = keys.shape
    return keys.view(heads, -1, dim, LANES).transpose(2, 3).reshape(heads, -1, dim)[:, :positions]


@pytest.mark.parametrize("length", [1, 2, 15, 63, 64, 65, 128, 129, 300])
def test_logits_are_those_of_the_modules(model: TelechatForCausalLM, length: int) -> None:
    assert_equal_runs(model, length)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_logits_are_those_of_the_modules_with_any_number_of_threads(
    model: TelechatForCausalLM, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert_equal_runs(model, 150)
    torch.set_num_threads(before)


@pytest.mark.parametrize("post_layernorm", [False, True])
@pytest.mark.parametrize("embed_layernorm", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_every_kind_of_telechat_is_covered(post_layernorm: bool, embed_layernorm: bool, tied: bool) -> None:
    model = random_model(
        apply_residual_connection_post_layernorm=post_layernorm,
        embed_layernorm=embed_layernorm,
        tie_word_embeddings=tied,
    )
    assert_equal_runs(model, 70)


@pytest.mark.parametrize(
    "float_linears",
    [("query", "key_value"), ("dense",), ("gate_proj", "up_proj"), ("down_proj",), ("query", "gate_proj")],
)
def test_linears_kept_in_float_are_covered(float_linears: tuple[str, ...]) -> None:
    assert_equal_runs(random_model(float_linears=float_linears), 70)
    assert_equal_runs(random_model(kv_heads=2, float_linears=float_linears), 70)


@pytest.mark.parametrize("float_linears", [(), ("query",), ("gate_proj", "up_proj"), ("down_proj",)])
@pytest.mark.parametrize("kv_heads", [2, 6])
def test_linears_that_scale_each_token_are_covered(kv_heads: int, float_linears: tuple[str, ...]) -> None:
    model = random_model(kv_heads, float_linears, dynamic=True)
    for length in (1, 70):
        assert_equal_runs(model, length)
    prompts = [prompt(length) for length in lengths_of(9)]
    expected = [alone(model, ids, 4) for ids in prompts]
    assert generate_batch(model, prompts, 4) == expected


@pytest.mark.parametrize("kind", ["static", "dynamic", "down_proj in float", "float"])
@pytest.mark.parametrize("ffn", [100, 192], ids=["no whole vectors", "12 x 16"])
def test_products_that_are_turned_are_covered(ffn: int, kind: str) -> None:
    def made(turned: bool) -> TelechatForCausalLM:
        kept = {"down_proj in float": ("down_proj",), "float": ("",)}.get(kind, ())
        return random_model(6, kept, kind == "dynamic", ffn_hidden_size=ffn, online_rotation=turned)

    for length in (1, 70):
        assert_equal_runs(made(True), length)
    turned, plain = (made(online)(torch.tensor([prompt(9)])).logits for online in (True, False))
    assert not torch.equal(turned, plain)
    batch = [prompt(length) for length in (3, 40, 90)]
    together = generate_batch(made(True), batch, 6)
    assert together == [alone(made(True), ids, 6) for ids in batch]


def test_norms_with_a_bias_are_covered() -> None:
    model = random_model()
    for block in model.transformer.h:
        block.input_layernorm.bias = torch.nn.Parameter(torch.randn(96), requires_grad=False)
    assert_equal_runs(model, 70)


@pytest.mark.parametrize("length", [1, 40, 300])
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_groups_of_heads_share_their_keys_and_values(kv_heads: int, length: int) -> None:
    model = random_model(kv_heads)
    engine = engine_for(model)
    assert engine is not None
    assert engine.cache_bytes_per_position == NetworkRun(model, 1).cache.slots.nbytes
    assert engine.cache_bytes_per_position == 2 * 4 * 2 * kv_heads * 16
    assert_equal_runs(model, length)


def telechat3_model(kv_heads: int, float_linears: tuple[str, ...] = ()) -> TelechatForCausalLM:
    """A W8A8 TeleChat3 of random weights: query, key and value have linears of their own."""
    yarn = {"rope_type": "telechat3-yarn", "factor": 4.0, "original_max_position_embeddings": 100}
    config = Telechat3Config(
        vocab_size=300, hidden_size=96, num_hidden_layers=2, num_attention_heads=6, intermediate_size=100,
        num_key_value_heads=kv_heads, max_position_embeddings=400, rope_scaling=yarn, initializer_range=0.15,
    )  # fmt: skip
    return quantized(config, float_linears)


def float_model(kv_heads: int = 2, **changes: Any) -> TelechatForCausalLM:
    """A float model of random weights."""
    shape = {
        "vocab_size": 300,
        "hidden_size": 96,
        "n_layer": 2,
        "n_head": 6,
        "ffn_hidden_size": 100,
    } | changes
    config = TelechatConfig(
        **shape, num_key_value_heads=kv_heads, base_seqlen=400, training_seqlen=400, initializer_range=0.15
    )
    torch.manual_seed(0)
    return TelechatForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("length", [1, 40, 300])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@torch.inference_mode()
def test_float_weights_give_the_logits_and_ids_of_torch(kv_heads: int, length: int) -> None:
    model, new = float_model(kv_heads), 8
    engine = engine_for(model)
    assert engine is not None, unsuited(model)
    fast, slow, step = engine.run(length + new), NetworkRun(model, length + new), prompt(length)
    for _ in range(new):
        logits, expected = fast.logits(step), slow.logits(step)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        step = [int(expected.argmax())]
    ids = generate(model, prompt(length), 60).token_ids
    assert ids == generate_by_transformers(model, prompt(length), 60).token_ids


def test_a_head_changed_in_place_is_noticed() -> None:
    model = float_model()
    before = engine_for(model)
    assert engine_for(model) is before
    model.lm_head.weight.mul_(-1)
    after = engine_for(model)
    assert after is not None and after is not before
    assert after.run(9).best([7, 8]) == Engine(model, screened_head=False).run(9).best([7, 8])


@pytest.mark.parametrize("length", [1, 40, 300])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_keys_and_values_of_two_linears_are_read_as_one(kv_heads: int, length: int) -> None:
    assert_equal_runs(telechat3_model(kv_heads), length)
    assert_equal_runs(telechat3_model(kv_heads, ("q_proj", "k_proj", "v_proj")), length)


def test_a_key_in_float_beside_an_int8_value_is_left_to_the_modules() -> None:
    model = telechat3_model(2, ("k_proj",))
    assert unsuited(model) == "linears of another kind, or not prepared"


def test_the_screened_head_chooses_what_the_float_head_chooses(model: TelechatForCausalLM) -> None:
    screened, full = Engine(model), Engine(model, screened_head=False)
    assert screened.read_bytes_per_token < full.read_bytes_per_token
    runs = screened.run(200), full.run(200)
    step = prompt(20)
    for _ in range(180):
        one, other = (run.best(step) for run in runs)
        assert one == other
        step = [one]


def test_the_screened_head_finds_the_first_of_equal_logits() -> None:
    model = random_model(tie_word_embeddings=False)
    model.lm_head.weight[7:] = model.lm_head.weight[7]
    assert all(Engine(model).run(20).best(prompt(9 + i)) <= 7 for i in range(5))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_generated_ids_are_those_of_transformers(model: TelechatForCausalLM, penalty: float) -> None:
    ids = prompt(30)
    expected = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, 30),
        max_new_tokens=150,
        min_new_tokens=150,
        do_sample=False,
        repetition_penalty=penalty,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert generate(model, ids, 150, repetition_penalty=penalty).token_ids == expected[0, 30:].tolist()


def test_the_time_of_decode_steps_is_told_by_phase(model: TelechatForCausalLM) -> None:
    run = Engine(model).run(64)
    run.best(prompt(10))
    assert sum(run.profile().values()) == 0
    start = time.perf_counter()
    run.best([7])
    assert 0 < sum(run.profile().values()) < time.perf_counter() - start
    assert run.profile()["linears"] > 0


def test_runs_past_the_trained_length_take_the_modules(model: TelechatForCausalLM) -> None:
    assert model.config.training_seqlen == 512
    assert not isinstance(start_run(model, 512), NetworkRun)
    assert isinstance(start_run(model, 513), NetworkRun)


def test_a_run_does_not_write_past_its_capacity(model: TelechatForCausalLM) -> None:
    run = Engine(model).run(64)
    run.best(prompt(64))
    with pytest.raises(ValueError, match="64 \\+ 1 positions do not fit into 64"):
        run.best([9])


def test_what_the_engine_cannot_run_is_said(tiny_folder: Path, tiny_w8a8_folder: Path) -> None:
    assert unsuited(load_model(tiny_folder, device="cpu")) is None
    half = load_model(tiny_w8a8_folder, device="cpu", dtype=torch.float16)
    assert unsuited(half) == "float tensors not float32 or bfloat16 on the CPU"
    model = load_model(tiny_w8a8_folder, device="cpu")
    assert unsuited(model) is None
    hook = model.lm_head.register_forward_hook(lambda *_: None)
    assert unsuited(model) == "hooks on modules"
    hook.remove()
    assert unsuited(model) is None
    model.transformer.h[0].mlp.up_proj = torch.nn.Identity()
    assert unsuited(model) == "linears of another kind, or not prepared"


def test_head_sizes_that_are_no_whole_vectors_take_the_modules() -> None:
    assert unsuited(random_model(n_embed=60)) == "head_dim no multiple of 16"


def test_replaced_weights_are_noticed(tiny_w8a8_folder: Path) -> None:
    model, ids = load_model(tiny_w8a8_folder, device="cpu"), prompt(20)
    before = generate(model, ids, 10).token_ids
    state = model.state_dict()
    name = "transformer.h.3.self_attention.dense.weight"
    model.load_state_dict({**state, name: -state[name]})
    changed = generate(model, ids, 10).token_ids
    model.load_state_dict(state)
    assert changed != before
    assert generate(model, ids, 10).token_ids == before


@pytest.mark.parametrize("screened", [True, False])
def test_logits_that_are_no_numbers_give_an_error_and_no_id(screened: bool) -> None:
    model = random_model()
    model.transformer.ln_f.weight.data[0] = torch.nan
    run = Engine(model, screened_head=screened).run(8)
    with pytest.raises(CheckpointError, match="no logit of the model is a number"):
        run.best([7, 8])


def test_a_step_whose_logits_are_no_numbers_gives_an_error_and_no_id() -> None:
    model = random_model()
    run = Engine(model).run(8)
    assert 0 <= run.best([7, 8]) < model.config.vocab_size
    model.transformer.ln_f.weight.data[0] = torch.nan
    with pytest.raises(CheckpointError, match="no logit of the model is a number"):
        run.best([9])


class RoundedLinear(torch.nn.Linear):
    """A float32 linear that rounds its input to bfloat16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.bfloat16().float())


@pytest.mark.parametrize("length", [1, 5, 7, 8, 40, 300])
@pytest.mark.parametrize("hidden", [96, 192])
@torch.inference_mode()
def test_bfloat16_weights_give_the_logits_of_inputs_rounded_to_bfloat16(hidden: int, length: int) -> None:
    model = float_model(hidden_size=hidden, ffn_hidden_size=160 if hidden == 192 else 100).bfloat16()
    judge = float_model(hidden_size=hidden, ffn_hidden_size=160 if hidden == 192 else 100)
    judge.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    for linear in judge.transformer.h.modules():
        if type(linear) is torch.nn.Linear:
            linear.__class__ = RoundedLinear
    engine = engine_for(model)
    assert engine is not None, unsuited(model)
    assert engine.read_bytes_per_token < Engine(float_model(hidden_size=hidden)).read_bytes_per_token
    fast, slow, step = engine.run(length + 4), NetworkRun(judge, length + 4), prompt(length)
    for _ in range(4):
        logits, expected = fast.logits(step), slow.logits(step)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))
        step = [int(expected.argmax())]


def lengths_of(count: int) -> list[int]:
    """Lengths of `count` prompts, between 1 and 200 tokens, none like the next."""
    return [1 + 37 * i % 200 for i in range(count)]


def alone(model: TelechatForCausalLM, ids: list[int], new: int) -> list[int]:
    """Ids of one sequence by itself."""
    return generate(model, ids, new).token_ids


@pytest.mark.parametrize("count", [2, 5, 8, 32, 50])
@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_of_a_batch_are_what_they_are_alone(
    model: TelechatForCausalLM, count: int, threads: int
) -> None:
    prompts, new = [prompt(length) for length in lengths_of(count)], 12
    expected = [alone(model, ids, new) for ids in prompts]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    batch = Engine(model).batch([len(ids) + new for ids in prompts])
    step, found = dict(enumerate(prompts)), [[] for _ in prompts]
    for _ in range(new):
        ids = batch.best(step)
        for row, token in enumerate(ids):
            found[row].append(token)
        step = {row: [token] for row, token in enumerate(ids)}
    torch.set_num_threads(before)
    assert found == expected


def test_sequences_leave_a_batch_one_by_one(model: TelechatForCausalLM) -> None:
    prompts = [prompt(length) for length in (9, 120, 33)]
    expected = [alone(model, ids, 10) for ids in prompts]
    batch = Engine(model).batch([len(ids) + 10 for ids in prompts])
    found = [[token] for token in batch.best(dict(enumerate(prompts)))]
    for end, going in ((3, (0, 1, 2)), (6, (2, 0)), (10, (2,))):
        while len(found[going[0]]) < end:
            ids = batch.best({row: found[row][-1:] for row in going})
            for row, token in zip(going, ids, strict=True):
                found[row].append(token)
    assert found == [expected[0][:6], expected[1][:3], expected[2]]


@pytest.mark.parametrize("make", [random_model, float_model])
@torch.inference_mode()
def test_logits_of_a_batch_are_bit_for_bit_those_of_its_rows(make: Any) -> None:
    model = make()
    prompts = [prompt(length) for length in (1, 70, 7, 40, 8, 9, 3, 150, 20)]
    batch, runs = (
        Engine(model).batch([len(ids) + 3 for ids in prompts]),
        [Engine(model).run(len(ids) + 3) for ids in prompts],
    )
    step = dict(enumerate(prompts))
    for _ in range(3):
        found = batch.logits(step)
        for row, run in enumerate(runs):
            assert torch.equal(found[row], run.logits(step[row])[0])
        step = {row: [int(found[row].argmax())] for row in step}


@torch.inference_mode()
def test_states_of_whole_sequences_are_those_of_the_modules(model: TelechatForCausalLM) -> None:
    prompts = [prompt(length) for length in (60, 1, 129)]
    found = Engine(model).batch([len(ids) for ids in prompts]).states(prompts)
    for ids, states in zip(prompts, found, strict=True):
        expected = model.transformer(torch.tensor([ids])).last_hidden_state[0]
        assert torch.equal(states, expected)


def test_a_batch_does_not_write_past_a_capacity(model: TelechatForCausalLM) -> None:
    batch = Engine(model).batch([64, 128])
    batch.best({0: prompt(64), 1: prompt(70)})
    with pytest.raises(ValueError, match="64 \\+ 1 positions do not fit into 64"):
        batch.best({1: [7], 0: [9]})

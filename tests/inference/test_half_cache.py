"""Keys and values in half precision: rounded once as they are stored, with bfloat16 products too, and what cannot have them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telechat_kit.backends import cpu
from telechat_kit.backends.cpu_kernels import library
from telechat_kit.backends.cpu_kernels.operators import kernels
from telechat_kit.backends.cpu_kernels.panels import LANES
from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.inference.engine import CACHE_DTYPES, Engine, engine_for, set_cache_dtype
from telechat_kit.inference.generation import generate, generate_batch
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import NetworkRun, PreallocatedCache
from telechat_kit.model import TelechatForCausalLM
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.performance.roofline import model_size

pytestmark = pytest.mark.skipif(library.library() is None, reason=library.description())

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(params=[True, False], ids=["w8a8", "float"])
def model(request: pytest.FixtureRequest, tiny_w8a8_folder: Path, tiny_folder: Path) -> TelechatForCausalLM:
    return load_model(tiny_w8a8_folder if request.param else tiny_folder, device="cpu")


def prompt(length: int) -> list[int]:
    return torch.randint(6, 262, (length,), generator=torch.Generator().manual_seed(length)).tolist()


class RoundedCache(PreallocatedCache):
    """What the network's modules store, rounded to a type and widened again."""

    rounded: torch.dtype

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return super().update(key.to(self.rounded).float(), value.to(self.rounded).float(), layer)


def rounded_run(model: TelechatForCausalLM, capacity: int, dtype: torch.dtype) -> NetworkRun:
    run = NetworkRun(model, capacity)
    run.cache = RoundedCache.of(model, 1, capacity)
    run.cache.rounded = dtype
    return run


def rounded_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention that rounds queries and terms to bfloat16, as the kernels do: a single query in parts of the cache."""
    del mask
    rows, positions = query.shape[2], key.shape[2]
    key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], 1) for each in (key, value))
    scores = query.bfloat16().float() @ key.mT * query.shape[3] ** -0.5
    scores.masked_fill_(torch.ones(rows, positions, dtype=torch.bool).triu(1 + positions - rows), -torch.inf)
    parts = scores.split(kernels().part_positions() if rows == 1 else positions, dim=3)
    terms = torch.cat([(part - part.amax(3, keepdim=True)).exp().bfloat16().float() for part in parts], dim=3)
    weights = [(part.amax(3, keepdim=True) - scores.amax(3, keepdim=True)).exp() for part in parts]
    weighted = torch.cat([w.expand_as(part) for w, part in zip(weights, parts, strict=True)], dim=3)
    return terms * weighted @ value / (scores - scores.amax(3, keepdim=True)).exp().sum(3, keepdim=True)


@pytest.mark.parametrize(
    ("model", "cache_dtype"),
    # of W8A8, whose int8 steps make much of a rounding, attention in bfloat16 has no such reference
    [(True, "float16"), (False, "float16"), (False, "bfloat16")],
    indirect=["model"],
)
@pytest.mark.parametrize("length", [1, 65, 300])
@torch.inference_mode()
def test_logits_are_those_of_modules_whose_cache_is_rounded(
    model: TelechatForCausalLM, cache_dtype: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cache_dtype == "bfloat16":
        monkeypatch.setattr(cpu, "attention", rounded_attention)
    fast = Engine(model, cache_dtype=cache_dtype).run(length + 6)
    whole = Engine(model).run(length + 6)
    slow, step = rounded_run(model, length + 6, HALVES[cache_dtype]), prompt(length)
    # W8A8 keys are the modules' bit for bit; float ones to rounding, after which some round to the half beside
    exact_keys = isinstance(model.transformer.h[0].self_attention.query, W8A8Linear)
    allowed = 1e-5 if exact_keys else torch.finfo(HALVES[cache_dtype]).eps / 4
    for _ in range(6):
        found, expected, unrounded = fast.logits(step).clone(), slow.logits(step), whole.logits(step)
        largest = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=allowed * largest)
        step = [int(expected.argmax())]
    assert (found - unrounded).abs().max() > 1e-5 * largest


@torch.inference_mode()
def test_pairs_hold_the_keys_and_values_of_the_modules(tiny_w8a8_folder: Path) -> None:
    model, length = load_model(tiny_w8a8_folder, device="cpu"), 75
    fast, slow = Engine(model, cache_dtype="bfloat16").run(length), NetworkRun(model, length)
    fast.best(prompt(length))
    slow.logits(prompt(length))
    keys, values = fast.slots[:, 0]  # of the first block, before which no attention has rounded anything
    heads, capacity, dim = keys.shape
    keys = keys.view(heads, capacity // LANES, dim // 2, LANES, 2).transpose(2, 3)
    values = values.view(heads, capacity // 2, dim, 2).transpose(2, 3)
    for found, expected in zip((keys, values), slow.cache.slots[0, :, 0, :, :length], strict=True):
        assert torch.equal(found.reshape(heads, capacity, dim)[:, :length], expected.bfloat16())


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 129])
@torch.inference_mode()
def test_what_nobody_has_written_is_not_read(
    model: TelechatForCausalLM, cache_dtype: str, length: int
) -> None:
    clean, other = (Engine(model, cache_dtype=cache_dtype).run(length + 3) for _ in range(2))
    clean.slots.zero_()
    other.slots.fill_(torch.nan)
    step = prompt(length)
    for _ in range(3):
        expected = clean.logits(step).clone()
        assert torch.equal(other.logits(step), expected)
        step = [int(expected.argmax())]


@pytest.mark.parametrize("cache_dtype", HALVES)
def test_a_row_of_a_batch_is_what_it_is_alone(model: TelechatForCausalLM, cache_dtype: str) -> None:
    set_cache_dtype(model, cache_dtype)
    prompts = [prompt(length) for length in (1, 7, 64, 200)]
    assert generate_batch(model, prompts, 12) == [generate(model, ids, 12).token_ids for ids in prompts]


def test_a_position_takes_half_the_bytes(model: TelechatForCausalLM) -> None:
    whole, bytes_of = Engine(model), {}
    for cache_dtype in ("auto", *HALVES):
        set_cache_dtype(model, cache_dtype)
        engine = engine_for(model)
        assert engine is not None and engine is engine_for(model)
        bytes_of[cache_dtype] = engine.cache_bytes_per_position
        assert engine.run(64).slots.nbytes == 64 * engine.cache_bytes_per_position
        assert model_size("any", model).cache_bytes_per_token == engine.cache_bytes_per_position
    assert bytes_of["bfloat16"] == bytes_of["float16"] == bytes_of["auto"] // 2
    assert bytes_of["auto"] == whole.cache_bytes_per_position


def test_a_model_is_loaded_with_it(tiny_w8a8_folder: Path) -> None:
    half = load_model(tiny_w8a8_folder, "cpu", cache_dtype="bfloat16")
    engine, other = engine_for(half), engine_for(load_model(tiny_w8a8_folder, "cpu"))
    assert engine is not None and other is not None
    assert (engine.slot_dtype, other.slot_dtype) == (torch.bfloat16, torch.float32)


def test_an_unknown_type_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ParameterError, match=r'"int8" is unknown\. Use one of auto, bfloat16, float16'):
        load_model("no/such/folder", "cpu", cache_dtype="int8")


def test_a_model_of_the_modules_is_refused(tiny_w8a8_folder: Path) -> None:
    with pytest.raises(
        ParameterError, match=r"float tensors not float32 or bfloat16 on the CPU\. Set cache_dtype"
    ):
        load_model(tiny_w8a8_folder, "cpu", torch.float16, cache_dtype="float16")
    assert load_model(tiny_w8a8_folder, "cpu", torch.float16, cache_dtype="auto").dtype == torch.float16


@pytest.mark.parametrize(("cache_dtype", "fails"), [("float16", True), ("bfloat16", False), ("auto", False)])
def test_values_beyond_float16_are_said(tiny_folder: Path, cache_dtype: str, fails: bool) -> None:
    model = load_model(tiny_folder, "cpu")
    model.transformer.h[0].self_attention.key_value.weight.data *= 1e6
    run: Callable[[list[int]], int] = Engine(model, cache_dtype=cache_dtype).run(64).best
    if not fails:
        assert run(prompt(9)) >= 0
        return
    with pytest.raises(
        CheckpointError, match="float16 reaches to 65504: set cache_dtype to bfloat16 or auto"
    ):
        run(prompt(9))

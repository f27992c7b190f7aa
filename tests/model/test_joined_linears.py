"""Linears of one input as one product: the same values, and every reader still finds what it reads."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from grouped import grouped_config
from torch import Tensor, nn

from telechat_kit.backends import cpu
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import NetworkRun
from telechat_kit.model import TelechatForCausalLM
from telechat_kit.model.int8_linears import DynamicW8A8Linear, W8A8Linear
from telechat_kit.model.joined_linears import Joined, is_part, joined_of, prepare_linears
from telechat_kit.model.tiny import write_random
from telechat_kit.quantization import Calibration, Recipe, quantize

PROMPT = [4, 80, 90, 100, 5]
FOLDERS = ["tiny_folder", "tiny_w8a8_folder", "dynamic_folder", "llama_names_folder"]

Load = Callable[[bool], TelechatForCausalLM]


@pytest.fixture(scope="session")
def dynamic_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W8A8 form of `tiny_folder` with a scale for each token."""
    folder = tmp_path_factory.mktemp("joined") / "dynamic"
    calibration = Calibration("pydoc_data.topics", calibration_samples=1, calibration_tokens=16)
    quantize(tiny_folder, folder, Recipe("L0", activations="dynamic"), calibration, device="cpu")
    return folder


@pytest.fixture(scope="session")
def llama_names_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float checkpoint with query, key and value apart."""
    return write_random(tmp_path_factory.mktemp("joined") / "telechat3", grouped_config("telechat3", 6, 2))


@pytest.fixture(params=FOLDERS)
def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The model with its linears joined, as for a device that gains by it, or not."""
    folder: Path = request.getfixturevalue(request.param)

    def loaded(joined: bool) -> TelechatForCausalLM:
        monkeypatch.setattr(cpu, "joins_linears", joined)
        return load_model(folder, "cpu")

    return loaded


@torch.inference_mode()
def logits(model: TelechatForCausalLM) -> Tensor:
    run = NetworkRun(model, 16)
    run.logits(PROMPT)
    return run.logits([7])


def parts_of(model: TelechatForCausalLM) -> list[nn.Module]:
    return [module for module in model.modules() if is_part(module)]


def test_the_logits_and_the_state_dict_stay(load: Load) -> None:
    apart, joined = load(False), load(True)
    assert not parts_of(apart)
    assert len(parts_of(joined)) >= 4 * joined.config.n_layer
    torch.testing.assert_close(logits(joined), logits(apart), rtol=0, atol=1e-4)
    before, after = apart.state_dict(), joined.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_part_gives_its_own_tensors_and_multiplies_by_itself(load: Load) -> None:
    apart, joined = load(False), load(True)
    x = torch.randn(1, 3, apart.config.hidden_size, generator=torch.Generator().manual_seed(0))
    for name, part in joined.named_modules():
        if not is_part(part):
            continue
        linear = apart.get_submodule(name)
        assert isinstance(part, type(linear)) or type(linear).__mro__[1] in type(part).__mro__
        assert part.extra_repr()
        torch.testing.assert_close(part(x), linear(x), rtol=0, atol=1e-4)
        if isinstance(linear, nn.Linear):
            assert torch.equal(part.get_parameter("weight"), linear.weight)
            assert part.bias is None
        elif isinstance(linear, W8A8Linear | DynamicW8A8Linear):
            stored = linear.stored_tensors()
            assert all(torch.equal(tensor, stored[key]) for key, tensor in part.stored_tensors().items())  # type: ignore[operator, union-attr]


def test_a_state_dict_is_loaded_into_the_joined_form(load: Load) -> None:
    other, joined = load(False), load(True)
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    name = next(name for name in state if name.endswith(("query.weight", "q_proj.weight")))
    state[name] = state[name].flip(0)
    joined.load_state_dict(state)
    other.load_state_dict(state)
    assert parts_of(joined)
    torch.testing.assert_close(logits(joined), logits(other), rtol=0, atol=1e-4)


def test_a_linear_that_is_watched_or_replaced_is_called_by_itself(load: Load) -> None:
    model, seen = load(True), []
    expected, mlp = logits(model), model.transformer.h[0].get_submodule("mlp")
    gate, up = mlp.get_submodule("gate_proj"), mlp.get_submodule("up_proj")
    handle = gate.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
    assert len(seen) == 2
    handle.remove()
    assert joined_of(gate, up) is not None
    mlp.up_proj = nn.Sequential(up)
    assert joined_of(gate, mlp.get_submodule("up_proj")) is None
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)


def test_a_copy_of_a_model_is_joined_by_itself(load: Load) -> None:
    model = load(True)
    other = copy.deepcopy(model)
    joined = {id(module) for module in model.modules() if isinstance(module, Joined)}
    assert not joined & {id(part.joined) for part in parts_of(other)}
    torch.testing.assert_close(logits(other), logits(model), rtol=0, atol=1e-4)


def packed(offset: float, seed: int) -> W8A8Linear:
    generator = torch.Generator().manual_seed(seed)
    return W8A8Linear(
        {
            "weight": torch.randint(-128, 128, (32, 64), generator=generator, dtype=torch.int8),
            "input_scale": torch.tensor([0.03]),
            "input_offset": torch.tensor([offset]),
            "quant_bias": torch.arange(32, dtype=torch.int32),
            "deq_scale": torch.linspace(1e-3, 2e-3, 32),
        }
    )


def pair(first: nn.Module, second: nn.Module) -> nn.Module:
    parent = nn.Module()
    parent.one, parent.other = first, second
    prepare_linears(parent, ["one", "other"])
    return parent


def test_only_linears_of_one_kind_and_one_scale_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "joins_linears", True)
    joined = pair(packed(3, 0), packed(3, 1))
    assert joined_of(joined.one, joined.other) is not None
    for first, second in (
        (packed(3, 0), packed(4, 1)),
        (packed(3, 0), nn.Linear(64, 32)),
        (nn.Linear(64, 32), nn.Linear(64, 32).half()),
    ):
        apart = pair(first, second)
        assert joined_of(apart.one, apart.other) is None
        assert (apart.one, apart.other) == (first, second)


def test_a_missing_bias_counts_as_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "joins_linears", True)
    first, second = nn.Linear(64, 32), nn.Linear(64, 16, bias=False)
    x = torch.ones(2, 64)
    expected = first(x), second(x)
    parent = pair(first, second)
    for linear, y in zip((parent.one, parent.other), expected, strict=True):
        torch.testing.assert_close(linear(x), y)
    assert parent.state_dict().keys() >= {"one.weight", "one.bias", "other.weight"}

"""A model shared by two CPU processes gives what it gives in one: the same ids, and bit for bit where sums are integer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from grouped import grouped_config

from telechat_kit.errors import DeviceError, ParameterError
from telechat_kit.inference.generation import generate
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.parallel import Team, team_of
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.tiny import write_random
from telechat_kit.performance.cases import Grid
from telechat_kit.performance.measurement import measure_performance
from telechat_kit.precision import Evaluation, measure_precision
from telechat_kit.quantization import Calibration, Recipe, quantize

TWO = "cpu,cpu"
PROMPT = [11, 5, 200, 17, 42, 8, 99]


@pytest.fixture(scope="module", autouse=True)
def team() -> Iterator[None]:
    """The other process is started at the first load and ends with this file."""
    yield
    team_of(("cpu", "cpu")).close()
    team_of.cache_clear()


@pytest.fixture(params=["tiny_folder", "tiny_w8a8_folder", "dynamic_folder"])
def pair(request: pytest.FixtureRequest) -> tuple[TelechatForCausalLM, TelechatForCausalLM]:
    """A float, a static and a dynamic model: in one process, and in two."""
    folder = request.getfixturevalue(request.param)
    return load_model(folder, "cpu"), load_model(folder, TWO)


def test_two_processes_generate_the_ids_of_one(
    pair: tuple[TelechatForCausalLM, TelechatForCausalLM],
) -> None:
    one, two = pair
    for penalty in (1.0, 1.1):
        options = {"repetition_penalty": penalty}
        assert (
            generate(two, PROMPT, 48, **options).token_ids == generate(one, PROMPT, 48, **options).token_ids
        )


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["tiny_w8a8_folder", "dynamic_folder"])
def test_int8_sums_are_exact_so_logits_are_those_of_one_process(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    one, two = load_model(folder, "cpu"), load_model(folder, TWO)
    assert torch.equal(two(ids).logits, one(ids).logits)


@torch.inference_mode()
def test_float_sums_differ_by_rounding_only(tiny_folder: Path) -> None:
    ids = torch.tensor([PROMPT])
    one, two = load_model(tiny_folder, "cpu")(ids).logits, load_model(tiny_folder, TWO)(ids).logits
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4 * float(one.abs().max()))


@torch.inference_mode()
def test_padded_batches_caches_and_transformers_own_loop_work_as_in_one_process(
    tiny_w8a8_folder: Path,
) -> None:
    ids = torch.tensor([PROMPT, [3, 3, *PROMPT[2:]]])
    mask = torch.tensor([[1] * 7, [0, 0, *[1] * 5]])
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 3}
    one, two = load_model(tiny_w8a8_folder, "cpu"), load_model(tiny_w8a8_folder, TWO)
    assert torch.equal(two.generate(ids, **options), one.generate(ids, **options))
    own, shared = (
        model(torch.tensor([[7]]), past_key_values=model(ids[:1]).past_key_values).logits
        for model in (one, two)
    )
    assert torch.equal(shared, own)


def test_past_the_trained_length_both_processes_start_over(tiny_w8a8_folder: Path) -> None:
    prompt = [i % 200 + 6 for i in range(508)]  # trained for 512
    one, two = load_model(tiny_w8a8_folder, "cpu"), load_model(tiny_w8a8_folder, TWO)
    assert generate(two, prompt, 8).token_ids == generate(one, prompt, 8).token_ids


def test_precision_and_performance_run_on_two_devices_and_say_so(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"input": "hello"}\n', encoding="utf-8")
    small = Evaluation(
        lines, text_sequences=2, text_tokens=32, max_new_tokens=4, kinds_path="", source_sequences=0
    )
    alone, shared = (
        measure_precision(tiny_folder, tiny_w8a8_folder, small, device=device) for device in ("cpu", TWO)
    )
    assert shared.answers[0].w8a8_ids == alone.answers[0].w8a8_ids
    assert shared.divergence.kl_mean.value == pytest.approx(alone.divergence.kl_mean.value, rel=1e-3)
    assert shared.conditions.device_name == f"2 x {alone.conditions.device_name}"
    grid = Grid([4], [2], repeats=1, check_tokens=0)
    timed = measure_performance(tiny_folder, tiny_w8a8_folder, grid, run_folder=tmp_path, device=TWO)
    assert [size.cache_bytes_per_token for size in timed.sizes] == [
        2 * 4 * 32 * 4
    ] * 2  # half of 64, 4 blocks


def test_the_search_for_sources_needs_one_device_and_says_so(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"input": "hello"}\n', encoding="utf-8")
    with pytest.raises(ParameterError, match=r"cpu,cpu share\. Set source_sequences: 0"):
        measure_precision(
            tiny_folder,
            tiny_w8a8_folder,
            Evaluation(lines, source_sequences=2, kinds_path=""),
            device=TWO,
        )


def test_a_device_that_is_not_there_is_told_and_no_process_is_left_waiting() -> None:
    with pytest.raises(DeviceError, match=r'"npu:1" asked for, but torch_npu cannot be imported'):
        Team(("cpu", "npu:1"))


def test_a_process_can_be_in_one_team_only(tiny_folder: Path) -> None:
    load_model(tiny_folder, TWO)
    with pytest.raises(DeviceError, match="shares its models over other devices"):
        load_model(tiny_folder, "cpu,cpu,cpu,cpu")


def test_positions_of_one_s_own_are_refused(tiny_folder: Path) -> None:
    model, ids = load_model(tiny_folder, TWO), torch.arange(8)[None]
    with pytest.raises(DeviceError, match="takes no position_ids and no static cache"):
        model(ids, position_ids=ids + 3)


def test_embeddings_instead_of_ids_are_refused(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, TWO)
    with pytest.raises(DeviceError, match="takes token ids only"):
        model(inputs_embeds=torch.zeros(1, 2, 64))


def test_a_process_that_dies_is_told_and_does_not_hang(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, TWO)
    team = team_of(("cpu", "cpu"))
    team._others[0].kill()
    with pytest.raises(DeviceError, match="is gone"):
        generate(model, PROMPT, 4)
    team.close()
    team_of.cache_clear()
    assert generate(load_model(tiny_folder, TWO), PROMPT, 2).token_ids


@torch.inference_mode()
@pytest.mark.parametrize("form", ["telechat2", "telechat3"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 8), (12, 3), (6, 3)])
def test_groups_of_heads_are_split_evenly_or_held_by_both(
    form: str, heads: int, kv_heads: int, tmp_path: Path
) -> None:
    """8 heads of keys and values are 4 for each; of 3, both processes need the middle one."""
    source = write_random(tmp_path / "float", grouped_config(form, heads, kv_heads))
    few = Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=32)
    quantize(source, tmp_path / "w8a8", Recipe("L0", anti_outlier="m1"), few, device="cpu")
    ids = torch.tensor([PROMPT])
    for folder in (source, tmp_path / "w8a8"):
        one, two = load_model(folder, "cpu"), load_model(folder, TWO)
        assert two.transformer.h[0].self_attention.kv_heads == (4 if kv_heads == 8 else 3)
        assert generate(two, PROMPT, 32).token_ids == generate(one, PROMPT, 32).token_ids
    assert torch.equal(two(ids).logits, one(ids).logits)

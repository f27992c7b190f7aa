"""Float against W8A8 on the tiny model: every figure recomputed by hand from dumped logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from telechat_kit.errors import DataError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import CHUNK, evaluation_blocks, measure_divergence, measure_languages
from telechat_kit.precision.divergence import LANGUAGE_TOKENS, language_blocks, language_of
from telechat_kit.precision.positions import compare_positions
from telechat_kit.token_samples import Block

TEXTS = "params/data/texts-zh-en.jsonl"


def random_blocks(count: int, length: int) -> list[Block]:
    ids = np.random.default_rng(count).integers(6, 262, size=(count, length))
    return [Block(0, length, tuple(row.tolist())) for row in ids]


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def dumped(pair: Pair, block: Block, name: str) -> np.ndarray:
    """Log-probabilities in double precision `[T - 1, vocab]` from the logits of one forward pass."""
    with torch.inference_mode():
        logits = pair.models[name](torch.tensor([block.ids])).logits[0, :-1]
    return log_probabilities(logits.double().numpy())


def top_five_in_common(p: np.ndarray, q: np.ndarray) -> float:
    first, second = (np.argsort(-each, axis=-1)[..., :5].reshape(-1, 5) for each in (p, q))
    return float(
        np.mean([len(set(a) & set(b)) / 5 for a, b in zip(first.tolist(), second.tolist(), strict=True)])
    )


def test_a_model_does_not_diverge_from_itself(tiny_folder: Path) -> None:
    found = measure_divergence(Pair(tiny_folder, tiny_folder, "cpu"), random_blocks(3, 20))
    for estimate, exact in [(found.kl_mean, 0.0), (found.perplexity_ratio, 1.0), (found.top1_agreement, 1.0)]:
        assert (estimate.low, estimate.value, estimate.high) == (exact, exact, exact)
    assert found.kl_max == 0.0
    assert {estimate.value for estimate in found.kl_quantiles.values()} == {0.0}
    assert found.probability_change.rms.value == 0.0
    assert found.top5_agreement.value == 1.0
    assert found.perplexity_float == found.perplexity_w8a8
    assert (found.sequences, found.tokens) == (3, 57)


def test_every_figure_is_that_of_the_dumped_logits(pair: Pair) -> None:
    blocks = random_blocks(3, 25)
    p, q = (np.stack([dumped(pair, block, name) for block in blocks]) for name in ("float", "w8a8"))
    targets = np.array([block.ids[1:] for block in blocks])[..., None]
    loss_p, loss_q = (-np.take_along_axis(each, targets, -1) for each in (p, q))
    kl = (np.exp(p) * (p - q)).sum(-1)

    found = measure_divergence(pair, blocks)
    assert found.perplexity_float.value == pytest.approx(np.exp(loss_p.mean()), rel=1e-4)
    assert found.perplexity_w8a8.value == pytest.approx(np.exp(loss_q.mean()), rel=1e-4)
    assert found.perplexity_ratio.value == pytest.approx(np.exp(loss_q.mean() - loss_p.mean()), rel=1e-4)
    assert found.kl_mean.value == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-4)
    assert found.top1_agreement.value == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    for share in ("50", "99.9"):
        assert found.kl_quantiles[share].value == pytest.approx(np.quantile(kl, float(share) / 100), rel=1e-4)
    change = np.exp(-loss_q) - np.exp(-loss_p)
    assert found.probability_change.mean.value == pytest.approx(change.mean(), rel=1e-3)
    assert found.probability_change.rms.value == pytest.approx(np.sqrt((change**2).mean()), rel=1e-4)
    assert found.probability_change.quantiles["50"].value == pytest.approx(np.median(change), abs=1e-7)
    assert found.top5_agreement.value == pytest.approx(top_five_in_common(p, q))
    assert found.kl_mean.value > 1e-4  # the W8A8 model is really another one


def test_intervals_hold_their_figures(pair: Pair) -> None:
    found = measure_divergence(pair, random_blocks(6, 16))
    for estimate in (found.perplexity_float, found.perplexity_w8a8, found.kl_mean, found.top1_agreement):
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.coverage == 0.95


def test_blocks_longer_than_a_chunk_give_every_position(pair: Pair) -> None:
    (block,) = random_blocks(1, CHUNK + 9)
    found = measure_divergence(pair, [block])
    loss = -np.take_along_axis(dumped(pair, block, "float"), np.array(block.ids[1:])[:, None], -1)
    assert found.tokens == CHUNK + 8
    assert found.perplexity_float.value == pytest.approx(np.exp(loss.mean()), rel=1e-4)


def test_weights_that_overflow_are_named(tiny_folder: Path) -> None:
    pair = Pair(tiny_folder, tiny_folder, "cpu")
    with torch.no_grad():
        pair.models["w8a8"].transformer.h[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(
        DataError, match="the W8A8 logits are not finite at position 0 of the sequence that begins at token 0"
    ):
        measure_divergence(pair, random_blocks(1, 5))


def test_one_model_at_a_time_gives_the_same_figures(pair: Pair) -> None:
    short = Pair(pair.float_folder, pair.w8a8_folder, "cpu", memory="one")
    blocks = random_blocks(2, 40)
    assert measure_divergence(short, blocks) == measure_divergence(pair, blocks)


def test_logits_are_not_kept_in_memory_nor_on_disk(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits on the disk is the hidden states: a fraction of the logits even at this vocabulary."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sizes: list[int] = []
    forward = pair.models["w8a8"].lm_head.forward

    def watched(states: torch.Tensor) -> torch.Tensor:
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")))
        assert len(states) <= CHUNK
        return forward(states)

    monkeypatch.setattr(pair.models["w8a8"].lm_head, "forward", watched)
    compare_positions(pair, random_blocks(3, 200))
    states = 3 * 199 * pair.models["float"].config.hidden_size * 4
    assert states <= max(sizes) < 1.1 * states + 3000
    assert list(tmp_path.iterdir()) == []


def test_groups_of_positions_hold_every_position_once(pair: Pair) -> None:
    found = measure_divergence(pair, random_blocks(3, 50))
    assert [(group.name, group.tokens) for group in found.by_position] == [
        ("1–15", 45),
        ("16–31", 48),
        ("32–49", 54),
    ]
    weighted = sum(group.kl_mean.value * group.tokens for group in found.by_position) / found.tokens
    assert weighted == pytest.approx(found.kl_mean.value)


def test_the_bundled_texts_are_told_by_language(pair: Pair) -> None:
    found = measure_languages(pair, TEXTS)
    assert [group.name for group in found] == ["Chinese", "English"]
    for group in found:
        assert group.tokens == group.sequences * (LANGUAGE_TOKENS - 1) > 0
        assert group.kl_mean.low <= group.kl_mean.value <= group.kl_mean.high
    blocks = language_blocks(pair, TEXTS)
    chinese = measure_divergence(pair, blocks["Chinese"])
    assert found[0].kl_mean == chinese.kl_mean


@pytest.mark.parametrize(
    ("line", "language"),
    [
        ("量化是把浮点数换成整数", "Chinese"),
        ("Plain words.", "English"),
        ("用 GPU 推理", "English"),
        ("!?", "English"),
    ],
)
def test_the_language_is_that_of_most_letters(line: str, language: str) -> None:
    assert language_of(line) == language


def test_a_text_too_short_for_any_language_is_named(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text(json.dumps({"input": "a few words"}))
    with pytest.raises(DataError, match=r"short\.jsonl has no 128 tokens in one language"):
        measure_languages(pair, str(path))


@pytest.mark.parametrize("content", ["", " \n\t\n"])
@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_an_empty_text_is_named(pair: Pair, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}.*(is empty|holds no lines)"):
        evaluation_blocks(pair, str(tmp_path / name), 8, 1, 0)


def test_the_first_position_that_overflows_is_named(tiny_folder: Path) -> None:
    pair = Pair(tiny_folder, tiny_folder, "cpu")
    spoiled = torch.tensor([7, 9])
    norm = pair.models["float"].transformer.ln_f
    norm.register_forward_hook(lambda *call: call[2].index_fill(1, spoiled, float("nan")))
    with pytest.raises(
        DataError,
        match="the float logits are not finite at position 7 of the sequence that begins at token 5",
    ):
        measure_divergence(pair, [Block(5, 35, tuple(range(10, 40)))])

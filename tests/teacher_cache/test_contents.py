"""What is kept for each objective, how it lies in a row, and that it comes back as it was."""

import pytest
import torch
from tolerances import CACHE_LOG_PROBABILITY, CACHE_TOTAL_PROBABILITY

from kd_megatron.errors import RecipeError
from kd_megatron.teacher_cache.contents import Contents, kept_needs
from kd_megatron.tensors import ModelShape, Needs, TopLogits

BASE = ModelShape(num_layers=12, hidden_size=768, num_attention_heads=12, vocab_size=30_522)


def contents(needs: Needs, teacher: ModelShape = BASE, **changes) -> Contents:
    settings = {"inputs": "masked", "length": 128, "num_masked": 19, "top_k": 64, "temperature": 2.0}
    return Contents(needs=kept_needs(needs), teacher=teacher, **{**settings, **changes})


MINILM = Needs(queries=(12,), keys=(12,), values=(12,))
EVERY_SECOND = tuple(range(2, 13, 2))
TINYBERT = Needs(queries=EVERY_SECOND, keys=EVERY_SECOND, hidden=(0, *EVERY_SECOND))


@pytest.mark.parametrize(
    ("needs", "name", "hidden", "bytes_per_token"),
    [
        (MINILM, "masked-hidden11", (11,), 1536),
        (TINYBERT, "masked-hidden0-12", tuple(range(13)), 13 * 1536),
        (Needs(logits=True), "masked-top64-T2", (), 19 * (64 * 4 + 4) / 128),
        (Needs(logits=True, hidden=(12,)), "masked-hidden12-top64-T2", (12,), 1536 + 19 * (64 * 4 + 4) / 128),
        (Needs(queries=(1,), hidden=(0, 3, 5)), "masked-hidden0.3.5", (0, 3, 5), 3 * 1536),
    ],
)
def test_the_least_is_kept(needs: Needs, name: str, hidden: tuple[int, ...], bytes_per_token: float) -> None:
    kept = contents(needs)
    assert (kept.name, kept.needs.hidden, kept.needs.logits) == (name, hidden, needs.logits)
    assert 0 <= kept.row_bytes / 128 - bytes_per_token < 8 / 128
    assert kept.row_bytes % 8 == 0


def test_logits_everywhere_are_refused() -> None:
    with pytest.raises(RecipeError, match="positions: masked"):
        kept_needs(Needs(all_logits=True))


def test_more_tokens_than_there_are_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"top_k 64.* 40 tokens"):
        contents(Needs(logits=True), ModelShape(2, 8, 2, vocab_size=40))


@pytest.mark.parametrize("vocab_size", [300, 70_000])
@pytest.mark.parametrize("num_masked", [1, 3])
def test_rows_come_back(vocab_size: int, num_masked: int) -> None:
    shape = ModelShape(num_layers=4, hidden_size=5, num_attention_heads=1, vocab_size=vocab_size)
    needs = Needs(hidden=(0, 4), queries=(3,), logits=True)
    kept = contents(needs, shape, length=7, num_masked=num_masked, top_k=9)
    generator = torch.Generator().manual_seed(0)
    hidden = {layer: torch.randn(6, 7, 5, generator=generator) for layer in (0, 2, 4)}
    logits = 4 * torch.randn(6, num_masked, vocab_size, generator=generator)
    log_probabilities, token_ids = logits.log_softmax(-1).topk(9)
    assert int(token_ids.max()) > vocab_size / 2
    rest = torch.log1p(-log_probabilities.exp().sum(-1))
    rows = kept.encode(hidden, TopLogits(log_probabilities, token_ids, rest, 2.0))
    assert rows.shape == (6, kept.row_bytes)
    back, top = kept.decode(rows)
    assert top is not None
    assert all(torch.equal(back[layer], states.bfloat16()) for layer, states in hidden.items())
    assert torch.equal(top.token_ids, token_ids)
    torch.testing.assert_close(top.log_probabilities, log_probabilities, rtol=CACHE_LOG_PROBABILITY, atol=2e-3)
    total = top.log_probabilities.double().exp().sum(-1) + top.log_rest.double().exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=CACHE_TOTAL_PROBABILITY, atol=0)


def test_improbable_tokens_do_not_become_minus_infinity() -> None:
    kept = contents(Needs(logits=True), ModelShape(1, 8, 1, vocab_size=4), num_masked=1, top_k=2)
    top = TopLogits(torch.tensor([[[0.0, -1e5]]]), torch.tensor([[[1, 2]]]), torch.tensor([[-torch.inf]]), 2.0)
    _, back = kept.decode(kept.encode({}, top))
    assert back is not None
    assert back.log_probabilities[0, 0, 0] == 0
    assert -7e4 < back.log_probabilities[0, 0, 1] < -5e4
    assert back.log_rest[0, 0] == -torch.inf

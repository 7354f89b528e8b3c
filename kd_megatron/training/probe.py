"""The probe: a masked-language-model head that is trained on a frozen student until it has converged.

It has the form of the student's own head and begins where every student's head began: at the head of the study's first
weights, its decoder at the student's own embeddings. So a trained head is one of the heads that it can become, and a
probe that reads more than that head has not converged.

Training goes over a fixed set of windows, whose frozen states are computed once and kept, in two stages: first without
the decoder, which has most weights and the least need of training, then with it. A stage ends when a pass over the set
lowers the loss on a slice of other windows by less than `FEWEST_NATS`; the best head on that slice is kept. Rule,
windows, seeds and the most steps are the same for every student (docs/fairness.md, clause 8).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from kd_megatron.models.taps import HEADS, transform
from kd_megatron.ranks import dist
from kd_megatron.recipe import ValidationRecipe
from kd_megatron.tensors import IGNORED

PROBE_SEED = 20_240_619  # of the probe's windows and their order: the same in every run of every study
BATCH_SIZE = 16  # windows of a step, over all ranks
FEWEST_NATS = 0.005  # that a pass must gain on the slice for its stage to go on
DECODER_RATE = 0.3  # of the learning rate, in the stage that trains the decoder too
SMOOTHING = 0.5  # of a token's count, where the bias begins at logarithms of frequencies


@dataclass
class States:
    """Frozen hidden states of this rank's windows at their masked slots, and what was masked there."""

    hidden: Tensor  # [W, K, D] float32
    labels: Tensor  # [W, K] int64, IGNORED where a slot is not used


@dataclass
class Trained:
    """A trained probe and how it came to be."""

    head: "ProbeHead"
    curve: list[float] = field(default_factory=list)  # nats on the slice: at the beginning, then after each pass
    num_steps: int = 0
    converged: bool = True  # whether both stages ended by the rule, not by the most steps


class ProbeHead(nn.Module):
    """An MLM head of its own: hidden states [..., D] -> logits [..., V]."""

    def __init__(self, start: "FirstHead", embeddings: Tensor) -> None:
        super().__init__()
        self.top = copy.deepcopy(start.top)
        self.decoder = nn.utils.skip_init(nn.Linear, embeddings.shape[1], embeddings.shape[0])  # draws no numbers
        self.decoder.weight.data.copy_(embeddings)
        self.decoder.bias.data.copy_(start.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states."""
        logits: Tensor = self.decoder(transform(self.top, hidden))
        return logits


@dataclass
class FirstHead:
    """The MLM head of a model at its first weights, without the decoder's weight, which is the embeddings'."""

    top: nn.Module
    bias: Tensor  # [V]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "FirstHead":
        """A copy of the head that ``model`` has now, float32."""
        decoder: Any = model.get_output_embeddings()
        head = getattr(model, HEADS[model.config.model_type])
        top = copy.deepcopy(head, {id(decoder): None, id(decoder.bias): None})  # all of it but the decoder
        return cls(top.float(), decoder.bias.detach().float().clone())

    def with_frequencies(self, counts: Tensor) -> "FirstHead":
        """With a bias of log frequencies (from ``counts`` [V]) where it is all zeros, as random first weights have it.

        How often tokens come is what a head learns first; beginning there saves every probe the same passes.
        """
        if self.bias.any():
            return self
        smoothed = counts.double() + SMOOTHING
        return FirstHead(self.top, torch.log(smoothed / smoothed.sum()).to(self.bias))


def train_probe(
    start: FirstHead,
    embeddings: Tensor,
    train: States,
    held_out: States,
    recipe: ValidationRecipe,
    bf16: bool,
    look: Callable[[int], None],
) -> Trained:
    """Train a probe until it has converged. Collective: ranks have as many windows each, gradients are averaged.

    Args:
        start: where it begins.
        embeddings: the student's input embeddings [V, D] float32, at which the decoder begins.
        train: states of the windows that it learns from.
        held_out: states of the slice that says when to stop.
        recipe: the learning rate, and the most steps.
        bf16: whether products are computed in bfloat16 (autocast), as the student's are.
        look: called before each step with its number; may raise to stop.
    """
    counts = dist.all_reduce(_counts(train.labels, embeddings.shape[0]))
    device = train.hidden.device
    probe = ProbeHead(start.with_frequencies(counts), embeddings).to(device)
    found = Trained(probe, [_mean_loss(probe, held_out, bf16)])
    generators = [torch.Generator().manual_seed(PROBE_SEED + lane) for lane in my_lanes(len(train.labels))]
    for trains_decoder, rate in ((False, 1.0), (True, DECODER_RATE)):
        probe.decoder.weight.requires_grad_(trains_decoder)
        _train_stage(found, rate * recipe.probe_learning_rate, train, held_out, recipe, bf16, generators, look)
    probe.eval()
    return found


def _train_stage(
    found: Trained,
    learning_rate: float,
    train: States,
    held_out: States,
    recipe: ValidationRecipe,
    bf16: bool,
    generators: list[torch.Generator],
    look: Callable[[int], None],
) -> None:
    """Passes until one gains too little; the best head on the slice is left in place."""
    probe = found.head
    trained = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    best, best_loss = copy.deepcopy(probe.state_dict()), min(found.curve)
    gained = FEWEST_NATS
    while gained >= FEWEST_NATS and found.converged:
        for rows in _batches(len(train.labels), generators):
            if found.num_steps >= recipe.probe_steps:
                found.converged = False
                break
            look(found.num_steps)
            _step(probe, trained, optimizer, States(train.hidden[rows], train.labels[rows]), bf16)
            found.num_steps += 1
        loss = _mean_loss(probe, held_out, bf16)
        found.curve.append(loss)
        gained = best_loss - loss
        if gained > 0:
            best, best_loss = copy.deepcopy(probe.state_dict()), loss
    probe.load_state_dict(best)


def my_lanes(num_windows: int) -> range:
    """The lanes of this rank, which has ``num_windows`` windows.

    Window i of all ranks' is in lane i modulo the number of lanes, and a batch has one window of each lane, so that
    batches are the same for any number of ranks that divides `BATCH_SIZE`.
    """
    ranks = dist.world_size()
    each = min(max(1, BATCH_SIZE // ranks), num_windows)
    return range(dist.rank(), each * ranks, ranks)


def _batches(num_windows: int, generators: list[torch.Generator]) -> list[Tensor]:
    """One pass over this rank's windows, each lane in an order of its own; every rank has as many batches."""
    lanes = len(generators)
    orders = [torch.randperm(num_windows // lanes, generator=one) * lanes + lane for lane, one in enumerate(generators)]
    return list(torch.stack(orders, dim=1))


def _step(
    probe: ProbeHead, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer, batch: States, bf16: bool
) -> None:
    targets = dist.all_reduce((batch.labels != IGNORED).sum().double().cpu()).item()
    optimizer.zero_grad()
    loss, _ = score(probe, batch.hidden, batch.labels, bf16)
    (loss / max(targets, 1.0)).backward()
    for parameter in trained:
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
    optimizer.step()


@torch.no_grad()
def _mean_loss(probe: ProbeHead, states: States, bf16: bool) -> float:
    """Mean loss in nats per masked token, over all ranks' windows."""
    totals = torch.zeros(2, dtype=torch.float64)
    for hidden, labels in zip(states.hidden.split(BATCH_SIZE), states.labels.split(BATCH_SIZE), strict=True):
        totals[0] += score(probe, hidden, labels, bf16)[0].cpu()
        totals[1] += (labels != IGNORED).sum().cpu()
    loss, count = dist.all_reduce(totals).tolist()
    return float(loss / max(count, 1.0))


def _counts(labels: Tensor, vocab_size: int) -> Tensor:
    """How often each token [V] is among ``labels``, float64 on the CPU."""
    return torch.bincount(labels[labels != IGNORED].cpu(), minlength=vocab_size).double()


def score(probe: nn.Module, hidden: Tensor, labels: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    """`loss_and_hits` of a head on hidden states [W, K, D]."""
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=bf16):
        logits = probe(hidden)
    return loss_and_hits(logits, labels)


def loss_and_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (nats) and number of right predictions of ``logits`` [B, K, V] for ``labels`` [B, K]."""
    flat, targets = logits.flatten(0, 1).float(), labels.flatten()
    loss = cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum").double()
    return loss, (flat.argmax(-1) == targets).sum().double()

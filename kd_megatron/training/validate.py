"""One validation for all arms: held-out masked-language-model loss at fixed masks (docs/fairness.md, clause 8).

Objectives that train an MLM head are measured with it. All objectives are measured with a probe: a fresh head of the
same form, its decoder starting from the student's own embeddings, trained on the frozen student for a fixed number
of steps on the same batches. The probe alone is comparable between arms, and between pools: its text is drawn from all
of the training split, whatever the student's pool is capped at. On a small pool a probe would learn from states of text
that its student knows by heart, and then read them on text that it does not know.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kd_megatron.data.loader import Loader
from kd_megatron.errors import DataError
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.ranks import dist, stages
from kd_megatron.recipe import DataRecipe, ValidationRecipe
from kd_megatron.tensors import IGNORED, Batch, Needs, Taps

PROBE_SEED = 20_240_619  # of the probe's head and batches: the same in every run of every study
PROBE_BATCH_SIZE = 32
EVALUATION_BATCH_SIZE = 32
BATCHES_BETWEEN_LOOKS = 8  # after so many, the ranks agree on whether to stop


class _Stopping(Exception):
    """Some rank was asked to stop."""


class ProbeHead(nn.Module):
    """A BERT-style MLM head: dense, GELU, layer norm, decoder. [N, D] -> [N, V]."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        vocab_size, width = embeddings.shape
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.decoder = nn.Linear(width, vocab_size)
        self.decoder.weight.data.copy_(embeddings)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states."""
        logits: Tensor = self.decoder(self.transform(hidden))
        return logits


class Validation:
    """Measures a student on the held-out split.

    Args:
        data: the study's data; its ``valid`` split is read with fixed masks, the probe's text not capped.
        recipe: how many samples, and the probe's steps and learning rate.
        bf16: whether the probe computes in bfloat16 (autocast), as the student does.
    """

    def __init__(self, data: DataRecipe, recipe: ValidationRecipe, device: torch.device, bf16: bool) -> None:
        self.recipe, self.device, self.bf16 = recipe, device, bf16
        self.held_out = Loader(data, run_seed=0, split="valid")
        all_text = data.model_copy(update={"unique_tokens": None})
        self.probe_data = Loader(all_text, run_seed=PROBE_SEED, split="train")
        self.num_samples = min(recipe.num_samples, self.held_out.num_windows - recipe.skip_samples)
        if self.num_samples < 1:
            raise DataError(
                given=f"{self.held_out.num_windows} held-out windows, of which {recipe.skip_samples} are left out",
                expected="windows after those: trials of a tuning choose by others than the ones that are reported",
                fix="prepare the text with a larger valid_fraction, or make validation.num_samples smaller",
            )

    def measure(
        self,
        student: TappedEncoder,
        embeddings: Tensor,
        has_trained_head: bool,
        stops: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Loss (nats per masked token) and accuracy, by probe and, where it is trained, by the student's own head.

        Args:
            student: in any mode; it is put back into that mode.
            embeddings: its input embeddings [V, D], whole, float32.
            stops: whether this rank was asked to stop. Once one was, the measurement ends on all ranks.

        Returns:
            None when it was cut short.
        """
        last = student.model.config.num_hidden_layers
        frozen = TappedEncoder(student.model, Needs(hidden=(last,), logits=has_trained_head))
        was_training = student.training
        student.eval()
        frozen.eval()
        try:
            probe = self._train_probe(frozen, embeddings, last, stops)
            return self._evaluate(frozen, probe, last, has_trained_head, stops)
        except _Stopping:
            return None
        finally:
            student.train(was_training)

    def _train_probe(
        self, student: TappedEncoder, embeddings: Tensor, last: int, stops: Callable[[], bool]
    ) -> ProbeHead:
        """The same head, batches and steps for every student; gradients are summed over ranks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(PROBE_SEED)
            probe = ProbeHead(embeddings).to(self.device)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=self.recipe.probe_learning_rate, fused=True)
        for step in range(self.recipe.probe_steps):
            _look(step, stops)
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.probe_learning_rate * (1.0 - step / self.recipe.probe_steps)
            batch = self._my_part(self.probe_data.batch(step * PROBE_BATCH_SIZE, PROBE_BATCH_SIZE))
            with torch.no_grad():
                states = _masked_states(student(batch), batch, last)
            targets = dist.all_reduce((batch.labels != IGNORED).sum().double().cpu()).item()
            optimizer.zero_grad()
            loss, _ = self._score(probe, states, batch.labels)
            (loss / targets).backward()
            for parameter in probe.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
            optimizer.step()
        return probe.eval()

    @torch.no_grad()
    def _evaluate(
        self, student: TappedEncoder, probe: ProbeHead, last: int, own_head: bool, stops: Callable[[], bool]
    ) -> dict[str, float]:
        totals = torch.zeros(5, dtype=torch.float64)  # targets; loss and hits of the probe; loss and hits of the head
        for index, first in enumerate(range(0, self.num_samples, EVALUATION_BATCH_SIZE)):
            _look(index, stops)
            size = min(EVALUATION_BATCH_SIZE, self.num_samples - first)
            batch = self._my_part(self.held_out.batch(self.recipe.skip_samples + first, size))
            taps = student(batch)
            totals[0] += float((batch.labels != IGNORED).sum())
            totals[1:3] += torch.stack(self._score(probe, _masked_states(taps, batch, last), batch.labels)).cpu()
            if own_head:
                assert taps.logits is not None
                logits = student.decoder(taps.logits.states)  # by its module, whose weights ZeRO-3 gathers
                totals[3:5] += torch.stack(loss_and_hits(logits, batch.labels)).cpu()
        count, *sums = dist.all_reduce(totals).tolist()
        names = ("probe_mlm_loss", "probe_mlm_accuracy", *(("mlm_loss", "mlm_accuracy") if own_head else ()))
        return {name: value / count for name, value in zip(names, sums, strict=False)}

    def _score(self, probe: ProbeHead, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = probe(states)
        return loss_and_hits(logits, labels)

    def _my_part(self, batch: Batch) -> Batch:
        """This rank's rows; every rank has at least one, so that collective calls inside the student match."""
        size, ranks = len(batch.sample_ids), dist.world_size()
        rows = torch.arange(size)[dist.rank() :: ranks] if size >= ranks else torch.arange(size)
        mine = batch.at(rows)
        if size < ranks and not dist.is_main():  # what it says does not count
            mine = replace(mine, labels=torch.full_like(mine.labels, IGNORED))
        return mine.to(self.device)


def _look(index: int, stops: Callable[[], bool]) -> None:
    """Mark the progress of a batch and, now and then, agree with the other ranks on whether to stop."""
    stages.beat()
    if index % BATCHES_BETWEEN_LOOKS == 0 and dist.any_rank(stops()):
        raise _Stopping


def _masked_states(taps: Taps, batch: Batch, last: int) -> Tensor:
    """The last hidden states at the masked slots, [B, K, D] float32."""
    return batch.at_slots(taps.hidden[last]).float()


def loss_and_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (nats) and number of right predictions of ``logits`` [B, K, V] for ``labels`` [B, K]."""
    flat, targets = logits.flatten(0, 1).float(), labels.flatten()
    loss = cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum").double()
    return loss, (flat.argmax(-1) == targets).sum().double()

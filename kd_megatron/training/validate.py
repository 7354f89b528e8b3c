"""One validation for all arms: held-out masked-language-model loss at fixed masks (docs/fairness.md, clause 8).

Objectives that train an MLM head are measured with it. All objectives are measured with a probe (`training.probe`): a
head that is trained on the frozen student until it has converged. The probe alone is comparable between arms, and
between pools: its text is drawn from all of the training split, whatever the student's pool is capped at. On a small
pool a probe would learn from states of text that its student knows by heart, and then read them on text that it does
not know.

An objective that reads no state above some layer never trains the layers above it. Such a student is probed at the
highest layer that was trained as well as at the top.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kd_megatron.data.loader import Loader
from kd_megatron.errors import DataError
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.ranks import dist, stages
from kd_megatron.recipe import DataRecipe, ValidationRecipe
from kd_megatron.tensors import IGNORED, Batch, Needs
from kd_megatron.training.probe import (
    PROBE_SEED,
    FirstHead,
    ProbeHead,
    States,
    Trained,
    loss_and_hits,
    score,
    train_probe,
)

EVALUATION_BATCH_SIZE = 32
BATCHES_BETWEEN_LOOKS = 8  # after so many, the ranks agree on whether to stop
SLICE = 8  # windows that a probe learns from, for each one of the slice that says when it has converged


class _Stopping(Exception):
    """Some rank was asked to stop."""


class Validation:
    """Measures a student on the held-out split.

    Args:
        data: the study's data; its ``valid`` split is read with fixed masks, the probe's text not capped.
        recipe: how many samples, and the probe's windows, most steps and learning rate.
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
        start: FirstHead | None = None,
        stops: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any] | None:
        """Loss (nats per masked token) and accuracy, by probe and, where it is trained, by the student's own head.

        Args:
            student: in any mode; it is put back into that mode.
            embeddings: its input embeddings [V, D], whole, float32.
            start: where the probe begins, the same for all students of a study; None: at the head that it has now.
            stops: whether this rank was asked to stop. Once one was, the measurement ends on all ranks.

        Returns:
            ``probe_mlm_loss`` and ``probe_mlm_accuracy``, ``mlm_loss`` and ``mlm_accuracy`` where a head is trained,
            and how the probe was trained: ``probe_converged``, ``probe_steps``, ``probe_curve`` (nats on the slice);
            the same for ``probe_tap_...``, with ``probe_tap_layer``, where the top layers were never trained. None when
            it was cut short.
        """
        last = student.model.config.num_hidden_layers
        trained = student.needs.num_whole_layers(last)
        layers = {"probe": last} | ({"probe_tap": trained} if 0 < trained < last else {})
        frozen = TappedEncoder(student.model, Needs(hidden=tuple(sorted(layers.values())), logits=has_trained_head))
        was_training = student.training
        student.eval()
        frozen.eval()
        try:
            probes = self._train_probes(frozen, embeddings, layers, start or FirstHead.of(student.model), stops)
            scores = self._evaluate(frozen, {name: probe.head for name, probe in probes.items()}, layers, stops)
            for name, probe in probes.items():
                facts = {"converged": probe.converged, "steps": probe.num_steps, "curve": probe.curve}
                scores |= {f"{name}_{key}": value for key, value in facts.items()}
            return scores | ({"probe_tap_layer": trained} if "probe_tap" in layers else {})
        except _Stopping:
            return None
        finally:
            student.train(was_training)

    def _train_probes(
        self,
        student: TappedEncoder,
        embeddings: Tensor,
        layers: dict[str, int],
        start: FirstHead,
        stops: Callable[[], bool],
    ) -> dict[str, Trained]:
        """One probe for each of ``layers`` (name -> layer), on states of the same windows."""
        ranks = dist.world_size()
        total = min(self.recipe.probe_windows + -(-self.recipe.probe_windows // SLICE), self.probe_data.num_windows)
        num_slice = max(1, total // (SLICE + 1) // ranks)  # of each rank
        num_train = max(1, total // ranks - num_slice)
        train = self._states(student, layers, 0, num_train * ranks, stops)
        held_out = self._states(student, layers, num_train * ranks, num_slice * ranks, stops)
        return {
            name: train_probe(
                *(start, embeddings, train[name], held_out[name], self.recipe, self.bf16),
                lambda step: _look(step, stops),
            )
            for name in layers
        }

    @torch.no_grad()
    def _states(
        self, student: TappedEncoder, layers: dict[str, int], first: int, num_windows: int, stops: Callable[[], bool]
    ) -> dict[str, States]:
        """Frozen states of this rank's part of the probe's windows ``first``, ..., of each layer by its name."""
        hidden: dict[str, list[Tensor]] = {name: [] for name in layers}
        labels = []
        for index, at in enumerate(range(0, num_windows, EVALUATION_BATCH_SIZE * dist.world_size())):
            _look(index, stops)
            size = min(EVALUATION_BATCH_SIZE * dist.world_size(), num_windows - at)
            batch = self._my_part(self.probe_data.batch(first + at, size)).to(self.device)
            taps = student(batch)
            labels.append(batch.labels)
            for name, layer in layers.items():
                hidden[name].append(batch.at_slots(taps.hidden[layer]).float())
        return {name: States(torch.cat(found), torch.cat(labels)) for name, found in hidden.items()}

    @torch.no_grad()
    def _evaluate(
        self, student: TappedEncoder, probes: dict[str, ProbeHead], layers: dict[str, int], stops: Callable[[], bool]
    ) -> dict[str, Any]:
        names = [*probes, *([""] if student.needs.logits else [])]  # "": the student's own head
        totals = torch.zeros(1 + 2 * len(names), dtype=torch.float64)  # targets; loss and hits of each
        for index, first in enumerate(range(0, self.num_samples, EVALUATION_BATCH_SIZE)):
            _look(index, stops)
            size = min(EVALUATION_BATCH_SIZE, self.num_samples - first)
            mine = self._my_part(self.held_out.batch(self.recipe.skip_samples + first, size))
            totals[0] += float((mine.labels != IGNORED).sum())  # while they are on the CPU: no wait for the device
            batch = mine.to(self.device)
            taps = student(batch)
            found = [
                score(probe, batch.at_slots(taps.hidden[layers[name]]).float(), batch.labels, self.bf16)
                for name, probe in probes.items()
            ]
            if taps.logits is not None:  # by the decoder's module, whose weights ZeRO-3 gathers
                found.append(loss_and_hits(student.decoder(taps.logits.states), batch.labels))
            totals[1:] += torch.stack([value.cpu() for pair in found for value in pair])
        count, *sums = dist.all_reduce(totals).tolist()
        keys = [f"{name}_mlm_{what}".lstrip("_") for name in names for what in ("loss", "accuracy")]
        return {key: value / count for key, value in zip(keys, sums, strict=True)}

    def _my_part(self, batch: Batch) -> Batch:
        """This rank's rows, on the CPU; every rank has one at least, so that collective calls in the student match."""
        size, ranks = len(batch.sample_ids), dist.world_size()
        rows = torch.arange(size)[dist.rank() :: ranks] if size >= ranks else torch.arange(size)
        mine = batch.at(rows)
        if size < ranks and not dist.is_main():  # what it says does not count
            mine = replace(mine, labels=torch.full_like(mine.labels, IGNORED))
        return mine


def _look(index: int, stops: Callable[[], bool]) -> None:
    """Mark the progress of a batch and, now and then, agree with the other ranks on whether to stop."""
    stages.beat()
    if index % BATCHES_BETWEEN_LOOKS == 0 and dist.any_rank(stops()):
        raise _Stopping

"""A teacher that no window is put through twice: what an objective needs of it is kept (docs/teacher_cache.md).

A micro-batch of which all rows are kept is read, on the thread that prepares batches. If one is missing, the teacher
runs on the whole micro-batch, so that shapes stay what they were compiled for, and a resumed run makes the very rows
that the killed one would have made. The loss always sees a row as it is stored, whether read or just written.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_megatron.console.logs import warn
from kd_megatron.data.loader import Loader
from kd_megatron.files.manifest import weights_hash
from kd_megatron.kernels.vocab_kl.top_logits import top_logits_of_head
from kd_megatron.ledger import Ledger
from kd_megatron.models.build import shape_of
from kd_megatron.models.layers import layers_of, project
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.objectives.base import Objective
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe
from kd_megatron.teacher_cache.contents import Contents, kept_needs, refuse_dropout
from kd_megatron.teacher_cache.opening import GIB, OpenStore, identity_of
from kd_megatron.teacher_cache.store import FillCost
from kd_megatron.tensors import Batch, Taps, TopLogits
from kd_megatron.training.teacher import Teacher

JUDGED_ROWS = 256  # read before reading is compared with the teacher
OTHERS = "teacher_for_others"  # the ledger's account of filling beyond this run's share


@dataclass(frozen=True)
class KeptRows:
    """What the store had of a micro-batch when it was looked up. Numbers stay on the host: deciding needs no sync."""

    data: Tensor  # [B, row_bytes] uint8; no meaning where a row is absent
    rows: NDArray[np.int64]  # [B]
    present: NDArray[np.bool_]  # [B]
    first_visits: int  # windows that this run meets for the first time

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same with the bytes on ``device``."""
        return replace(self, data=self.data.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the bytes' memory until what ``stream`` computes with them is done."""
        self.data.record_stream(stream)

    def pin_memory(self) -> Self:
        """The same with the bytes in page-locked memory."""
        return replace(self, data=self.data.pin_memory())


class ReadingSpeed:
    """How long reading takes, beside the teacher whose place it takes: a slow disk makes a cached arm slower."""

    def __init__(self) -> None:
        self._seconds, self._rows, self._warned = 0.0, 0, False

    def add(self, seconds: float, num_rows: int) -> None:
        """``num_rows`` took ``seconds``, all reading threads together."""
        self._seconds, self._rows = self._seconds + seconds, self._rows + num_rows

    @property
    def seconds_per_row(self) -> float | None:
        """The mean; None before anything was read."""
        return self._seconds / self._rows if self._rows else None

    def warn_if_slower(self, cost: FillCost | None) -> None:
        """Say once that the teacher itself would be faster, where enough was read to tell."""
        own, teacher = self.seconds_per_row, None if cost is None else cost.teacher_seconds_per_row
        if self._warned or self._rows < JUDGED_ROWS or own is None or teacher is None or own <= teacher:
            return
        self._warned = True
        warn(
            f"the teacher cache is slower than the teacher: reading a window takes {1e3 * own:.3g} ms, the teacher "
            f"{1e3 * teacher:.3g} ms; remove teacher.cache from the recipe, or put it on a faster disk"
        )


@dataclass(frozen=True)
class LookedUp(Batch):
    """A micro-batch with what the store has of it."""

    kept: KeptRows


class CachedTeacher(Teacher):
    """Called as a `Teacher` is; charges the ledger by docs/fairness.md, clause 14.

    Args:
        teacher: with what the objective needs as its ``needs``; it may be in pieces.
        filler: the same model, with what is kept as its ``needs``.
        store: of this run alone; closed with the teacher.
        loader: says which row a sample has, and whether the run meets its window for the first time.
        num_students: among whom the filling is divided.
    """

    def __init__(
        self,
        teacher: Teacher,
        filler: TappedEncoder,
        contents: Contents,
        store: OpenStore,
        loader: Loader,
        ledger: Ledger,
        num_students: int,
    ) -> None:
        super().__init__(teacher.encoder, teacher.pieces, float8_errors=teacher.float8_errors)
        self._filler, self.contents, self.store = Teacher(filler, teacher.pieces), contents, store
        self._loader, self._ledger, self._num_students = loader, ledger, num_students
        self._layers = layers_of(teacher.encoder.model.base_model)
        self._num_read = self._num_filled = 0  # rows
        self._reading = ReadingSpeed()

    def look_up(self, batch: Batch) -> LookedUp:
        """The batch, on the CPU, with what the store has of it."""
        samples = batch.sample_ids.cpu().numpy()
        rows, first_visits = self._loader.pool_rows(samples), int(self._loader.first_visits(samples).sum())
        start = time.perf_counter()
        data, present = self._read(rows)
        if present.all():
            self._reading.add(time.perf_counter() - start, len(rows))
        return LookedUp(**vars(batch), kept=KeptRows(data, rows, present, first_visits))

    @torch.no_grad()
    def __call__(self, batch: Batch, inputs: str) -> Taps:
        """What the objective needs of the teacher, for one micro-batch."""
        looked_up = batch if isinstance(batch, LookedUp) else self.look_up(batch).to(batch.input_ids.device)
        kept = self._look_again(looked_up.kept)
        is_complete = bool(kept.present.all())
        if self.pieces is not None and dist.any_rank(not is_complete) and is_complete:
            with self._ledger.clock(OTHERS):  # another process needs this one's pieces
                self._filler(batch, inputs)
        if is_complete:
            if kept.first_visits:  # what earlier runs spent on these rows, divided as if this run had been the one
                assert self.store.fill_cost is not None  # or the rows would count as absent
                share = kept.first_visits * self.store.fill_cost.seconds_per_row / self._num_students
                self._ledger.charge_seconds("teacher", share)
            self._num_read += len(kept.rows)
            self._reading.warn_if_slower(self.store.fill_cost)
        data = kept.data if is_complete else self._fill(batch, inputs, kept)
        if not self.encoder.needs.attention_layers:  # no projection: no weights are wanted
            return self._taps(data)
        taps: Taps = self.run(self._taps, data)
        return taps

    @torch.no_grad()
    def rehearse(self, batch: Batch, inputs: str) -> Taps:
        """As when no row is there: the teacher runs, and nothing is kept."""
        taps = self._filler(batch, inputs)
        return self._taps(self.contents.encode(taps.hidden, self._top_logits(taps)))

    def _read(self, rows: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.bool_]]:
        """Rows whose cost nobody recorded count as absent: a run that finds them is charged for them."""
        data, present = self.store.read(rows)
        return data, present & (self.store.fill_cost is not None)

    def _look_again(self, kept: KeptRows) -> KeptRows:
        """Batches are looked up ahead: the step between may have written a row (a window met again after an epoch)."""
        absent = np.flatnonzero(~kept.present)
        if not absent.size:
            return kept
        data, found = self._read(kept.rows[absent])
        now = absent[found]
        kept.data[torch.from_numpy(now)] = data[torch.from_numpy(np.flatnonzero(found))].to(kept.data.device)
        present = kept.present.copy()
        present[now] = True
        return replace(kept, present=present)

    def _fill(self, batch: Batch, inputs: str, kept: KeptRows) -> Tensor:
        """Run the teacher, keep what was missing, charge this run's share; returns the rows, [B, row_bytes] uint8."""
        if batch.input_ids.is_cuda:  # or what the device still does for the student would count as filling
            with self._ledger.clock("student"):
                torch.cuda.synchronize(batch.input_ids.device)
        before = self._ledger.seconds(OTHERS)
        with self._ledger.clock(OTHERS):
            start = time.perf_counter()
            taps = self._filler(batch, inputs)
            if batch.input_ids.is_cuda:
                torch.cuda.synchronize(batch.input_ids.device)
            of_teacher = time.perf_counter() - start
            made = self.contents.encode(taps.hidden, self._top_logits(taps))
            absent = np.flatnonzero(~kept.present)
            places = torch.from_numpy(absent).to(made.device)
            kept.data[places] = made[places]
            self.store.write(kept.rows[absent], made[places].cpu())
        seconds, num_rows = self._ledger.seconds(OTHERS) - before, len(kept.rows)
        share = seconds * kept.first_visits / num_rows / self._num_students
        self._ledger.charge_seconds("teacher", share)
        self._ledger.charge_seconds(OTHERS, -share)
        self.store.add_fill_cost(seconds, num_rows, of_teacher)
        if dist.is_main():
            self.store.write_fill_cost()
        self._num_filled += len(absent)
        self._num_read += num_rows - len(absent)
        return kept.data

    def _top_logits(self, taps: Taps) -> TopLogits | None:
        if taps.logits is None:
            return None
        return top_logits_of_head(taps.logits, self.contents.top_k, self.contents.temperature)

    def _taps(self, data: Tensor) -> Taps:
        """From rows to what the objective needs: projections are made again by the teacher's own layers."""
        hidden, top = self.contents.decode(data)
        states = {layer: kept.to(self.encoder.embeddings.dtype) for layer, kept in hidden.items()}
        needs = self.encoder.needs
        taps = Taps(hidden={layer: states[layer] for layer in needs.hidden}, top_logits=top)
        for n in needs.attention_layers:
            for relation, made in project(self._layers[n - 1], states[n - 1], needs.relations(n)).items():
                getattr(taps, relation)[n] = made
        return taps

    def facts(self) -> dict[str, Any]:
        """For the summary: what is kept and where, its size, and how often it was used since this process began."""
        counts = dist.all_reduce(torch.tensor([self._num_filled, self._num_read]))
        return {
            "path": str(self.store.directory),
            "kept": self.contents.in_words,
            "bytes_per_token": self.contents.row_bytes / self.contents.length,
            "rows": self.store.num_rows,
            "rows_present": self.store.num_present(),
            "gib_on_disk": self.store.disk_bytes() / GIB,
            "rows_filled": int(counts[0]),
            "rows_read": int(counts[1]),
            "read_seconds_per_row": self._reading.seconds_per_row,
            "teacher_seconds_per_row": self.store.fill_cost and self.store.fill_cost.teacher_seconds_per_row,
            "num_students": self._num_students,
            "mask_seed": self._loader.window_identity["mask_seed"],
        }

    def close(self) -> None:
        """Close the store, and let other runs use it."""
        self.store.close()
        super().close()


def open_cached_teacher(
    teacher: Teacher, study: StudyRecipe, objective: Objective, path: str | None, loader: Loader, ledger: Ledger
) -> CachedTeacher:
    """``teacher`` with the store that the recipe's ``teacher.cache`` names. Collective.

    Raises:
        RecipeError: the objective needs what cannot be kept.
        OutputError: the store is another's, in use, or has no room.
    """
    assert study.teacher is not None
    recipe = study.teacher.cache
    assert recipe is not None
    refuse_dropout(objective.teacher_dropout)
    encoder = teacher.encoder
    contents = Contents(
        kept_needs(encoder.needs),
        objective.options.inputs,
        shape_of(encoder.model.config),
        loader.sequence_length,
        loader.num_masked,
        recipe.top_k,
        temperature=getattr(objective.options, "temperature", 1.0),
    )
    precision = study.teacher.precision + (", fast accumulation" if study.teacher.precision == "fp8" else "")
    about_teacher = {"teacher": weights_hash(path), "teacher_precision": precision}
    identity = identity_of(contents, about_teacher, loader.window_identity)
    store = OpenStore(Path(recipe.path), contents, identity, loader.num_windows, recipe.max_gib)
    filler = TappedEncoder(encoder.model, contents.needs, execution=encoder.execution).eval()
    return CachedTeacher(teacher, filler, contents, store, loader, ledger, recipe.num_students)

"""Tokenise once, then batches of similar length: little padding, in an order that is a function of the seed.

Shapes: N examples of a split, B batch, L length of the longest in the batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kd_megatron.finetune.cell.tokens import Tokens, tokenise
from kd_megatron.finetune.tasks.tasks import Split, Task

GROUP_BATCHES = 50  # batches sorted by length together (Hugging Face's group_by_length uses the same)
MANY = 0.1  # share of texts cut at the limit that is worth a warning


@dataclass(frozen=True)
class EncodedSplit:
    """N tokenised examples."""

    tokens: Tokens
    labels: Tensor  # [N] int64 classes, or float32 values; empty for a test split
    pad_token: int
    starts: np.ndarray = field(init=False)  # [N] int64, of each example in ``tokens``

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", np.cumsum(self.lengths) - self.lengths)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, special tokens counted."""
        return self.tokens.lengths

    def batch(self, indices: np.ndarray, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs ([B, L] int64 each) and the labels ([B]) of the examples ``indices`` ([B])."""
        lengths = self.lengths[indices]
        positions = np.arange(lengths.max())
        is_text = positions < lengths[:, None]  # [B, L]
        places = np.where(is_text, self.starts[indices, None] + positions, 0)
        inputs = {
            "input_ids": np.where(is_text, self.tokens.ids[places], self.pad_token).astype(np.int64),
            "attention_mask": is_text.astype(np.int64),
        }
        if self.tokens.types is not None:
            inputs["token_type_ids"] = np.where(is_text, self.tokens.types[places], 0).astype(np.int64)
        moved = {name: torch.from_numpy(value).to(device, non_blocking=True) for name, value in inputs.items()}
        labels = self.labels[torch.from_numpy(indices)] if len(self.labels) else self.labels
        return moved, labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class EncodedTask:
    """A task as one model's tokenizer sees it."""

    task: Task
    train: EncodedSplit
    devs: dict[str, EncodedSplit]
    tests: dict[str, EncodedSplit] = field(default_factory=dict)
    selection: EncodedSplit | None = None
    rows: np.ndarray | None = None  # [R] int64, the vocabulary's ids that ours stand for (`vocabulary.py`); None: all

    def splits(self) -> dict[str, EncodedSplit]:
        """All of them, by name."""
        selection = {"selection": self.selection} if self.selection else {}
        return {"train": self.train, **self.devs, **self.tests, **selection}

    @classmethod
    def made(cls, of: "Task | EncodedTask", task: Task, make: Callable[[Any], EncodedSplit]) -> Self:
        """``task`` with every split of ``of`` as ``make`` makes it."""
        return cls(
            task,
            train=make(of.train),
            devs={name: make(split) for name, split in of.devs.items()},
            tests={name: make(split) for name, split in of.tests.items()},
            selection=make(of.selection) if of.selection else None,
        )


def encode_task(task: Task, tokenizer: Any, max_length: int) -> EncodedTask:
    """Tokenise all splits, cut at ``max_length`` tokens (of a pair, the longer text first)."""

    def encode(split: Split) -> EncodedSplit:
        labels = torch.tensor(split.labels, dtype=torch.float32 if task.regression else torch.int64)
        tokens = tokenise(split.first, split.second, tokenizer, max_length)
        return EncodedSplit(tokens, labels, tokenizer.pad_token_id)

    return EncodedTask.made(task, task, encode)


def cut_in_words(encoded: EncodedTask, max_length: int) -> str:
    """How many texts of each split are cut, where they are many; empty where they are few."""
    cut = {name: split.tokens.num_truncated for name, split in encoded.splits().items()}
    sizes = {name: len(split) for name, split in encoded.splits().items()}
    counts = ", ".join(f"{name} {cut[name]} of {sizes[name]}" for name in cut if cut[name] > MANY * sizes[name])
    if not counts:
        return ""
    if cut == sizes:
        return (
            f"{encoded.task.name}: EVERY text is longer than max_length={max_length} tokens ({counts}): the model "
            "never sees the end of one; raise max_length, or check that the text columns are the right ones"
        )
    return f"{encoded.task.name}: texts are cut at max_length={max_length} tokens: {counts}"


def train_batches(lengths: np.ndarray, batch_size: int, seed: int, num_steps: int) -> Iterator[np.ndarray]:
    """``num_steps`` batches of example indices ([B] int64), epoch after epoch, each in its own order.

    Within a random group of `GROUP_BATCHES` batches, examples of similar length share a batch; then the batches are
    shuffled. A function of the arguments alone, so arms that share a tokenizer see the same batches in the same order.
    """
    epoch = 0
    while num_steps > 0:
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(lengths))
        group = GROUP_BATCHES * batch_size
        groups = [order[start : start + group] for start in range(0, len(order), group)]
        ordered = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in groups])
        batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
        for index in generator.permutation(len(batches))[:num_steps]:
            yield batches[index]
        num_steps -= len(batches)
        epoch += 1


def dev_batches(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """All examples once, sorted by length, as index arrays ([B] int64)."""
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]

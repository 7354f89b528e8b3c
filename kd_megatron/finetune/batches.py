"""Tokenise once, then batches of similar length: little padding, in an order that is a function of the seed.

Shapes: N examples, B batch, L length of the longest in the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd_megatron.finetune.tasks import Split, Task

GROUP_BATCHES = 50  # batches sorted by length together (Hugging Face's group_by_length uses the same)


@dataclass(frozen=True)
class EncodedSplit:
    """N tokenised examples."""

    input_ids: list[Tensor]  # N of [length] int64
    token_types: list[Tensor] | None  # N of [length] int64, where the model has them
    labels: Tensor  # [N] int64 classes, or float32 values; [0] of a test split
    lengths: np.ndarray  # [N] int64
    pad_token: int
    num_truncated: int  # examples that were longer than the limit

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, indices: np.ndarray, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs ([B, L] each) and labels ([B]; none of a test split) of the examples ``indices`` ([B])."""
        ids = pad_sequence([self.input_ids[i] for i in indices], batch_first=True, padding_value=self.pad_token)
        lengths = torch.from_numpy(self.lengths[indices])
        inputs = {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
        if self.token_types is not None:
            inputs["token_type_ids"] = pad_sequence([self.token_types[i] for i in indices], batch_first=True)
        moved = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
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


def encode_task(task: Task, tokenizer: Any, max_length: int) -> EncodedTask:
    """Tokenise all splits, cut at ``max_length`` tokens (of a pair, the longer text first)."""

    def encode(split: Split) -> EncodedSplit:
        return _encode(split, tokenizer, max_length, task.regression)

    devs, tests = ({name: encode(split) for name, split in splits.items()} for splits in (task.devs, task.tests))
    return EncodedTask(task, encode(task.train), devs, tests, encode(task.selection) if task.selection else None)


def _encode(split: Split, tokenizer: Any, max_length: int, regression: bool) -> EncodedSplit:
    encoded = tokenizer(split.first, split.second, truncation=True, max_length=max_length)
    num_truncated = sum(bool(encoding.overflowing) for encoding in encoded.encodings or [])
    types = encoded.get("token_type_ids")
    return EncodedSplit(
        input_ids=[torch.tensor(ids) for ids in encoded["input_ids"]],
        token_types=[torch.tensor(ids) for ids in types] if types is not None else None,
        labels=torch.tensor(split.labels, dtype=torch.float32 if regression else torch.int64),
        lengths=np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64),
        pad_token=tokenizer.pad_token_id,
        num_truncated=num_truncated,
    )


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

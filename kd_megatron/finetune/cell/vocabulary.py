"""Fine-tune with the embedding rows that a task uses, and no others.

A row that no text of the task has is never read. It gets no gradient and changes nothing; but AdamW goes over it
at every step, and so do the zeros of its gradient and their norm: a small encoder has more weights there than anywhere
else. The rows in use are cut out and the ids counted anew. Losses and outputs are the same to the last digit but for
one thing: without its zeros, the norm that gradients are clipped by is added up in another order.

Shapes: V vocabulary, R rows in use, D hidden.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from kd_megatron.finetune.cell.batches import EncodedSplit, EncodedTask

WORTH = 0.9  # cut only where at most this share of the rows is in use
LOW = 1024  # ids below may have a meaning of their own for a model, such as RoBERTa's padding, and keep their number
NUM_CHECKED = 4  # texts that are looked at with both embeddings: the shortest and the longest of train


def compact(encoded: EncodedTask, model: nn.Module, special_ids: Sequence[int]) -> EncodedTask:
    """``encoded`` with ids counted among the rows in use, for `keep_rows`; unchanged where the model does not allow it.

    Args:
        model: any classifier of the architecture, on the CPU; its embedding is cut here.

    Returns:
        A task whose ``rows`` [R] name the vocabulary's ids. Only if the model says the very same of a batch with
        padding before and after: one that reads more into ids than rows of its embedding keeps them all.
    """
    embedding = _cuttable_embedding(model)
    if embedding is None:
        return encoded
    rows = rows_in_use(encoded, embedding.num_embeddings, special_ids)
    if len(rows) > WORTH * embedding.num_embeddings:
        return encoded
    new_ids = np.full(embedding.num_embeddings, -1, np.int32)
    new_ids[rows] = np.arange(len(rows))
    before = _outputs(model, encoded.train)

    def renumber(split: EncodedSplit) -> EncodedSplit:
        tokens = replace(split.tokens, ids=new_ids[split.tokens.ids])
        return EncodedSplit(tokens, split.labels, int(new_ids[split.pad_token]))

    fewer = replace(EncodedTask.made(encoded, encoded.task, renumber), rows=rows)
    keep_rows(model, rows)
    return fewer if torch.equal(before, _outputs(model, fewer.train)) else encoded


def keep_rows(model: nn.Module, rows: np.ndarray) -> None:
    """Cut the model's embedding [V, D] down to ``rows`` [R], which `compact` found, in place."""
    embedding = _cuttable_embedding(model)
    assert embedding is not None, "compact() has cut one of this architecture"
    kept = torch.from_numpy(rows)
    if embedding.padding_idx is not None:
        found = np.flatnonzero(rows == embedding.padding_idx)
        embedding.padding_idx = int(found[0]) if len(found) else None
    weight = embedding.weight
    embedding.weight = nn.Parameter(weight.detach()[kept.to(weight.device)].clone(), weight.requires_grad)
    embedding.num_embeddings = len(rows)


def rows_in_use(encoded: EncodedTask, vocab_size: int, special_ids: Sequence[int]) -> np.ndarray:
    """The ids of all texts and of padding, and all low ones up to the highest special one; ascending, [R] int64."""
    used = np.zeros(vocab_size, bool)
    used[: max([token + 1 for token in special_ids if token < LOW], default=0)] = True
    for split in encoded.splits().values():
        used[split.tokens.ids] = True
        used[split.pad_token] = True
    return np.flatnonzero(used)


def _cuttable_embedding(model: nn.Module) -> nn.Embedding | None:
    """The embedding of tokens, if it is a plain one that no other module shares."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]  # of Hugging Face's models
    except NotImplementedError:
        return None
    if not isinstance(embedding, nn.Embedding) or embedding.max_norm is not None or embedding.scale_grad_by_freq:
        return None
    owners = [module for module in model.modules() if any(p is embedding.weight for p in module._parameters.values())]
    return embedding if owners == [embedding] else None


@torch.inference_mode()
def _outputs(model: nn.Module, split: EncodedSplit) -> Tensor:
    """Logits [NUM_CHECKED, C] of the shortest and the longest texts, in one padded batch."""
    order = np.argsort(split.lengths, kind="stable")
    half = NUM_CHECKED // 2
    inputs, _ = split.batch(np.concatenate([order[:half], order[-half:]]), torch.device("cpu"))
    logits: Tensor = model.eval()(**inputs).logits
    return logits

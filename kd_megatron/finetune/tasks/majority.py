"""What a model scores that has learned nothing of a task, and whether a fine-tuning ended as one.

Fine-tuning on little data fails now and then: the model then gives every row the same answer (Mosbach et al. 2021,
arXiv 2006.04884). Such a score says nothing of the encoder, and a mean with it in it is a mean of two things.

Shapes: N examples of the first dev split, C classes.
"""

import numpy as np

from kd_megatron.finetune.tasks.tasks import Task

ROUNDING = 1e-9  # of a score: the same rows right, counted another way
FLAT = 0.01  # of the labels' deviation: values that vary less are constant but for noise


def majority_score(task: Task) -> float:
    """The score of giving every dev row the commonest label of the training rows, or one value (regression)."""
    targets = np.array(next(iter(task.devs.values())).labels)
    if task.regression:
        constant = np.full(len(targets), np.mean(task.train.labels))
    else:
        labels, counts = np.unique(np.array(task.train.labels), return_counts=True)
        constant, targets = np.full(len(targets), int(labels[counts.argmax()])), targets.astype(np.int64)
    return task.metric.score(task.metric.compute(constant, targets))


def is_at_majority(score: float, majority: float) -> bool:
    """Whether a score is that of the majority class, within rounding."""
    return abs(score - majority) <= ROUNDING


def is_collapsed(task: Task, score: float, outputs: np.ndarray) -> bool:
    """Whether a model answers every dev row alike, or scores what the majority class does.

    Args:
        task: whose first dev split was predicted.
        score: on that split.
        outputs: logits [N, C], or values [N] of a regression.
    """
    if task.regression:
        is_constant = np.std(outputs) <= FLAT * np.std(task.train.labels)
    else:
        is_constant = np.ptp(outputs.argmax(1)) == 0
    return bool(is_constant) or is_at_majority(score, majority_score(task))

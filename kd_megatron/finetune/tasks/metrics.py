"""The scores of a task, from scikit-learn and scipy, with GLUE's choice of metric per task.

A constant prediction has no correlation and no F1 of a class it never names: those are 0 here, not an error.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

from kd_megatron.errors import RecipeError, nearest

Values = np.ndarray  # [N] class indices (int64), or predicted and true values (float64)


def accuracy(predictions: Values, targets: Values) -> dict[str, float]:
    """Share of right answers."""
    return {"accuracy": float(sklearn_metrics.accuracy_score(targets, predictions))}


def f1_accuracy(predictions: Values, targets: Values) -> dict[str, float]:
    """F1 of class 1, and accuracy (MRPC, QQP)."""
    f1 = float(sklearn_metrics.f1_score(targets, predictions, pos_label=1, zero_division=0.0))
    return {"f1": f1, **accuracy(predictions, targets)}


def matthews(predictions: Values, targets: Values) -> dict[str, float]:
    """Matthews correlation (CoLA), and accuracy beside it."""
    return {
        "matthews": float(sklearn_metrics.matthews_corrcoef(targets, predictions)),
        **accuracy(predictions, targets),
    }


def pearson_spearman(predictions: Values, targets: Values) -> dict[str, float]:
    """Pearson and Spearman correlation (STS-B)."""
    if np.ptp(predictions) == 0 or np.ptp(targets) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(stats.pearsonr(predictions, targets).statistic),
        "spearman": float(stats.spearmanr(predictions, targets).statistic),
    }


@dataclass(frozen=True)
class Metric:
    """A way to score a task. ``parts`` of what ``compute`` returns are averaged into the one score."""

    title: str  # in tables
    compute: Callable[[Values, Values], dict[str, float]]
    parts: tuple[str, ...]
    regression: bool = False
    max_classes: int | None = None
    one_label_will_do: bool = False  # among the targets; otherwise the score says nothing of a model then

    def score(self, values: dict[str, float]) -> float:
        """The one number a cell is judged by."""
        return float(np.mean([values[name] for name in self.parts]))


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", accuracy, ("accuracy",), one_label_will_do=True),
    "f1_accuracy": Metric("mean of F1 and accuracy", f1_accuracy, ("f1", "accuracy"), max_classes=2),
    "matthews": Metric("Matthews correlation", matthews, ("matthews",)),
    "pearson_spearman": Metric(
        "mean of Pearson and Spearman", pearson_spearman, ("pearson", "spearman"), regression=True
    ),
}


def choose(name: str, task: str, num_classes: int | None) -> Metric:
    """The metric called ``name``; raises `RecipeError` when the task cannot be scored by it.

    Args:
        num_classes: None for regression.
    """
    if name not in METRICS:
        raise RecipeError(given=f"task {task}: unknown metric {name!r}; {nearest(name, METRICS)}")
    metric = METRICS[name]
    if metric.regression != (num_classes is None):
        kind = "regression" if num_classes is None else "classification"
        fitting = [key for key, other in METRICS.items() if other.regression == (num_classes is None)]
        raise RecipeError(
            given=f"task {task}: metric {name!r} does not fit {kind}", expected=f"one of {', '.join(fitting)}"
        )
    if metric.max_classes and num_classes and num_classes > metric.max_classes:
        raise RecipeError(
            given=f"task {task}: metric {name!r} with {num_classes} classes",
            expected=f"at most {metric.max_classes} classes",
            fix="use accuracy or matthews",
        )
    return metric

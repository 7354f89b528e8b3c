import numpy as np
import pytest
from tolerances import FINETUNE_HAND_WORKED

from kd_megatron.errors import RecipeError
from kd_megatron.finetune.metrics import METRICS, choose

TARGETS = np.array([1, 1, 1, 0, 0, 1, 0, 1])
PREDICTIONS = np.array([1, 1, 0, 0, 1, 1, 0, 1])  # TP 4, FN 1, FP 1, TN 2


def test_accuracy_f1_and_matthews_by_hand():
    assert METRICS["accuracy"].compute(PREDICTIONS, TARGETS) == {"accuracy": 6 / 8}
    values = METRICS["f1_accuracy"].compute(PREDICTIONS, TARGETS)
    assert values["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 1), abs=FINETUNE_HAND_WORKED)
    assert METRICS["f1_accuracy"].score(values) == pytest.approx((0.8 + 0.75) / 2, abs=FINETUNE_HAND_WORKED)
    matthews = (4 * 2 - 1 * 1) / np.sqrt((4 + 1) * (4 + 1) * (2 + 1) * (2 + 1))
    values = METRICS["matthews"].compute(PREDICTIONS, TARGETS)
    assert METRICS["matthews"].score(values) == pytest.approx(matthews, abs=FINETUNE_HAND_WORKED)


def test_pearson_and_spearman_by_hand():
    targets, predictions = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0, 3.0])
    # deviations (-1.5, -.5, .5, 1.5) and (-1.5, -.5, 1.5, .5): 4 / sqrt(5 * 5); the ranks have the same deviations
    values = METRICS["pearson_spearman"].compute(predictions, targets)
    assert values == pytest.approx({"pearson": 0.8, "spearman": 0.8}, abs=FINETUNE_HAND_WORKED)
    skewed = METRICS["pearson_spearman"].compute(np.exp(targets), targets)
    assert skewed["spearman"] == pytest.approx(1.0, abs=FINETUNE_HAND_WORKED)
    assert skewed["pearson"] < 0.95
    expected = (skewed["spearman"] + skewed["pearson"]) / 2
    assert METRICS["pearson_spearman"].score(skewed) == pytest.approx(expected, abs=FINETUNE_HAND_WORKED)


@pytest.mark.filterwarnings("error")
def test_constant_predictions_score_zero_without_a_warning():
    zeros = np.zeros_like(TARGETS)
    assert METRICS["matthews"].compute(zeros, TARGETS)["matthews"] == 0.0
    assert METRICS["f1_accuracy"].compute(zeros, TARGETS)["f1"] == 0.0
    constant = METRICS["pearson_spearman"].compute(np.full(4, 2.5), np.arange(4.0))
    assert constant == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize(
    ("name", "num_classes", "message"),
    [
        ("acuracy", 2, "did you mean 'accuracy'"),
        ("accuracy", None, "does not fit regression"),
        ("pearson_spearman", 2, "does not fit classification"),
        ("f1_accuracy", 3, "at most 2 classes"),
    ],
)
def test_a_metric_that_cannot_score_the_task_is_refused(name: str, num_classes: int | None, message: str):
    with pytest.raises(RecipeError, match=message):
        choose(name, "mine", num_classes)

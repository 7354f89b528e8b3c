import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from tolerances import FINETUNE_HAND_WORKED

from kd_megatron.errors import RecipeError
from kd_megatron.finetune.tasks.metrics import METRICS, choose

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


def test_a_matthews_correlation_of_three_classes_by_hand():
    targets, predictions = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    # Gorodkin 2004: (right * all - sum over classes of predicted * true) over the root of (all^2 - sum predicted^2) and
    # (all^2 - sum true^2); right 4 of 6, predicted 2, 3, 1 and true 2, 2, 2
    expected = (4 * 6 - (4 + 6 + 2)) / np.sqrt((36 - 14) * (36 - 12))
    values = METRICS["matthews"].compute(predictions, targets)
    assert values["matthews"] == pytest.approx(expected, abs=FINETUNE_HAND_WORKED)


def test_spearman_gives_ties_their_mean_rank():
    targets, predictions = np.array([1.0, 1.0, 3.0, 4.0]), np.array([10.0, 20.0, 20.0, 30.0])
    # ranks 1.5, 1.5, 3, 4 and 1, 2.5, 2.5, 4: deviations (-1, -1, .5, 1.5) and (-1.5, 0, 0, 1.5)
    expected = (1.5 + 2.25) / np.sqrt(4.5 * 4.5)
    values = METRICS["pearson_spearman"].compute(predictions, targets)
    assert values["spearman"] == pytest.approx(expected, abs=FINETUNE_HAND_WORKED)


@pytest.mark.parametrize("seed", range(3))
def test_the_scores_of_many_rows_are_those_of_their_definitions_and_of_the_libraries(seed: int):
    """Definitions written out with numpy beside what scikit-learn and scipy say of the same rows."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(2, size=500)
    predictions = np.where(generator.random(500) < 0.7, targets, 1 - targets)
    both = np.sum((predictions == 1) & (targets == 1))
    precision, recall = both / np.sum(predictions == 1), both / np.sum(targets == 1)
    by_hand = {
        "accuracy": np.mean(predictions == targets),
        "f1": 2 * precision * recall / (precision + recall),
        "matthews": np.corrcoef(predictions, targets)[0, 1],  # of two classes it is Pearson's
    }
    libraries = {
        "accuracy": sklearn_metrics.accuracy_score(targets, predictions),
        "f1": sklearn_metrics.f1_score(targets, predictions),
        "matthews": sklearn_metrics.matthews_corrcoef(targets, predictions),
    }
    found = METRICS["f1_accuracy"].compute(predictions, targets) | METRICS["matthews"].compute(predictions, targets)
    assert found == pytest.approx(by_hand, abs=FINETUNE_HAND_WORKED)
    assert found == pytest.approx(libraries, abs=FINETUNE_HAND_WORKED)

    similar = np.round(generator.random(500) * 5, 1)  # as STS-B's labels: many ties
    values = (similar + generator.normal(size=500)).astype(np.float32).astype(np.float64)
    ranks = [stats.rankdata(part) for part in (values, similar)]
    by_hand = {"pearson": np.corrcoef(values, similar)[0, 1], "spearman": np.corrcoef(*ranks)[0, 1]}
    libraries = {
        "pearson": stats.pearsonr(values, similar).statistic,
        "spearman": stats.spearmanr(values, similar).statistic,
    }
    found = METRICS["pearson_spearman"].compute(values, similar)
    assert found == pytest.approx(by_hand, abs=FINETUNE_HAND_WORKED)
    assert found == pytest.approx(libraries, abs=FINETUNE_HAND_WORKED)


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

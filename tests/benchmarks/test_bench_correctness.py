"""No figure on a red test: a kernel that is wrong, be it at padding or in one gradient, is refused before timing."""

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import correctness, examples, shapes, steps, suite
from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.kernels.case import Case
from benchmarks.kernels.correctness import Check
from benchmarks.kernels.vocab_cases import VocabCrossEntropy, VocabKl, VocabTopkKl
from kd_megatron.errors import KdError
from kd_megatron.kernels import relation_kl, score_mse, vocab_kl

CPU = torch.device("cpu")
PLAN = suite.SuitePlan(torch.float32, CPU, seconds=0.0, compiler="aot_eager")
PADDED = RelationKl(3, 9, (2, 4), (2, 8), num_relation_heads=2, padded=True)
PLAIN = ScoreMse(2, 8, (2, 4), (2, 4))


class Planted:
    """The reference, with the gradient of the first tap changed by a function of it."""

    def __init__(self, change):
        self.change = change

    def __call__(self, students, *arguments):
        first = students[0].clone()
        first.register_hook(self.change)
        return relation_kl.BACKENDS["reference"]([first, *students[1:]], *arguments)


@pytest.mark.parametrize("case", [*shapes.REDUCED, *examples.BRIEF], ids=lambda case: f"{case.name}-{case.shape}")
def test_own_backends_pass(case: Case, monkeypatch: pytest.MonkeyPatch):
    if len(case.backends()) > 2:  # beside the reference and Triton, which is slow at these shapes and tested elsewhere
        monkeypatch.delenv("TRITON_INTERPRET")
    checks = suite.check_case(case, PLAN)
    tensors = {"terms", *steps.trained(case.inputs(torch.float32, CPU))}
    assert {check.tensor for check in checks} == tensors
    assert len(checks) == len(tensors) * len({check.backend for check in checks}) > len(tensors)
    correctness.refuse_red(checks)


def wrong_terms(*arguments) -> Tensor:
    return 1.001 * relation_kl.BACKENDS["reference"](*arguments)


def at_padding(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient[-1, -1] = 1e-30  # of the sequence that is all padding
    return gradient


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (wrong_terms, "its terms is off by 1.0e-03"),
        (Planted(lambda gradient: 1.001 * gradient), "the gradient of student_queries is off by 1.0e-03"),
        (Planted(lambda gradient: gradient * float("nan")), "the gradient of student_queries is off by nan"),
        (Planted(at_padding), "is not zero at padding"),
    ],
    ids=["terms", "gradient", "not a number", "padding"],
)
def test_a_planted_wrong_kernel_is_refused(planted, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relation_kl, "BACKENDS", {"reference": relation_kl.BACKENDS["reference"], "planted": planted})
    checks = suite.check_case(PADDED, PLAN)
    assert all(check.passed for check in checks if check.backend == "eager")
    with pytest.raises(KdError, match="nothing is timed otherwise") as refused:
        correctness.refuse_red(checks)
    assert message in str(refused.value)
    assert "'planted'" in str(refused.value)


def test_a_kernel_that_is_wrong_only_at_the_timed_shape_is_refused_there(monkeypatch: pytest.MonkeyPatch):
    def wrong_when_long(*arguments):
        loss = score_mse.BACKENDS["reference"](*arguments)
        return loss if arguments[0][0].shape[1] < 8 else 1.01 * loss

    backends = {"reference": score_mse.BACKENDS["reference"], "planted": wrong_when_long}
    monkeypatch.setattr(score_mse, "BACKENDS", backends)
    correctness.refuse_red(suite.check_case(ScoreMse(2, 7, (2, 4), (2, 4)), PLAN))
    rows: list = []
    with pytest.raises(KdError, match="planted"):
        suite.measure(PLAIN, PLAN, rows, [])
    assert rows == []


def test_terms_have_unequal_weights_so_that_an_exchange_shows():
    for case in (PADDED, VocabKl(num_rows=4, vocab_size=7, student_width=3, teacher_width=3)):
        assert len(set(case.weights)) == len(case.weights) > 1


def test_inputs_are_the_same_on_every_call_and_nan_at_padding():
    first, again = (PADDED.inputs(torch.float32, CPU) for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name].nan_to_num(7.0), again[name].nan_to_num(7.0)) for name in first)
    valid = first["valid"]
    assert valid.any(1).tolist() == [True, True, False]
    assert valid[0].all()
    assert 0 < valid[1].sum() < valid.shape[1]
    assert torch.equal(first["teacher_keys"].isnan().all((2, 3)), ~valid)
    assert torch.equal(first["teacher_keys"].isnan().any((2, 3)), ~valid)
    assert set(steps.trained(first)) == {f"student_{relation}" for relation in ("queries", "keys", "values")}


def test_fused_taps_are_views_of_one_trained_tensor():
    case = RelationKl(2, 5, (2, 4), (2, 4), num_relation_heads=2, fused=True)
    inputs = case.inputs(torch.float32, CPU)
    assert set(inputs) == {"student", "teacher"}
    terms, (gradient,) = steps.step_of(case, "chunked", inputs)()
    assert terms.shape == (3,)
    assert gradient.shape == (2, 5, 3, 2, 4)


def test_the_worst_check_is_named_first():
    def check(tensor: str, error: float) -> Check:
        return Check("k", "b", "s", "fp32", tensor, error, allowed=1e-5)

    with pytest.raises(KdError, match=r"the gradient of y .*\(2 of 3 checks fail\)"):
        correctness.refuse_red([check("terms", 1e-6), check("x", 1e-4), check("y", 1e-3)])
    correctness.refuse_red([check("terms", 1e-6)])


def test_relative_error():
    exact = torch.tensor([2.0, -4.0], dtype=torch.float64)
    assert correctness.relative_error(torch.tensor([2.0, -3.0]), exact) == 0.25
    assert correctness.relative_error(torch.tensor([0.5, 0.0]), torch.zeros(2, dtype=torch.float64)) == 0.5


@pytest.mark.parametrize(
    ("case", "known"),
    [
        (VocabKl(5, 11, 4, teacher_width=6), vocab_kl.BACKENDS),
        (VocabTopkKl(5, 11, 4, num_kept=3), vocab_kl.TOPK_BACKENDS),
        (VocabCrossEntropy(5, 11, 4), vocab_kl.CROSS_ENTROPY_BACKENDS),
    ],
)
def test_vocabulary_cases_know_their_backends(case: Case, known: dict):
    assert set(steps.backends_of(case)) == {"eager", "torch.compile", *known} - {"reference"}


def test_why_a_backend_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert steps.obstacle(PLAIN, "triton", CPU) == "needs a GPU"
    assert steps.obstacle(PLAIN, "tiled", CPU) is None
    huge = ScoreMse(64, 2**16)
    assert "GiB, of which" in (steps.obstacle(huge, "eager", CPU) or "")
    assert "GiB, of which" in (steps.obstacle(huge, "torch.compile", CPU) or "")
    assert steps.obstacle(huge, "closed_form", CPU) is None


def test_a_compiler_that_fails_is_left_out_with_its_reason():
    def no_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler\nand more")

    rows: list = []
    left_out: list = []
    plan = suite.SuitePlan(torch.float32, CPU, seconds=0.0, compiler=no_compiler)
    case = VocabCrossEntropy(num_rows=4, vocab_size=7, student_width=3)
    suite.measure(case, plan, rows, left_out)
    assert [row.backend for row in rows if row.backend != "triton"] == ["eager", "chunked"]  # triton: interpreted
    reasons = {left.backend: left.reason for left in left_out}
    assert "no C++ compiler" in reasons["torch.compile"]
    assert "\n" not in reasons["torch.compile"]

"""What an arm owes the teacher follows from what its objective needs and where its students begin, not from a name."""

import ast
from pathlib import Path
from typing import Literal

import pytest
import study_on_disk
from objective_examples import STUDENT, TEACHER, WIDE_STUDENT, build
from study_on_disk import ARMS, study_recipe

from kd_megatron.analysis import break_even, results
from kd_megatron.analysis.run_checks import run_findings
from kd_megatron.errors import OutputError
from kd_megatron.objectives import registry
from kd_megatron.objectives.base import Objective, ObjectiveOptions
from kd_megatron.objectives.of_the_teacher import begins_from_teacher, learns_from_teacher, owes_the_teacher
from kd_megatron.report.study import tables
from kd_megatron.study.edits import compare
from kd_megatron.study.layout import arm_directory
from kd_megatron.tensors import Needs
from kd_megatron.training import run

SCRATCH, MINILM = ARMS["scratch"], ARMS["minilm"]
TWICE = {"objective": "combined", "parts": [SCRATCH, {**SCRATCH, "name": "again"}]}
OTHER_TEACHER = {"path": "teachers/other"}
SOURCES = sorted((Path(__file__).resolve().parents[2] / "kd_megatron").rglob("*.py"))


class ToyOptions(ObjectiveOptions):
    objective: Literal["toy"]


class Toy(Objective):
    """As docs/add_an_objective.md has a new one say that it needs no teacher."""

    needs_teacher = None

    def __init__(self, options, student, teacher):
        super().__init__(options, student, teacher)
        self.needs_student, self.weights = Needs(logits=True), {"toy": 1.0}


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(registry.OBJECTIVES, "toy", (ToyOptions, Toy))
    return {"objective": "toy"}


def in_phases(*phases):
    ends = [(number + 1) / len(phases) for number in range(len(phases))]
    return {
        "objective": "schedule",
        "phases": [phase | {"until": end} for phase, end in zip(phases, ends, strict=True)],
    }


@pytest.mark.parametrize(
    ("options", "learns"),
    [
        (SCRATCH, False),
        (MINILM, True),
        (TWICE, False),
        ({"objective": "combined", "parts": [SCRATCH, MINILM]}, True),
        (in_phases(SCRATCH, TWICE), False),
        (in_phases(SCRATCH, {"objective": "combined", "parts": [SCRATCH, MINILM]}), True),
        ({"objective": "of another version"}, True),
        ({}, True),
        ({"objective": "combined"}, False),  # does not parse, and is refused elsewhere
        ({"objective": "combined", "parts": ["scratch"]}, False),
    ],
)
def test_an_objective_learns_from_the_teacher_where_some_part_needs_it(options, learns):
    assert learns_from_teacher(options) is learns


@pytest.mark.parametrize("name", registry.OBJECTIVES)
def test_what_a_class_says_is_what_is_built(name):
    options = {"objective": name} | ({"num_relation_heads": 6} if name == "minilm" else {})
    assert learns_from_teacher(options) is (build(options, WIDE_STUDENT).needs_teacher is not None)


def test_an_objective_that_needs_no_teacher_and_does_not_say_so_is_found(monkeypatch):
    class Silent(Objective):
        def __init__(self, options, student, teacher):
            super().__init__(options, student, teacher)
            self.needs_teacher = None

    monkeypatch.setitem(registry.OBJECTIVES, "toy", (ToyOptions, Silent))
    with pytest.raises(AssertionError, match="Silent: say needs_teacher = None"):
        build({"objective": "toy"})


def test_a_new_objective_is_its_file_and_its_line(toy):
    assert build(toy, STUDENT, TEACHER).needs_teacher is None
    study = study_recipe(arms={"scratch": SCRATCH, "toy": toy, "minilm": MINILM})
    assert [owes_the_teacher(study, arm) for arm in study.arms] == [False, False, True]


def test_students_that_begin_from_the_teacher_owe_it(toy):
    first = {"student.initialise": {"method": "teacher_layers"}}
    study = study_recipe(arms={"toy": toy, "begun": toy | first}, allow_difference=["student.initialise"])
    assert [begins_from_teacher(study, arm) for arm in study.arms] == [False, True]
    assert [owes_the_teacher(study, arm) for arm in study.arms] == [False, True]


def test_another_teacher_leaves_them_valid(toy):
    arms = ARMS | {"twice": TWICE, "toy": toy}
    found = compare(study_recipe(arms=arms), study_recipe(arms=arms, teacher=OTHER_TEACHER))
    assert found.arms == ["vanilla_kd", "minilm", "tinybert"]


@pytest.mark.parametrize("name", ["twice", "toy", "minilm"])
def test_a_run_goes_on_with_another_teacher_where_it_has_nothing_of_one(name, toy, tmp_path):
    arms = {name: {"twice": TWICE, "toy": toy, "minilm": MINILM}[name]}
    old, new = study_recipe(arms=arms), study_recipe(arms=arms, teacher=OTHER_TEACHER)
    run.claim_run(old, name, 0, tmp_path / "run")
    if name == "minilm":
        with pytest.raises(OutputError, match=r"these keys differ: teacher\.cost_flops, .*teacher\.path"):
            run.claim_run(new, name, 0, tmp_path / "run")
    else:
        run.claim_run(new, name, 0, tmp_path / "run")


@pytest.fixture
def finished(toy, tmp_path, monkeypatch):
    """A study of which two arms have a teacher in the recipe and need none."""
    for known in (study_on_disk.SCORES, study_on_disk.PROBE):
        monkeypatch.setitem(known, "toy", known["minilm"])
        monkeypatch.setitem(known, "twice", known["tinybert"])
    arms = {"scratch": SCRATCH, "minilm": MINILM, "twice": TWICE, "toy": toy}
    return results.load(study_on_disk.write_study(tmp_path / "s", study_recipe(arms=arms)))


def test_the_report_charges_those_that_owe_it_and_no_others(finished):
    assert break_even.num_sharing(finished) == 3  # seeds of minilm
    rows = tables.teacher_cost(finished).rows
    assert [row["arm"] for row in rows if row["included"] > row["excluded"]] == ["minilm"]


def test_runs_may_differ_in_a_teacher_that_they_have_nothing_of(finished):
    def differing():
        return [one.check for one in run_findings(results.load(finished.directory)) if not one.passed]

    def record(one, teacher):
        where = arm_directory(finished.directory, one.arm, one.seed)
        study_on_disk.edit_summary(where, fingerprint=one.summary.fingerprint | {"teacher": teacher})

    for one in finished.all_runs():
        record(one, "another" if one.arm in ("toy", "twice") else "one")
    assert "fingerprint: teacher" not in differing()
    record(finished.runs["minilm"][1], "another")
    assert "fingerprint: teacher" in differing()


def test_no_code_goes_by_the_name_of_the_objective():
    compared = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Constant) and side.value == "scratch"
    ]
    assert compared == []

"""The whole report is one family: planted nulls, planted effects, protocols, and how often anything is claimed."""

import re

import numpy
import planted_study
import pytest

from kd_megatron.analysis import comparisons
from kd_megatron.recipe import StudyRecipe
from kd_megatron.report.study import certainty_tables, own_heads, tables
from kd_megatron.report.study.answer import answer
from kd_megatron.report.study.caveats import caveats
from kd_megatron.study.contrasts import Contrast, families

DECIDED = ("better", "worse")
NULLS = 200  # studies of a default run


def null_study(generator, study: StudyRecipe, collapsed: float = 0.0):
    """Arms that do not differ: students of a seed share a part, and a share of fine-tunings may have collapsed."""
    shared = {(seed, what): generator.normal() for seed in study.seeds for what in ("loss", *planted_study.TASKS)}

    def value(arm, quantity, seed):
        if quantity in planted_study.TASKS:
            tuned = 0.7 + 0.02 * (shared[seed, quantity] + generator.normal() + generator.normal(size=3) / 4)
            return numpy.where(generator.random(3) < collapsed, 0.1, tuned)
        return 3.0 + 0.01 * (shared[seed, "loss"] + generator.normal())

    return planted_study.results(study, value)


def claims(study) -> list[str]:
    """Everything that a report claims: verdicts of tables, bold cells, and words of the answer."""
    found = [
        table.name for table in certainty_tables.differences(study) for row in table.rows if row["verdict"] in DECIDED
    ]
    found += ["own heads" for row in own_heads.table(study).rows if row["verdict"] in DECIDED]
    found += [f"bold {key}" for _, key in tables.scores(study).strong]
    found += ["bold difference" for table in certainty_tables.differences(study) if table.strong]
    found += ["answer"] * bool(re.search(r"excludes zero", answer(study)))
    return found


def false_reports(number: int, name: str, seed: int = 0) -> int:
    generator, (study, collapsed) = numpy.random.default_rng(seed), STUDIES[name]
    return sum(bool(claims(null_study(generator, study, collapsed))) for _ in range(number))


STUDIES = {  # recipe, and the share of fine-tunings that collapse
    "by power": (planted_study.recipe(8), 0.0),
    "by power, with collapses": (planted_study.recipe(8), 0.2),
    "three students, fixed": (planted_study.recipe(3, protocol={"students": 3}), 0.2),
    "one primary contrast": (planted_study.recipe(4, protocol={"students": 4, "arms": ["first"]}), 0.0),
    "a primary score": (planted_study.recipe(6, protocol={"students": 6, "measure": "score"}), 0.0),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_report_of_arms_that_do_not_differ_claims_something_in_one_of_twenty_at_most(name):
    # 10 of 200 are expected at a rate of exactly 5 %, and more than 17 with a chance of 1 %
    assert 0 < false_reports(NULLS, name) <= 17


@pytest.mark.long
@pytest.mark.parametrize("name", STUDIES)
def test_the_rate_of_false_reports_by_many(name):
    rate = false_reports(4000, name, seed=1) / 4000
    print(f"{name}: {100 * rate:.1f} % of reports claim something of arms that do not differ")
    assert 0 < rate <= 0.05 + 2 * (0.05 * 0.95 / 4000) ** 0.5


def strong(students: int, far: float = 0.5, arms: int = 2, **changes):
    """The first arm is ``far`` nats better by the probe, with seeds that scatter by 0.02; the others are level."""
    noise = numpy.random.default_rng(3).normal(0, 0.02, (4, 20))
    places = {name: number for number, name in enumerate(planted_study.ARMS)}

    def value(arm, quantity, seed):
        return None if quantity == "own_loss" else 3.0 - far * (arm == "first") + noise[places[arm], seed]

    return planted_study.results(planted_study.recipe(students, arms, finetune=None, **changes), value)


def of(study, arm="first", quantity="probe_loss"):
    return next(one for one in comparisons.overall(study, quantity) if one.arm == arm)


def test_a_strong_effect_at_six_students_is_decided():
    study = strong(6)
    assert (of(study).verdict, of(study).role, of(study).num_comparisons) == ("better", "exploratory", 2)
    assert "the interval excludes zero" in answer(study)
    assert tables.scores(study).strong == {(1, "probe_loss")}
    assert any(
        said.startswith("Power: 6 students of each arm find a difference of 2 standard")
        for said in caveats(study, [], [])
    )


def test_three_students_decide_nothing_unless_the_protocol_fixed_their_number():
    study = strong(3)
    assert of(study).corrected.excludes_zero
    assert of(study).verdict == "too few students: none"
    assert tables.scores(study).strong == frozenset()
    assert "No verdict is given" in answer(study)
    said = "\n".join(caveats(study, [], []))
    assert "of each arm 3 are compared, which find a difference of 2 standard deviations with a chance of 27 %" in said
    fixed = strong(3, protocol={"students": 3})
    assert (of(fixed).verdict, of(fixed).role) == ("better", "primary")
    assert "the protocol fixed 3" in "\n".join(caveats(fixed, [], []))


def test_fewer_students_than_the_protocol_promised_decide_nothing():
    assert of(strong(6, protocol={"students": 8})).verdict == "too few students: none"


def test_nothing_secondary_is_judged_before_every_primary_contrast_is_decided():
    both = strong(8, arms=3, protocol={"students": 8})
    assert [one.verdict for one in comparisons.overall(both, "probe_loss")] == ["better", "undecided"]
    between = comparisons.between(both, "first", "second", "probe_loss")
    assert (between.role, between.verdict) == ("secondary", "primary undecided: none")
    assert comparisons.winner(both, "probe_loss") is None
    one = strong(8, arms=3, protocol={"students": 8, "arms": ["first"]})
    assert [(of(one, arm).role, of(one, arm).num_comparisons) for arm in ("first", "second")] == [
        ("primary", 1), ("secondary", 4)
    ]  # fmt: skip
    assert comparisons.between(one, "first", "second", "probe_loss").verdict == "better"
    assert comparisons.winner(one, "probe_loss") == "first"


def test_a_primary_contrast_that_has_no_value_yet_keeps_the_gate_closed():
    study = strong(8, protocol={"students": 8, "measure": "own_loss"})
    assert of(study).verdict == "primary undecided: none"


def test_two_other_arms_are_judged_only_where_one_of_them_differs_from_the_reference():
    level = strong(8, far=0.0, arms=3)
    assert comparisons.between(level, "second", "first", "probe_loss").verdict == "both undecided to scratch: none"
    apart = strong(8, arms=3)
    turned = [comparisons.between(apart, *pair, "probe_loss") for pair in (("first", "second"), ("second", "first"))]
    assert [one.verdict for one in turned] == ["better", "worse"]
    assert turned[0].difference.mean == pytest.approx(-turned[1].difference.mean)
    assert (turned[0].corrected.low, turned[0].corrected.high) == (-turned[1].corrected.high, -turned[1].corrected.low)


@pytest.mark.parametrize(
    ("far", "smallest", "said"),
    [
        (0.5, 0.2, "at least 0.2 nats"),
        (0.1, 0.1, "effects below 0.1 nats are not excluded"),
        (0.0, 0.2, "equivalent within 0.2 nats"),
        (0.0, 0.001, "effects above 0.001 nats are not excluded"),
    ],
)
def test_the_smallest_effect_of_interest_stands_beside_the_verdict(far, smallest, said):
    study = strong(8, far=far, protocol={"students": 8, "smallest_effect": smallest})
    table = certainty_tables.differences(study)[0]
    assert table.rows[0]["size"] == said
    assert said in answer(study) or of(study).is_equivalent
    assert "size" not in [column.key for column in certainty_tables.differences(strong(8))[0].columns]


def test_too_few_students_are_not_called_equivalent():
    assert certainty_tables.size_in_words(of(strong(3, 0.0, protocol={"students": 4, "smallest_effect": 1.0}))) is None


def test_families_are_known_from_the_recipe():
    study = planted_study.recipe(3, protocol={"measure": "score", "arms": ["second"]})
    asked = families(study)
    assert (len(asked.contrasts), asked.num_quantities, asked.num_arms) == (3 * 5, 5, 3)
    assert asked.primary == {Contrast("second", "score")}
    assert (asked.num_decisive, asked.num_among_others) == (1, 15)
    assert families(planted_study.recipe(3, finetune=None)).num_decisive == 6


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ({"arms": ["scratch"]}, "is the arm that the others are compared with"),
        ({"measure": "score"}, "needs the section finetune"),
        ({"students": 1}, "an interval needs at least 2"),
    ],
)
def test_protocols_that_make_no_sense_are_refused(protocol, said):
    with pytest.raises(ValueError, match=said):
        planted_study.recipe(3, finetune=None, protocol=protocol)

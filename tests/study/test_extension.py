"""Trials beyond an edge: which there are, that every arm is given as many, and a real study killed among them."""

import json
import math
import time

import processes
import pytest
import yaml
from study_on_disk import ARMS, recipe_data
from tiny_study import tiny_study, write_inputs

from kd_megatron.analysis import results
from kd_megatron.errors import RecipeError
from kd_megatron.files.records import read_metrics
from kd_megatron.recipe import StudyRecipe
from kd_megatron.report.study import tuning_tables
from kd_megatron.study import begin, execute, extension, trials, tuning
from kd_megatron.study.claim import claim_study
from kd_megatron.study.effective import LEARNING_RATE

RATES = [1e-3, 2e-3, 4e-3]
TWO = {arm: ARMS[arm] for arm in ("scratch", "vanilla_kd")}
WEIGHTS = {"weights": {"vanilla_kd": {"weight_kd": [1.0, 5.0]}}, "learning_rates": [1e-3, 2e-3]}
ALONE = [5e-4, 1e-3, 2e-3, 4e-3]


def recipe_of(budget=6e13, arms=TWO, **section):
    whole = {"learning_rates": RATES, "budget": {"flops": 1e12}} | section
    return StudyRecipe.model_validate(recipe_data(arms=arms, tuning=whole, budget={"flops": budget}))


def run_trials(recipe, directory, loss):
    """Do what the pieces of tuning do, the training of a trial replaced by ``loss(arm, setting, seed)``."""

    def pretend(where, found):
        where.mkdir(parents=True, exist_ok=True)
        if found is None:
            (where / trials.NON_FINITE_FILE).write_text("{}")
            return
        summary = {"status": "finished", "steps": 3, "tokens": 30, "budget": {"spent": 1e12}}
        (where / "summary.json").write_text(json.dumps(summary | {"validation": {"probe_mlm_loss": found}}))

    def train(these):
        for trial in these:
            for seed in recipe.tuning.seeds:
                where = trials.trial_directory(directory, trial, recipe.tuning, seed)
                pretend(where, loss(trial.arm, trial.setting, seed))

    train(trial for arm in recipe.arms for trial in trials.trials(recipe.tuning, arm))
    for number in range(1, recipe.tuning.most_extensions + 1):
        train(extension.decide(recipe, directory, number))
    found = tuning.summed_up(recipe, directory)
    (directory / "tuning.json").write_text(json.dumps(found))
    return found


def nearest(best):
    """The loss of a learning rate: the farther from ``best`` (by arm), by factors, the higher."""
    return lambda arm, setting, _: 3.0 + abs(math.log(setting[LEARNING_RATE] / best[arm]))


def rates(found, arm):
    return [row["setting"][LEARNING_RATE] for row in found["trials"][arm]]


@pytest.mark.parametrize(("best", "side", "more"), [(1e-3, "below", 5e-4), (4e-3, "above", 8e-3)])
def test_a_best_value_at_an_edge_extends_the_list_of_every_arm_on_that_side(tmp_path, best, side, more):
    found = run_trials(recipe_of(), tmp_path, nearest({"scratch": best, "vanilla_kd": 2e-3}))
    assert rates(found, "scratch") == rates(found, "vanilla_kd") == [*RATES, more]
    assert found["extensions"] == [[{"which": "learning_rate", "side": side, "arms": ["scratch"]}]]
    assert found["chosen"] == {"scratch": {LEARNING_RATE: best}, "vanilla_kd": {LEARNING_RATE: 2e-3}}
    assert found["at_edge"] == {"scratch": [], "vanilla_kd": []}
    assert found["num_trials"] == 4


def test_edges_on_both_sides_give_every_arm_both(tmp_path):
    found = run_trials(recipe_of(), tmp_path, nearest({"scratch": 1e-3, "vanilla_kd": 4e-3}))
    assert rates(found, "scratch") == rates(found, "vanilla_kd") == [*RATES, 8e-3, 5e-4]


def test_it_goes_on_until_no_best_is_at_an_edge_or_the_recipe_says_stop(tmp_path):
    far = nearest({"scratch": 1.6e-2, "vanilla_kd": 2e-3})
    found = run_trials(recipe_of(most_extensions=5), tmp_path / "five", far)
    assert rates(found, "vanilla_kd") == [*RATES, 8e-3, 1.6e-2, 3.2e-2]
    assert found["chosen"]["scratch"] == {LEARNING_RATE: 1.6e-2}
    assert not any(found["at_edge"].values())
    found = run_trials(recipe_of(most_extensions=1), tmp_path / "one", far)
    assert rates(found, "scratch") == [*RATES, 8e-3]
    assert found["at_edge"] == {"scratch": [LEARNING_RATE], "vanilla_kd": []}
    found = run_trials(recipe_of(most_extensions=0), tmp_path / "none", far)
    assert rates(found, "scratch") == RATES
    assert found["at_edge"]["scratch"] == [LEARNING_RATE]
    assert not (tmp_path / "none" / "tuning" / "rounds.json").exists()


def test_a_weight_goes_on_like_a_rate_and_arms_without_one_are_given_as_many(tmp_path):
    def loss(arm, setting, _):
        return 3.0 - setting["weight_kd"] / 100 if arm == "vanilla_kd" else abs(setting[LEARNING_RATE] - 1e-3)

    found = run_trials(recipe_of(**WEIGHTS, learning_rates_alone=ALONE, most_extensions=1), tmp_path, loss)
    (ends,) = found["extensions"]
    assert {(end["which"], end["side"]) for end in ends} == {("weight", "above"), ("learning_rate", "below")}
    added = {arm: [row["setting"] for row in rows if row["round"]] for arm, rows in found["trials"].items()}
    assert added["vanilla_kd"] == [  # each value with the best of the other one
        {LEARNING_RATE: 5e-4, "weight_kd": 5.0}, {LEARNING_RATE: 1e-3, "weight_kd": 25.0},
    ]  # fmt: skip
    assert added["scratch"] == [{LEARNING_RATE: 2.5e-4}, {LEARNING_RATE: 8e-3}]  # its own list, on the same sides
    assert found["at_edge"] == {"scratch": [], "vanilla_kd": ["weight_kd"]}


def test_every_arm_is_given_as_many_trials_whatever_lies_at_an_edge(tmp_path):
    for number, best in enumerate((1e-5, 5e-4, 1e-3, 4e-3, 1.0)):

        def loss(arm, setting, _, best=best):
            return abs(setting[LEARNING_RATE] / best - 1) + 1 / setting.get("weight_kd", 1.0)

        recipe = recipe_of(**WEIGHTS, learning_rates_alone=ALONE)
        found = run_trials(recipe, tmp_path / str(number), loss)
        assert len(found["trials"]["scratch"]) == len(found["trials"]["vanilla_kd"]) == found["num_trials"]
        assert 4 < found["num_trials"] <= extension.most_trials(recipe) == 4 + 2 * 4


def test_a_list_of_one_value_does_not_go_on():
    one = {"learning_rates": [1e-3], "most_extensions": 3}
    assert recipe_of(**one).tuning.most_extra_trials == 0
    rows = [{"setting": {LEARNING_RATE: 1e-3}, "is_finite": True, "probe_mlm_loss": 3.0}]
    assert extension.ends(recipe_of(**one), {"scratch": rows, "vanilla_kd": rows}) == []


@pytest.mark.parametrize(
    ("values", "side", "expected"),
    [
        ({1e-3, 3e-3, 2.5e-4}, "above", 9e-3),
        ({1e-3, 3e-3, 2.5e-4}, "below", 6.25e-5),
        ({1.0}, "above", None),
        ({0.0, 1.0}, "below", None),
        ({0.0, 1.0}, "above", None),  # no ratio
        ({0.0, 1.0, 2.0}, "above", 4.0),
    ],
)
def test_a_list_is_continued_in_the_ratio_of_its_last_two(values, side, expected):
    assert extension.continued(values, side) == expected


def test_an_edge_where_the_objective_ends_is_named_and_not_followed(tmp_path, monkeypatch):
    from kd_megatron.objectives import of_arm

    parse = of_arm.parse_options

    def up_to_five(options, where):
        if options.get("weight_kd", 0) > 5:
            raise RecipeError(given="weight_kd")
        return parse(options, where)

    monkeypatch.setattr(of_arm, "parse_options", up_to_five)
    loss = lambda arm, setting, _: 9.0 - setting.get("weight_kd", 0) + abs(setting[LEARNING_RATE] - 2e-3)  # noqa: E731
    alone = [5e-4, 1e-3, 2e-3, 4e-3]
    recipe = recipe_of(weights=WEIGHTS["weights"] | {}, learning_rates=[1e-3, 2e-3], learning_rates_alone=alone)
    found = run_trials(recipe, tmp_path, loss)
    assert "weight_kd" in found["at_edge"]["vanilla_kd"]
    assert not [end for one in found["extensions"] for end in one if end["which"] == "weight"]


def test_what_an_arm_cannot_follow_is_given_up_and_counted(tmp_path):
    """Learning rates of one value, of which the arm with a weight has all: it goes on with its weight instead."""
    section = {"learning_rates": [1e-3], "weights": WEIGHTS["weights"], "learning_rates_alone": [1e-3, 2e-3]}
    loss = lambda arm, setting, _: 1 / setting[LEARNING_RATE] - setting.get("weight_kd", 0)  # noqa: E731
    found = run_trials(recipe_of(**section, most_extensions=1), tmp_path / "a", loss)
    assert [row["setting"] for row in found["trials"]["vanilla_kd"]][2:] == [
        {LEARNING_RATE: 1e-3, "weight_kd": 25.0}, {LEARNING_RATE: 1e-3, "weight_kd": 125.0},
    ]  # fmt: skip
    section["weights"] = {"vanilla_kd": {"weight_kd": [1.0, None]}}
    found = run_trials(recipe_of(**section, most_extensions=1), tmp_path / "b", loss)
    assert rates(found, "scratch") == [1e-3, 2e-3, 4e-3]
    assert len(found["trials"]["vanilla_kd"]) == 1
    assert found["num_trials"] == 3


def test_charged_trials_count_as_they_were_made_and_leave_half_of_the_budget(tmp_path):
    best = nearest({"scratch": 8e-3, "vanilla_kd": 2e-3})
    found = run_trials(recipe_of(charged=True), tmp_path / "much", best)
    assert found["num_trials"] == 5
    assert found["charged"] == {"scratch": 5e12, "vanilla_kd": 5e12}
    little = recipe_of(charged=True, budget=8e12)  # half of it pays four trials
    assert extension.most_trials(little) == 4
    found = run_trials(little, tmp_path / "little", best)
    assert found["num_trials"] == 4
    assert found["charged"] == {"scratch": 4e12, "vanilla_kd": 4e12}
    assert found["at_edge"]["scratch"] == [LEARNING_RATE]
    assert tuning.less_trials(little, at_most=True).arms["scratch"]["budget.flops"] == 4e12


# --- several seeds ------------------------------------------------------------------------------------------


def test_the_mean_over_seeds_chooses_and_one_that_is_not_finite_is_the_worst(tmp_path):
    losses = {1e-3: [3.0, 3.2], 2e-3: [2.0, 4.4], 4e-3: [1.0, None]}
    recipe = recipe_of(num_seeds=2, charged=True, most_extensions=0)
    found = run_trials(recipe, tmp_path, lambda arm, setting, seed: losses[setting[LEARNING_RATE]][seed - 1000])
    assert found["chosen"]["scratch"] == {LEARNING_RATE: 1e-3}
    rows = found["trials"]["scratch"]
    assert [row["probe_mlm_loss"] for row in rows] == [pytest.approx(3.1), pytest.approx(3.2), None]
    assert [row["is_finite"] for row in rows] == [True, True, False]
    assert [run["seed"] for run in rows[0]["runs"]] == [1000, 1001]
    assert (rows[0]["steps"], rows[0]["spent"]) == (6, 2e12)
    assert found["charged"]["scratch"] == 6e12  # the one that was not finite as a whole
    assert (tmp_path / "tuning" / "scratch" / "trial_0" / "seed_1001").is_dir()


def test_a_trial_with_several_seeds_is_finished_when_all_are(tmp_path):
    recipe = recipe_of(num_seeds=2)
    first = trials.trials(recipe.tuning, "scratch")[0]
    pieces = trials.trial_pieces(recipe, tmp_path, first)
    assert [piece.label.rpartition(", ")[2] for piece in pieces] == ["seed 1000", "seed 1001"]
    where = trials.trial_directory(tmp_path, first, recipe.tuning, 1000)
    where.mkdir(parents=True)
    (where / trials.NON_FINITE_FILE).write_text("{}")
    assert [piece.is_finished() for piece in pieces] == [True, False]
    assert trials.result(recipe.tuning, tmp_path, first) is None


def test_no_seed_of_tuning_is_reported():
    with pytest.raises(ValueError, match=r"seed 2 of tuning is one of seeds"):
        recipe_of(seed=2, num_seeds=3)
    with pytest.raises(ValueError, match="use up the whole budget"):
        recipe_of(charged=True, num_seeds=30)


# --- a study that grows, is edited, or is old -----------------------------------------------------------------


def test_an_arm_that_comes_later_follows_the_rounds_of_the_others(tmp_path):
    run_trials(recipe_of(), tmp_path, nearest({"scratch": 8e-3, "vanilla_kd": 2e-3}))
    grown = recipe_of(arms=TWO | {"minilm": ARMS["minilm"]})
    best = {"scratch": 8e-3, "vanilla_kd": 2e-3, "minilm": 1e-3}
    found = run_trials(grown, tmp_path, nearest(best))
    assert rates(found, "minilm") == rates(found, "scratch") == [*RATES, 8e-3, 1.6e-2]
    assert found["at_edge"] == {"scratch": [], "vanilla_kd": [], "minilm": [LEARNING_RATE]}  # no trials for others now


def test_an_older_choice_is_read_as_before_and_nothing_is_run_for_it(tmp_path):
    recipe = recipe_of()
    claim_study(recipe, tmp_path)
    old = run_trials(recipe_of(most_extensions=0), tmp_path, nearest({"scratch": 4e-3, "vanilla_kd": 2e-3}))
    old = {key: part for key, part in old.items() if key not in ("extensions", "num_seeds")}
    old["trials"] = {arm: [{**row} for row in rows] for arm, rows in old["trials"].items()}
    for rows in old["trials"].values():
        for row in rows:
            del row["round"]
    (tmp_path / "tuning.json").write_text(json.dumps(old))
    assert all(piece.is_finished() for piece in tuning.tuning_pieces(recipe, tmp_path))
    said = " ".join(tuning_tables.tuning_caveats(results.load(tmp_path)))
    assert "at the edge of those tried, and a better one may lie beyond: scratch learning_rate 0.004" in said
    assert "more, one beyond each edge" not in said
    assert "3 trials for every arm" in tuning_tables.tuning(results.load(tmp_path)).note


def test_an_edit_of_tuning_forgets_the_rounds_and_one_of_an_arm_does_not(tmp_path):
    claim_study(recipe_of(), tmp_path)
    run_trials(recipe_of(), tmp_path, nearest({"scratch": 8e-3, "vanilla_kd": 2e-3}))
    rounds = extension.rounds_file(tmp_path)
    arms = TWO | {"vanilla_kd": TWO["vanilla_kd"] | {"temperature": 4.0}}
    claim_study(recipe_of(arms=arms), tmp_path, ["vanilla_kd"])
    assert rounds.is_file()
    claim_study(recipe_of(arms=arms, learning_rates=[1e-4, 2e-4]), tmp_path, ["scratch", "vanilla_kd"])
    assert not rounds.exists()
    assert extension.decided(tmp_path) == ([], False)


def test_the_report_says_what_lay_at_an_edge_and_what_was_tried_beyond(tmp_path):
    recipe = recipe_of(num_seeds=2)
    claim_study(recipe, tmp_path)
    run_trials(recipe, tmp_path, nearest({"scratch": 8e-3, "vanilla_kd": 2e-3}))
    study = results.load(tmp_path)
    said = " ".join(tuning_tables.tuning_caveats(study))
    assert "every arm was given 2 trials more, one beyond each edge: learning rate above (scratch); then" in said
    table = tuning_tables.tuning(study)
    assert "5 trials for every arm" in table.note
    assert "seeds 1000 to 1001" in table.note
    outcomes = [row["outcome"] for row in table.rows if row["arm"] == "scratch"]
    assert outcomes == ["", "", "", "beyond an edge, round 1; chosen", "beyond an edge, round 2"]
    assert table.rows[0]["losses_by_seed"].count(",") == 1


# --- a real one, killed ---------------------------------------------------------------------------------------


def test_a_study_killed_beyond_an_edge_goes_on_to_the_same_choice(tmp_path):
    inputs = write_inputs(tmp_path / "inputs")
    recipe = tiny_study(
        inputs,
        tuning={"learning_rates": [1e-5, 4e-5], "budget": {"tokens": 40 * 8 * 16}, "most_extensions": 2},
        training={"checkpoint_every_steps": 4},
        validation={"probe_steps": 1},
    )
    recipe = recipe.model_copy(update={"arms": {arm: recipe.arms[arm] for arm in ("scratch", "minilm")}})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    command = ["-m", "kd_megatron", "sweep", str(tmp_path / "recipe.yaml"), "--output"]
    beyond = tmp_path / "killed" / "tuning" / "minilm" / "trial_2"
    (process,) = processes.start([*command, str(tmp_path / "killed")])
    deadline = time.monotonic() + 200
    while len(read_metrics(beyond)) < 6 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert read_metrics(beyond)
    assert not (beyond / "summary.json").exists(), "it was not killed within the round"
    assert extension.decided(tmp_path / "killed")[0]
    for name in ("killed", "whole"):
        (process,) = processes.start([*command, str(tmp_path / name)])
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    killed, whole = (json.loads((tmp_path / name / "tuning.json").read_text()) for name in ("killed", "whole"))
    assert killed == whole
    assert killed["extensions"]
    assert len({len(rows) for rows in killed["trials"].values()}) == 1
    steps = [row["step"] for row in read_metrics(beyond) if "learning_rate" in row]
    assert steps == list(range(1, 41))


def test_pieces_of_a_stopped_round_are_run_once(tmp_path, monkeypatch):
    """Stopped after each trial in turn, the rounds are the same and no trial is run twice."""
    recipe, ran, left = recipe_of(), [], [1]
    best = nearest({"scratch": 8e-3, "vanilla_kd": 2e-3})
    whole = run_trials(recipe, tmp_path / "whole", best)

    def pretend(study, arm, seed, where, teacher):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        ran.append(where)
        where.mkdir(parents=True)
        loss = best(arm, {LEARNING_RATE: study.training.learning_rate}, seed)
        summary = {"status": "finished", "steps": 3, "tokens": 30, "budget": {"spent": 1e12}}
        (where / "summary.json").write_text(json.dumps(summary | {"validation": {"probe_mlm_loss": loss}}))

    monkeypatch.setattr("kd_megatron.training.run.pretrain", pretend)
    for _ in range(20):
        left[:] = [1]
        try:
            execute.run_pieces(tuning.tuning_pieces(recipe, tmp_path / "s"), tmp_path / "s")
            break
        except KeyboardInterrupt:
            continue
    assert len(ran) == len(set(ran)) == 10
    assert json.loads((tmp_path / "s" / "tuning.json").read_text()) == whole


def test_a_budget_that_the_most_trials_leave_too_little_of_is_refused_until_it_is_known(tmp_path):
    charged = {"learning_rates": [1e-3, 2e-3], "budget": {"tokens": 2 * 8 * 16}, "charged": True}
    recipe = tiny_study(tmp_path, validation={"at": [0.05, 0.1, 1.0]}, tuning=charged)
    with pytest.raises(RecipeError, match="so that validations at"):
        begin.refuse_too_small(recipe, tmp_path)  # five trials of 2 steps would leave 10 of 20
    chosen = {arm: {LEARNING_RATE: 1e-3} for arm in recipe.arms}
    spent = dict.fromkeys(recipe.arms, 0.0)
    (tmp_path / "tuning.json").write_text(json.dumps({"chosen": chosen, "charged": spent}))
    begin.refuse_too_small(recipe, tmp_path)

"""Split and shard of a document follow from its text alone."""

from data_prep.assign import document_digest, num_valid_shards, shard_names, shard_of


def assignments(recipe, num_documents=4000):
    return [shard_of(document_digest(f"document {index}"), recipe) for index in range(num_documents)]


def test_every_shard_gets_its_share(make_recipe):
    recipe = make_recipe("x.txt", valid_fraction=0.25, num_shards=4)
    shards = assignments(recipe)
    assert set(shards) == set(shard_names(recipe))
    assert num_valid_shards(recipe) == 1
    for name in shard_names(recipe):
        share = shards.count(name) / len(shards)
        assert abs(share - (0.25 if name.startswith("valid") else 0.75 / 4)) < 0.03  # 4.4 standard deviations


def test_a_larger_held_out_split_contains_the_smaller_one(make_recipe):
    held_out = [
        {index for index, name in enumerate(assignments(make_recipe("x.txt", valid_fraction=f))) if "valid" in name}
        for f in (0.01, 0.1, 0.5)
    ]
    assert held_out[0] < held_out[1] < held_out[2]


def test_the_split_does_not_depend_on_the_number_of_shards(make_recipe):
    few, many = (assignments(make_recipe("x.txt", num_shards=n)) for n in (2, 64))
    assert [name[:5] for name in few] == [name[:5] for name in many]


def test_the_assignment_is_the_same_for_ever(make_recipe):
    assert document_digest("The sea.").hex() == "52bee978d479bb67765fb6e0d50b803c"
    assert shard_of(document_digest("The sea."), make_recipe("x.txt", num_shards=1000)) == "train-00036"


def test_nothing_or_everything_held_out(make_recipe):
    assert not any("valid" in name for name in assignments(make_recipe("x.txt", valid_fraction=0.0), 200))
    assert all("valid" in name for name in assignments(make_recipe("x.txt", valid_fraction=1.0), 200))

"""``prepare`` and ``inspect`` from the command line, and the shipped corpus recipes."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kd_megatron.cli import inspect as inspect_command
from kd_megatron.cli import prepare as prepare_command
from kd_megatron.errors import DataError, OutputError, RecipeError
from kd_megatron.recipe import CorpusRecipe, config

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "recipes" / "data").glob("*.yaml"))


def run(command, *arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def recipe_path(corpus, make_recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(make_recipe(corpus).model_dump(mode="json")))
    return path


def test_prepare_then_inspect(recipe_path, tmp_path, capsys):
    assert run(prepare_command, recipe_path, "num_shards=2", "--workers", "1") == 0
    out = capsys.readouterr().out
    assert "3 shards" in out
    assert "300 documents" in out
    assert run(inspect_command, tmp_path / "out", "--samples", "4", "--length", "20") == 0
    out = capsys.readouterr().out
    for expected in ("harbour", "CC0", "dropped duplicate", "bytes of text per token", "verified"):
        assert expected in out
    assert out.count(", tokens ") == 4


def test_inspect_fails_on_a_mismatch(recipe_path, tmp_path):
    run(prepare_command, recipe_path)
    shard = tmp_path / "out" / "train-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train-00001\.bin") as caught:
        run(inspect_command, tmp_path / "out")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["num_shard=2"], RecipeError, "did you mean 'num_shards'"),
        (["num_shards=0"], RecipeError, "num_shards"),
        (["sources=[]"], RecipeError, "sources"),
        (["sources=[{type: file, paths: [x]}]"], RecipeError, "type"),
        (["--workers", "0"], RecipeError, "--workers 0"),
        (["sources=[{type: files, paths: [x.txt]}]"], DataError, "x.txt does not exist"),
    ],
)
def test_wrong_arguments(recipe_path, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        run(prepare_command, recipe_path, *arguments)
    assert not list(tmp_path.glob("out*"))


def test_the_output_of_another_recipe_is_kept(recipe_path, tmp_path):
    run(prepare_command, recipe_path)
    with pytest.raises(OutputError, match="num_shards"):
        run(prepare_command, recipe_path, "num_shards=1")
    assert run(inspect_command, tmp_path / "out", "--quick", "--samples", "0") == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    recipe = config.load(path, CorpusRecipe)
    assert recipe.output == f"data/{recipe.name}"
    assert path.stem == recipe.name
    assert all(source.licence != "not stated" for source in recipe.sources)


def test_help_needs_no_heavy_library():
    script = (
        "import argparse, sys; from kd_megatron.cli import inspect, prepare\n"
        "for command in (inspect, prepare): command.add_arguments(p := argparse.ArgumentParser()); p.format_help()\n"
        "print({'torch', 'transformers', 'rich', 'pydantic'} & sys.modules.keys())"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert output.stdout.strip() == "set()"

"""``prepare``: corpus -> tokenizer -> verified shards."""

import argparse
import time

HELP = "prepare a corpus: read, clean, train or load a tokenizer, write verified .bin/.idx shards"

DESCRIPTION = """
Turns the sources of a corpus recipe into a shard set that the students read.

  1. read     docstrings of the installed packages, files (.txt .jsonl .parquet, also .gz .xz .zst), or the hub
  2. clean    unicode and white space; drop short, non-English, letterless and repeated documents (all counted)
  3. tokenize load a tokenizer, or train WordPiece on the corpus; some documents are held out, chosen by their hash
  4. write    many megatron-core shards in parallel, each checked; the directory appears whole, or not at all

Interrupted? Run the same command again: finished shards are kept. Finished? It returns at once.
"""

EXAMPLES = """
examples:
  ./launch.sh prepare recipes/data/installed_docs.yaml
  ./launch.sh prepare recipes/data/installed_docs.yaml output=data/mine num_shards=2 clean.min_characters=500
  ./launch.sh inspect data/installed_docs --samples 5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, ``--workers``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("recipe", help="a corpus recipe, such as recipes/data/installed_docs.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of the recipe")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: the recipe's, or one per core)")


def run(args: argparse.Namespace) -> int:
    """Prepare, then say what is there and what to do with it."""
    from data_prep.prepare import prepare
    from kd_megatron.console import logs
    from kd_megatron.errors import RecipeError
    from kd_megatron.files.manifest import read_manifest
    from kd_megatron.recipe import CorpusRecipe, config

    if args.workers is not None and args.workers < 1:
        raise RecipeError(given=f"--workers {args.workers}", expected="at least 1", fix="leave it out: one per core")
    logs.quiet_libraries()
    recipe = config.load(args.recipe, CorpusRecipe, args.overrides)
    started = time.monotonic()
    directory = prepare(recipe, args.workers)
    seconds = time.monotonic() - started
    manifest = read_manifest(directory)
    train, valid = manifest.tokens("train"), manifest.tokens("valid")
    print(
        f"{directory}: {len(manifest.shards)} shards, vocabulary {manifest.vocab_size:,}, ready after {seconds:.1f} s"
    )
    print(f"  train {train:,} tokens, valid {valid:,} tokens, {manifest.statistics['documents_kept']:,} documents")
    print(f"  look at it: ./launch.sh inspect {directory}")
    return 0

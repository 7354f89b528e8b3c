"""A corpus to prepare: sources, which documents are kept, tokenizer, shards."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from kd_megatron.recipe.config import Strict, given_or_trained
from kd_megatron.recipe.paths import PathPart, PathText, Revision
from kd_megatron.recipe.policy import COUNTS, SPEED, WORDS
from kd_megatron.recipe.types import Count, Fraction


class SourceRecipe(Strict):
    """One source of documents."""

    type: Literal["installed_docs", "files", "huggingface"]
    paths: list[str] = []  # files: files, directories or globs
    text_key: str = "text"  # the field of a .jsonl/.parquet row or of a hub data set that holds the text
    packages: list[str] | None = None  # installed_docs: only these; None takes all that are installed
    dataset: str | None = None  # huggingface: the data set's id
    revision: Revision | None = None  # huggingface: the data set's commit; None: its newest, with a warning
    subset: str | None = None
    split: str = "train"
    skip_documents: Annotated[int, Field(ge=0)] = 0  # at its beginning: two corpora of one source without a shared text
    max_documents: Count | None = None  # after those
    licence: str = "not stated"  # copied to the manifest

    def problems(self) -> Iterator[str]:
        """Without what its type needs."""
        needed = {"files": "paths", "huggingface": "dataset"}.get(self.type)
        if needed and not getattr(self, needed):
            yield f"a source of type {self.type!r} needs {needed!r}"


class CleanRecipe(Strict):
    """Which documents are kept, after unicode normalisation (NFKC) and white-space clean-up."""

    min_characters: Annotated[int, Field(ge=0)] = 200
    max_characters: Count = 1_000_000
    min_letter_fraction: Fraction = 0.6  # letters among the characters that are not white space
    min_english_fraction: Fraction = 0.05  # of words that are among the commonest English ones; 0 switches it off
    deduplicate: bool = True  # exact, by document hash


class TrainTokenizerRecipe(Strict):
    """Train a WordPiece vocabulary on the corpus itself."""

    vocab_size: Count = 30_522
    lowercase: bool = True
    max_documents: Count = 100_000


class TokenizerRecipe(Strict):
    """Either load a tokenizer (local directory, vocab.txt or hub id) or train one."""

    load: str | None = None
    revision: Revision | None = None  # of a hub id, best a full commit
    train: TrainTokenizerRecipe | None = None

    def problems(self) -> Iterator[str]:
        """As `given_or_trained`."""
        return given_or_trained(self, "load")


class CorpusRecipe(Strict):
    """A corpus to prepare: sources -> clean -> tokenizer -> shards."""

    kind: Annotated[Literal["corpus"], COUNTS]
    name: Annotated[PathPart, COUNTS]
    output: Annotated[PathText, WORDS]  # directory of the shard set, anywhere
    sources: Annotated[list[SourceRecipe], Field(min_length=1), COUNTS]
    clean: Annotated[CleanRecipe, COUNTS] = CleanRecipe()
    tokenizer: Annotated[TokenizerRecipe, COUNTS]
    valid_fraction: Annotated[Fraction, COUNTS] = 0.01  # of documents, chosen by their hash
    num_shards: Annotated[Count, COUNTS] = 8
    num_workers: Annotated[Count | None, SPEED] = None  # None: one per core
    description: Annotated[str, WORDS] = ""

"""From a corpus recipe to a verified shard set, in four stages that resume: spool, tokenizer, shards, publication.

Everything is built in ``OUTPUT.partial-KEY`` beside the output, KEY a hash of the recipe and of its sources' files,
so that work for another recipe or another state of the sources is never taken up. One rename publishes the set:
the output directory is complete or absent.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep import read, tokenize
from data_prep.assign import shard_names
from data_prep.spool import Spool, fill
from data_prep.verify import verify
from data_prep.workers import WorkerPool
from data_prep.write import ShardJob, ShardResult, distinct, token_dtype, write_shard
from kd_megatron.console import logs
from kd_megatron.errors import DataError, ModelError, OutputError, RecipeError, disk_full_is_clear
from kd_megatron.files import atomic, hub, locks
from kd_megatron.files.manifest import MANIFEST, TOKENIZER, Manifest, read_manifest, vocabulary_hash, write_manifest
from kd_megatron.recipe import CorpusRecipe, diff


def prepare(recipe: CorpusRecipe, workers: int | None = None) -> Path:
    """Prepare the corpus, or return at once when its output holds exactly this recipe's shard set.

    Args:
        recipe: the corpus.
        workers: processes; ``None`` takes ``recipe.num_workers``, or one per core this process may use. The bytes
            written do not depend on it.

    Returns:
        The directory of the shard set.

    Raises:
        DataError: a source cannot be read or nothing of it is left.
        ModelError: the tokenizer cannot be loaded.
        OutputError: the output holds something else, another process is writing it, or the disk is full.
    """
    output = Path(recipe.output).expanduser().resolve()
    if _is_finished(recipe, output):
        return Path(recipe.output)
    num_workers = workers or recipe.num_workers or len(os.sched_getaffinity(0))
    partial = output.with_name(f"{output.name}.partial-{_key(recipe)}")
    _mention_others(partial, output)
    partial.mkdir(parents=True, exist_ok=True)
    with disk_full_is_clear(partial), _locked(partial), WorkerPool(num_workers) as pool:
        if _is_finished(recipe, output):  # by a process that held the lock until now
            shutil.rmtree(partial, ignore_errors=True)
            return Path(recipe.output)
        try:
            manifest = _build(recipe, partial, pool)
        except (DataError, ModelError):  # the same input ends the same way: nothing here is worth resuming
            shutil.rmtree(partial)
            raise
        _publish(manifest, partial, output)
    return Path(recipe.output)


def _build(recipe: CorpusRecipe, partial: Path, pool: WorkerPool) -> Manifest:
    if (partial / MANIFEST).exists():  # interrupted after the last shard, before the rename
        return read_manifest(partial)
    loaded = _loaded_tokenizer(recipe, partial)  # before the corpus is read: a wrong id fails in seconds
    spool = fill(recipe, partial / "spool", pool)
    tokenizer = loaded or _trained_tokenizer(recipe, spool, partial)
    results = _write_shards(recipe, spool, partial, tokenizer, pool)
    return _manifest(recipe, spool, results, tokenizer)


def _is_finished(recipe: CorpusRecipe, output: Path) -> bool:
    """Whether ``output`` holds this recipe's set (checked, not in full). Raises `OutputError` when it holds another."""
    if os.path.ismount(output):
        raise RecipeError(
            given=f"output {output} is a mount point",
            expected="a directory inside it: the finished set is moved into place by one rename",
            fix=f"set output to {output}/NAME",
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / MANIFEST).is_file():
        raise OutputError(
            given=f"output {output} exists and is not a shard set",
            expected="a new or empty directory, or this recipe's own shard set",
            fix="choose another 'output', or move what is there",
        )
    manifest = read_manifest(output)
    recorded = diff.with_defaults(CorpusRecipe, manifest.recipe)
    found = diff.changes(CorpusRecipe, recorded, recipe, but="shards")
    if different := sorted({change.key.partition(".")[0] for change in found}):
        raise OutputError(
            given=f"output {output} holds another recipe's shard set (different: {', '.join(different)})",
            expected="a new directory, or the recipe that made it",
            fix="choose another 'output', or delete the old set",
        )
    verify(output, full=False)
    _warn_if_sources_changed(recipe, manifest, output)
    return True


def _warn_if_sources_changed(recipe: CorpusRecipe, manifest: Manifest, output: Path) -> None:
    for source, recorded in zip(recipe.sources, manifest.sources, strict=True):
        with contextlib.suppress(DataError):  # the set stands on its own: its sources may be gone by now
            if read.fingerprint(source) != recorded["fingerprint"]:
                logs.warn(f"{read.describe(source)} changed since {output} was prepared; delete it to prepare it anew")


def _key(recipe: CorpusRecipe) -> str:
    """A hash of what determines the shards' bytes: recipe, sources' files, tokenizer's files."""
    sources = [read.fingerprint(source) for source in recipe.sources]
    tokenizer = read.tokenizer_fingerprint(recipe.tokenizer.load)
    settings = recipe.model_dump(mode="json", exclude=diff.left_out(CorpusRecipe, "shards"))
    content = json.dumps([settings, sources, tokenizer], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _mention_others(partial: Path, output: Path) -> None:
    for other in output.parent.glob(f"{output.name}.partial-*"):
        if other == partial:
            continue
        with contextlib.suppress(FileNotFoundError), _locked(other, "choose another 'output'"):
            logs.warn(f"{other} is unfinished work of another recipe or state of the sources; delete it if unwanted")


@contextlib.contextmanager
def _locked(partial: Path, fix: str = "wait for it; it will be found finished") -> Iterator[None]:
    """Hold ``partial``, which exists, for this process; ``fix`` is said where another one has it."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locks.exclusive(partial, wait=False))
        except BlockingIOError as error:
            raise OutputError(
                given=f"another process is preparing {partial}",
                expected="one at a time",
                fix=fix,
            ) from error
        yield


def _loaded_tokenizer(recipe: CorpusRecipe, partial: Path) -> Any | None:
    """The saved tokenizer on resume, else the one that the recipe names; None where one is to be trained."""
    saved = partial / TOKENIZER
    if saved.is_dir():
        return tokenize.load(str(saved))
    return None if recipe.tokenizer.train else _saved(tokenize.load(_tokenizer_source(recipe)), partial)


def _trained_tokenizer(recipe: CorpusRecipe, spool: Spool, partial: Path) -> Any:
    assert recipe.tokenizer.train is not None
    started = time.monotonic()
    texts = itertools.islice(_training_texts(recipe, spool, partial), recipe.tokenizer.train.max_documents)
    tokenizer = tokenize.train(texts, recipe.tokenizer.train, partial / "tokenizer-text.txt")
    seconds = time.monotonic() - started
    logs.say(f"trained a WordPiece vocabulary of {len(tokenizer):,} tokens in {seconds:.0f} s")
    return _saved(tokenizer, partial)


def _saved(tokenizer: Any, partial: Path) -> Any:
    """``tokenizer``, kept beside the shards."""
    with atomic.new_directory(partial / TOKENIZER) as aside:
        tokenizer.save_pretrained(aside)
    return tokenizer


def _tokenizer_source(recipe: CorpusRecipe) -> str:
    """A file or directory of this machine; of a hub id, its files at the recipe's revision."""
    tokenizer = recipe.tokenizer
    return hub.local_directory(str(tokenizer.load), tokenizer.revision, "tokenizer", hub.TOKENIZER_FILES)


def _training_texts(recipe: CorpusRecipe, spool: Spool, partial: Path) -> Iterator[str]:
    """Distinct training documents in shard order; shards follow hashes, so the first ones are a random sample."""
    for name in spool.documents:
        if name.startswith("train"):
            yield from distinct(partial / "spool" / f"{name}.jsonl", recipe.clean.deduplicate)


def _write_shards(
    recipe: CorpusRecipe, spool: Spool, partial: Path, tokenizer: Any, pool: WorkerPool
) -> list[ShardResult]:
    jobs = [
        ShardJob(
            name=name,
            spool=partial / "spool" / f"{name}.jsonl",
            directory=partial,
            tokenizer=partial / TOKENIZER,
            end_id=tokenizer.sep_token_id,
            vocab_size=_vocab_size(tokenizer),
            deduplicate=recipe.clean.deduplicate,
        )
        for name in shard_names(recipe)
        if spool.documents.get(name)
    ]
    num_finished = sum((partial / f"{job.name}.json").exists() for job in jobs)
    if num_finished:
        logs.say(f"resuming: {num_finished} of {len(jobs)} shards are finished already")
    left = sum(spool.documents[job.name] for job in jobs if not (partial / f"{job.name}.json").exists())
    started = time.monotonic()
    with logs.progress_bar("documents") as progress:
        task = progress.add_task(f"writing {len(jobs)} shards", total=left, note="")

        def show(num_documents: int, num_tokens: int) -> None:
            rate = num_tokens / max(time.monotonic() - started, 1e-6)
            progress.update(task, completed=num_documents, note=f"{num_tokens:,} tokens, {rate:,.0f} tokens/s")

        return list(pool.map(write_shard, jobs, on_progress=show))


def _vocab_size(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _manifest(recipe: CorpusRecipe, spool: Spool, results: list[ShardResult], tokenizer: Any) -> Manifest:
    entries = [result.entry for result in results if result.entry]
    statistics = spool.statistics | {
        "dropped_duplicate": sum(result.duplicates for result in results),
        "documents_kept": sum(entry.documents for entry in entries),
        "text_bytes": sum(result.text_bytes for result in results),
    }
    vocab_size = _vocab_size(tokenizer)
    return Manifest(
        name=recipe.name,
        dtype=token_dtype(vocab_size),
        vocab_size=vocab_size,
        tokenizer_sha256=vocabulary_hash(tokenizer.get_vocab()),
        shards=entries,
        statistics=statistics,
        sources=spool.sources,
        recipe=recipe.model_dump(mode="json"),
    )


def _publish(manifest: Manifest, partial: Path, output: Path) -> None:
    """Leave only the set itself in ``partial``, write its manifest, move it into place."""
    kept = {TOKENIZER} | {f"{entry.name}.{kind}" for entry in manifest.shards for kind in ("bin", "idx")}
    write_manifest(partial, manifest)
    for path in partial.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
        elif path.name not in kept | {MANIFEST}:
            path.unlink()
    try:
        os.rename(partial, output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise OutputError(
            given=f"{output} was made by another process meanwhile",
            expected="a new or empty directory",
            fix=f"choose another 'output' and run again, or delete what is there; this set is whole in {partial}",
        ) from error

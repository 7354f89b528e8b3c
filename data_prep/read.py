"""Sources: each becomes batches that a worker process turns into documents.

Text from files and the hub travels in the batch; for the installed packages only the file names do, so that
parsing, the slow part, happens in the workers.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import files, installed_docs
from data_prep.files import field
from data_prep.installed_docs import Module, module_text
from kd_megatron.errors import DataError, KdError
from kd_megatron.files import hub
from kd_megatron.recipe import SourceRecipe, paths

_BATCH_CHARACTERS = 2_000_000
_BATCH_MODULES = 100


@dataclass(frozen=True)
class TextBatch:
    """Documents as read, and how many bytes of the source they took (0 when not known)."""

    texts: list[str]
    source_bytes: int

    def documents(self) -> list[str]:
        """The raw documents."""
        return self.texts


@dataclass(frozen=True)
class ModuleBatch:
    """Python files whose docstrings are documents: one document for each file that has any."""

    modules: list[Module]
    source_bytes: int

    def documents(self) -> list[str]:
        """The raw documents; parses the files."""
        return [text for module in self.modules if (text := module_text(module).strip())]


Batch = TextBatch | ModuleBatch


def read_batches(source: SourceRecipe) -> Iterator[Batch]:
    """All documents of a source, in a fixed order. Raises `DataError` for what cannot be read."""
    if source.type == "installed_docs" and source.max_documents is None and not source.skip_documents:
        yield from _module_batches(source)
    else:
        first, most = source.skip_documents, source.max_documents
        yield from _text_batches(itertools.islice(_documents(source), first, None if most is None else first + most))


def source_bytes(source: SourceRecipe) -> int | None:
    """The size on disk of what `read_batches` reads (the progress bar's total); None when not known."""
    if source.type == "huggingface" or source.max_documents is not None:
        return None
    return sum(size for _, size, _ in _stat(source))


def fingerprint(source: SourceRecipe) -> str:
    """Changes when the source's files do (names, sizes, times); for a data set of the hub, when its id does."""
    seen: list[Any] = [source.dataset, source.subset, source.split] if source.type == "huggingface" else _stat(source)
    if source.type == "huggingface" and source.dataset and hub.is_local(source.dataset):
        found = sorted(path for path in Path(paths.expand(source.dataset)).rglob("*") if path.is_file())
        seen += [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def describe(source: SourceRecipe) -> str:
    """A short name for messages and tables."""
    if source.type == "files":
        return "files " + " ".join(source.paths)
    if source.type == "huggingface":
        return " ".join(["hub", str(source.dataset), source.subset or "", source.split])
    return "docstrings of " + (", ".join(source.packages) if source.packages else "all installed packages")


def _stat(source: SourceRecipe) -> list[tuple[str, int, int]]:
    """Path, size, time of each file. Installed packages: time left out, it only says when they were installed."""
    if source.type == "files":
        stats = [(path, path.stat()) for path in files.expand(source.paths)]
        return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    modules = installed_docs.list_modules(source.packages)
    return [(module.name, module.path.stat().st_size, 0) for module in modules]


def _documents(source: SourceRecipe) -> Iterator[tuple[str, int]]:
    """Each document with the bytes of the source that were read since the one before."""
    if source.type == "files":
        for path in files.expand(source.paths):
            before = 0
            for text, position in files.documents(path, source.text_key):
                yield text, position - before
                before = position
    elif source.type == "huggingface":
        yield from ((text, 0) for text in _hub_documents(source))
    else:
        texts = (module_text(module).strip() for module in installed_docs.list_modules(source.packages))
        yield from ((text, 0) for text in texts if text)


def _text_batches(documents: Iterator[tuple[str, int]]) -> Iterator[TextBatch]:
    texts: list[str] = []
    num_characters = num_bytes = 0
    for text, source_bytes_read in documents:
        texts.append(text)
        num_characters += len(text)
        num_bytes += source_bytes_read
        if num_characters >= _BATCH_CHARACTERS:
            yield TextBatch(texts, num_bytes)
            texts, num_characters, num_bytes = [], 0, 0
    if texts:
        yield TextBatch(texts, num_bytes)


def _module_batches(source: SourceRecipe) -> Iterator[ModuleBatch]:
    modules = installed_docs.list_modules(source.packages)
    for first in range(0, len(modules), _BATCH_MODULES):
        batch = modules[first : first + _BATCH_MODULES]
        yield ModuleBatch(batch, sum(module.path.stat().st_size for module in batch))


def _hub_documents(source: SourceRecipe) -> Iterator[str]:
    """Stream a data set of the hub (or a local directory in its layout); no code of the data set is ever run."""
    import datasets

    name = f"data set {source.dataset}" + (f" ({source.subset})" if source.subset else "")
    hub.check_data_revision(str(source.dataset), source.revision, describe(source))
    try:
        rows = datasets.load_dataset(
            paths.expand(str(source.dataset)),
            source.subset,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
        for row_number, row in enumerate(rows, start=1):
            yield field(row, source.text_key, f"{name}, row {row_number}")
    except (KdError, GeneratorExit):
        raise
    except Exception as error:  # the library raises dozens of classes, from its own, requests', httpx' and pyarrow's
        raise DataError(
            given=f"{name}, split {source.split!r}, cannot be read: {type(error).__name__}: {error}",
            expected="a data set that the Hugging Face hub serves as files (no loading script)",
            fix="check dataset, subset and split, and that this machine reaches huggingface.co "
            "(or download it elsewhere and use a source of type 'files')",
        ) from error


def tokenizer_fingerprint(load: str | None) -> list[tuple[str, int, int]]:
    """The tokenizer's files when it is loaded from this machine's disk."""
    path = Path(paths.expand(load)) if load else None
    if path is None or not path.exists():
        return []
    chosen = [path] if path.is_file() else sorted({*path.glob("*token*"), *path.glob("vocab*"), *path.glob("merges*")})
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in chosen]

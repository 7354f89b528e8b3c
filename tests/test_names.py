"""One word, one thing: no two public classes of the sources have one name."""

import ast
from collections import defaultdict

import imports


def classes() -> dict[str, list[str]]:
    """Name of each public class -> the modules that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, path in imports.modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(module)
    return found


def test_each_class_has_a_name_of_its_own():
    found = classes()
    assert len(found) > 200
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}

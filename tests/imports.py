"""Who imports whom, read from the sources: layers, circles, sizes. As a program it prints the figures.

.venv/bin/python -m tests.imports
"""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ("kd_megatron", "data_prep")
TOPS = (*INSTALLED, "benchmarks")

# From the bottom up: a package imports itself and what stands in lines above its own; those of one line do not meet.
LAYERS = (
    ("errors", "redact", "tensors"),
    ("recipe", "ranks"),
    ("ledger", "machine", "console"),
    ("files",),
    ("kernels", "data_prep", "launch"),
    ("objectives", "models", "data", "teacher_cache"),
    ("engine",),
    ("training", "finetune"),
    ("study", "inputs"),
    ("analysis", "planner"),
    ("report",),
    ("cli",),
    ("benchmarks",),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
LOOSE = 6  # modules at the top of kd_megatron, at most
LARGEST_SHARE = 0.15  # of the installed lines, of one package


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of all sources."""
    found = {}
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[dotted.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> Iterator[str]:
    """Every dotted module that a file imports, inside functions too; a name of a module counts as that module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer; write the full name"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in modules() else str(node.module)


@cache
def graph() -> dict[str, set[str]]:
    """Module -> those of this repository that it imports."""
    known = modules()
    return {name: {one for one in imports_of(path) if one in known and one != name} for name, path in known.items()}


def package_of(module: str) -> str:
    """The package of a module: below kd_megatron the next name, elsewhere the top one; ``""`` of kd_megatron itself."""
    top, _, rest = module.partition(".")
    if top != "kd_megatron":
        return top
    name = rest.partition(".")[0]
    return "cli" if name == "__main__" else name


def upward() -> list[str]:
    """Imports that do not point down, each as ``"a imports b"``."""
    found = []
    for module, imported in graph().items():
        own = package_of(module)
        for other in sorted(imported):
            package = package_of(other)
            if package and package != own and HEIGHT[package] >= HEIGHT[own]:
                found.append(f"{module} imports {other}")
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts with more than one member (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = [stack.pop()]
            while part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for node in list(edges):
        if node not in index:
            visit(node)
    return found


def package_graph() -> dict[str, set[str]]:
    """Package -> those that it imports."""
    edges: dict[str, set[str]] = defaultdict(set)
    for module, imported in graph().items():
        edges[package_of(module)] |= {package_of(other) for other in imported} - {package_of(module), ""}
    return dict(edges)


def lines() -> Counter[str]:
    """Lines of each installed package."""
    counted: Counter[str] = Counter()
    for module, path in modules().items():
        if module.partition(".")[0] in INSTALLED:
            counted[package_of(module)] += len(path.read_text(encoding="utf-8").splitlines())
    return counted


def loose() -> list[str]:
    """Modules at the top of kd_megatron, without the two that Python itself asks for."""
    return sorted(path.stem for path in (ROOT / "kd_megatron").glob("*.py") if not path.stem.startswith("__"))


def main() -> None:
    """Print the figures."""
    counted = lines()
    total = sum(counted.values())
    print(f"circles of modules: {len(circles(graph()))}, of packages: {len(circles(package_graph()))}")
    print(f"imports that do not point down: {len(upward())}")
    print(f"loose modules: {len(loose())} ({', '.join(loose())})")
    print(f"installed lines: {total:,}, of them kd_megatron {total - counted['data_prep']:,}")
    for package, number in counted.most_common():
        print(f"  {package or 'kd_megatron itself':<20}{number:>7,}{number / total:>7.1%}")


if __name__ == "__main__":
    main()

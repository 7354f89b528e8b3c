"""The embedded corpus: English docstrings of the Python packages installed beside this one.

Real prose that every machine has. Files are parsed with `ast`, never imported, so that reading them runs no
foreign code. Test suites are left out: they take a third of the parsing and hold 2 % of the text.
"""

import ast
import gc
import re
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kd_megatron.errors import DataError, nearest

_TEST_DIRECTORIES = frozenset({"test", "tests", "_tests", "testing", "conftest.py"})
_RULER = re.compile(r"[-=~^*#+|\s]{3,}")
_ROLE = re.compile(r"(?::[a-z]+)+:`[~!]?")  # :class:`~torch.Tensor` -> `torch.Tensor`
_QUOTES = re.compile(r"`+_{0,2}")


@dataclass(frozen=True)
class Docstring:
    """One docstring: the top-level package, the dotted name of what it documents, and the dedented text."""

    package: str
    name: str
    text: str


@dataclass(frozen=True)
class Module:
    """One source file of an installed package, with its dotted name."""

    package: str
    name: str
    path: Path


def list_modules(packages: list[str] | None = None) -> list[Module]:
    """The source files of installed packages (None: all), sorted by package and path.

    Raises:
        DataError: a package is not installed as Python source.
    """
    by_package: dict[str, list[Module]] = {}
    for site in sorted({Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}):
        for path in _python_files(site):
            parts = path.relative_to(site).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            by_package.setdefault(parts[0], []).append(Module(parts[0], name, path))
    for package in packages or []:
        if package not in by_package:
            raise DataError(
                given=f"package {package!r} is not among the installed ones",
                expected="the top-level import name of an installed package",
                fix=f"correct 'packages' of the source; {nearest(package, by_package)}",
            )
    chosen = sorted(set(packages)) if packages is not None else sorted(by_package)
    return [module for package in chosen for module in sorted(by_package[package], key=lambda m: m.path.parts)]


def _python_files(site: Path) -> Iterator[Path]:
    if not site.is_dir():
        return
    for path in site.rglob("*.py"):
        parts = path.relative_to(site).parts
        is_test = not _TEST_DIRECTORIES.isdisjoint(parts) or parts[-1].startswith("test_")
        if not is_test and path.is_file():
            yield path


def read_docstrings(module: Module) -> list[Docstring]:
    """The docstrings of one file in source order; none when Python cannot parse it."""
    try:
        source = module.path.read_bytes()
        tree = _parse(source) if b'"""' in source or b"'''" in source else None
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # Python 2 leftovers, templates and undecodable files are shipped by real packages
    if tree is None:
        return []
    return [
        Docstring(module.package, name, text)
        for name, node in _documented(tree, module.name)
        if (text := ast.get_docstring(node, clean=True))
    ]


def module_text(module: Module) -> str:
    """One document: the docstrings of a file, one after the other, as prose."""
    return "\n\n".join(prose(docstring.text) for docstring in read_docstrings(module))


def prose(text: str) -> str:
    """A docstring without its doctest sessions (code), rulers, reST roles and quoting marks."""
    kept, in_session = [], False
    for line in text.splitlines():
        stripped = line.strip()
        in_session = stripped.startswith(">>>") or (in_session and bool(stripped))
        if not in_session and not _RULER.fullmatch(stripped):
            kept.append(line)
    return _QUOTES.sub("", _ROLE.sub("`", "\n".join(kept)))


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(tree: ast.Module, module_name: str) -> Iterator[tuple[str, _Documented]]:
    """Everything that can have a docstring, with its dotted name, in source order.

    An explicit stack, and statements only: a long ``elif`` chain is a deep tree, and expressions hold nothing.
    """
    stack: list[tuple[str, ast.AST]] = [(module_name, tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{name}.{node.name}"
        if isinstance(node, _Documented):
            yield name, node
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
        stack.extend((name, child) for child in reversed(children))


def _parse(source: bytes) -> ast.Module:
    with warnings.catch_warnings(), _collector_paused():
        warnings.simplefilter("ignore")  # invalid escapes in foreign code are not our user's concern
        return ast.parse(source)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Syntax trees are many objects and no cycles: the cyclic collector only costs time (a quarter of it)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

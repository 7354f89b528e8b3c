"""As ``sitecustomize`` of a subprocess: a machine that has torch, triton and what these need, and nothing else.

The test copies it; Python imports it before anything else, through PYTHONPATH.
"""

import importlib.metadata
import re
import sys
from importlib.machinery import PathFinder

PROVIDED = ("torch", "triton", "numpy")


def requirements(distribution: str, known: set[str]) -> set[str]:
    """``distribution`` and all it requires, extras not included; added to ``known``."""
    try:
        required = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return known
    known.add(distribution)
    for requirement in required:
        name = re.match(r"[\w.\-]+", requirement)
        if name and "extra ==" not in requirement and name[0] not in known:
            requirements(name[0], known)
    return known


def modules_of_others() -> set[str]:
    """Every top-level module that comes with another distribution, data_prep included."""
    known = {normalised(name) for provided in PROVIDED for name in requirements(provided, set())}
    owners_of = importlib.metadata.packages_distributions()
    return {module for module, owners in owners_of.items() if not known & {normalised(owner) for owner in owners}} - {
        "kd_megatron"
    }


def normalised(distribution: str) -> str:
    """The name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


class BareFinder(PathFinder):
    """Python's own finder of modules in directories, which does not find ``hidden``."""

    hidden = modules_of_others()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.hidden else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = BareFinder

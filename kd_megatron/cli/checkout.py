"""Parts of the command line that are in a checkout alone: measurements, and the model of the published study's code."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from kd_megatron.errors import EnvironmentFault

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "benchmarks"


def is_here() -> bool:
    """Whether this is a checkout."""
    return (ROOT / PACKAGE / "__init__.py").is_file()


def module(name: str) -> ModuleType:
    """The module ``benchmarks.NAME``. Raises `EnvironmentFault` where only the package is installed."""
    if not is_here():
        raise EnvironmentFault(
            given=f"this needs {PACKAGE}/, which is not installed with the package",
            expected="a checkout of the repository",
            fix="clone the repository and run ./launch.sh in it",
        )
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"{PACKAGE}.{name}")

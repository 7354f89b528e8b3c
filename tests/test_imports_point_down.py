"""The layers of the package, held by reading every import (those inside functions too)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("kd_megatron/**/*.py"), *ROOT.glob("data_prep/**/*.py")])

# What each layer may import beside the ground floor and itself: everything below it. Layers of one height do not meet.
GROUND_FLOOR = "ground floor"
FLOOR_PACKAGES = {"schema"}
BELOW_ENGINE = {"kernels", "objectives", "models", "data", "teacher_cache"}
BELOW = {
    GROUND_FLOOR: set(),
    "data_prep": set(),
    "launch": set(),
    "kernels": set(),
    "objectives": {"kernels"},
    "models": {"kernels"},
    "data": {"kernels"},
    "teacher_cache": set(),
    "engine": BELOW_ENGINE,
    "training": {*BELOW_ENGINE, "engine"},
    "finetune": {*BELOW_ENGINE, "engine", "data_prep"},
    "inputs": {"finetune"},
    "study": {*BELOW_ENGINE, "engine", "training", "finetune", "inputs", "data_prep"},
    "cli": {*BELOW_ENGINE, "engine", "training", "finetune", "study", "inputs", "data_prep", "launch"},
}
# The packages of study/ stand on its other files. Each may import, beside these and itself:
WITHIN_STUDY = {"reporting": set(), "planner": {"reporting"}, "measuring": {"reporting"}}
# and from below, inside a function or for one purpose:
RUNS_ALL = {"runner": {"planner", "reporting"}, "study_grid": {"reporting"}, "calibration": {"measuring"}}
# Libraries that only some files may import.
ONLY = {
    "deepspeed": ("kd_megatron/engine/*.py",),
    "megatron": ("kd_megatron/data/index.py", "data_prep/megatron_way.py"),
    "triton": ("kd_megatron/kernels/triton_*.py", "kd_megatron/kernels/*/triton_*.py"),
}
# Libraries that a layer may never import: objectives see tensors and taps, never a model class.
NEVER = {"objectives": {"transformers", "deepspeed", "datasets"}, "kernels": {"transformers", "deepspeed", "datasets"}}


def layer_of(module: str) -> str | None:
    """The layer of a dotted module of this repository, None for other libraries."""
    parts = module.split(".")
    if parts[0] == "data_prep":
        return "data_prep"
    if parts[0] != "kd_megatron":
        return None
    name = parts[1] if len(parts) > 1 else ""
    if name == "__main__":
        return "cli"
    is_layer = name and name not in FLOOR_PACKAGES and (ROOT / "kd_megatron" / name / "__init__.py").is_file()
    return name if is_layer else GROUND_FLOOR


def imports_of(path: Path) -> Iterator[str]:
    """Every dotted module that a file imports; ``from package import name`` counts as ``package.name``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    layer = layer_of(module_of(path))
    assert layer in BELOW, f"{path} belongs to no known layer: add it to BELOW and to the design"
    allowed = BELOW[layer] | {layer, GROUND_FLOOR}
    upward = sorted(name for name in imports_of(path) if layer_of(name) not in {*allowed, None})
    assert not upward, f"{layer} imports from above or beside it: {upward}"


@pytest.mark.parametrize("path", sorted((ROOT / "kd_megatron/study").glob("**/*.py")), ids=lambda path: path.stem)
def test_what_is_shown_stands_on_what_is_found(path: Path):
    package = path.parent.name
    allowed = WITHIN_STUDY[package] | {package} if package in WITHIN_STUDY else RUNS_ALL.get(path.stem, set())
    used = {parts[2] for name in imports_of(path) if len(parts := name.split(".")) > 2 and parts[1] == "study"}
    upward = sorted(used & WITHIN_STUDY.keys() - allowed)
    assert not upward, f"{path} imports study's {', '.join(upward)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_in_their_place(path: Path):
    libraries = {name.split(".")[0] for name in imports_of(path)}
    misplaced = {
        library
        for library in libraries & ONLY.keys()
        if not any(path.relative_to(ROOT).match(pattern) for pattern in ONLY[library])
    }
    misplaced |= libraries & NEVER.get(layer_of(module_of(path)) or "", set())
    assert not misplaced


def test_every_rule_has_files_to_hold():
    layers = {layer_of(module_of(path)) for path in SOURCES}
    assert layers == BELOW.keys()


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("kd_megatron.errors.KdError", GROUND_FLOOR),
        ("kd_megatron.dist", GROUND_FLOOR),
        ("kd_megatron.engine.build", "engine"),
        ("data_prep.write", "data_prep"),
        ("torch.nn", None),
    ],
)
def test_layer_of(module: str, layer: str | None):
    assert layer_of(module) == layer

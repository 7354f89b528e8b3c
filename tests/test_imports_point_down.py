"""The layers of the packages, held by reading every import (those inside functions too)."""

from pathlib import Path

import imports
import pytest
from imports import ROOT

SOURCES = sorted(imports.modules().values())
# Libraries that only some files may import.
ONLY = {
    "deepspeed": ("kd_megatron/engine/*.py",),
    "megatron": ("kd_megatron/data/index.py", "benchmarks/data/megatron_way.py"),
    "triton": ("kd_megatron/kernels/triton_*.py", "kd_megatron/kernels/*/triton_*.py", "benchmarks/**/*.py"),
}
# Libraries that a package may never import: objectives see tensors and taps, never a model class.
NEVER = {"objectives": {"transformers", "deepspeed", "datasets"}, "kernels": {"transformers", "deepspeed", "datasets"}}
STANDS_ON = {"data_prep": {"errors", "redact", "tensors", "recipe", "ranks", "machine", "console", "files"}}


def package_of(path: Path) -> str:
    return imports.package_of(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_every_package_has_its_layer():
    assert {imports.package_of(module) for module in imports.modules()} - {""} == imports.HEIGHT.keys()


def test_imports_point_down():
    assert imports.upward() == []


def test_nothing_imports_in_a_circle():
    assert imports.circles(imports.graph()) == []
    assert imports.circles(imports.package_graph()) == []


@pytest.mark.parametrize("package", STANDS_ON)
def test_what_stands_on_the_ground_floor_alone(package: str):
    assert imports.package_graph()[package] <= STANDS_ON[package]


def test_finetuning_knows_nothing_of_pretraining_and_a_study_nothing_of_reports():
    edges = imports.package_graph()
    assert "training" not in edges["finetune"]
    assert not edges["study"] & {"analysis", "planner", "report"}


def test_no_package_is_too_large_and_few_modules_are_loose():
    counted = imports.lines()
    package, largest = counted.most_common(1)[0]
    assert largest <= imports.LARGEST_SHARE * sum(counted.values()), f"{package} has {largest} lines"
    assert len(imports.loose()) <= imports.LOOSE


def test_a_planted_circle_and_an_upward_import_are_found(tmp_path: Path):
    planted = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert imports.circles(planted) == [["a", "b", "c"]]
    source = tmp_path / "lazy.py"
    source.write_text("def f():\n    from kd_megatron.report import publish\n    import kd_megatron.errors\n")
    assert list(imports.imports_of(source)) == ["kd_megatron.report.publish", "kd_megatron.errors"]
    assert imports.HEIGHT["report"] > imports.HEIGHT["study"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_in_their_place(path: Path):
    libraries = {name.split(".")[0] for name in imports.imports_of(path)}
    misplaced = {
        library
        for library in libraries & ONLY.keys()
        if not any(path.relative_to(ROOT).match(pattern) for pattern in ONLY[library])
    }
    misplaced |= libraries & NEVER.get(package_of(path), set())
    assert not misplaced


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("kd_megatron.errors", "errors"),
        ("kd_megatron", ""),
        ("kd_megatron.engine.build", "engine"),
        ("kd_megatron.__main__", "cli"),
        ("data_prep.write", "data_prep"),
        ("benchmarks.steps.peers", "benchmarks"),
    ],
)
def test_package_of(module: str, package: str):
    assert imports.package_of(module) == package

"""The embedded corpus: what is read from the installed packages, and in which order."""

import sysconfig
import textwrap

import pytest

from data_prep import installed_docs
from kd_megatron.errors import DataError

SOURCE = '''
"""The module."""
import does_not_exist_anywhere
raise SystemExit("a docstring reader never runs this")

class Outer:
    """A class.

        Indented detail.
    Margin.
    """

    def method(self):
        """A method."""
        def inner():
            """A nested function."""

try:
    def guarded():
        """A function under try."""
except ImportError:
    async def fallback():
        """A coroutine under except."""

def bare():
    x = """not a docstring"""
'''


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site-packages directory with two packages, in place of the real one."""
    (tmp_path / "zeta").mkdir()
    (tmp_path / "alpha" / "sub").mkdir(parents=True)
    (tmp_path / "alpha" / "tests").mkdir()
    (tmp_path / "alpha" / "__init__.py").write_text('"""Alpha."""\n')
    (tmp_path / "alpha" / "sub" / "module.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "alpha" / "tests" / "test_it.py").write_text('"""A test."""\n')
    (tmp_path / "zeta" / "broken.py").write_text('"""Python 2."""\nprint "hello"\n')
    (tmp_path / "zeta" / "latin.py").write_bytes(b'"""caf\xe9"""\n')
    (tmp_path / "zeta" / "nul.py").write_bytes(b'"""nul"""\n\0\n')
    (tmp_path / "zeta" / "good.py").write_text('"""Zeta is good."""\n')
    monkeypatch.setattr(sysconfig, "get_path", lambda kind: str(tmp_path))
    return tmp_path


def docstrings_of(packages: list[str] | None = None) -> list[installed_docs.Docstring]:
    modules = installed_docs.list_modules(packages)
    return [docstring for module in modules for docstring in installed_docs.read_docstrings(module)]


def test_every_kind_of_docstring_in_source_order(site):
    found = [(d.package, d.name, d.text) for d in docstrings_of()]
    assert found == [
        ("alpha", "alpha", "Alpha."),
        ("alpha", "alpha.sub.module", "The module."),
        ("alpha", "alpha.sub.module.Outer", "A class.\n\n    Indented detail.\nMargin."),
        ("alpha", "alpha.sub.module.Outer.method", "A method."),
        ("alpha", "alpha.sub.module.Outer.method.inner", "A nested function."),
        ("alpha", "alpha.sub.module.guarded", "A function under try."),
        ("alpha", "alpha.sub.module.fallback", "A coroutine under except."),
        ("zeta", "zeta.good", "Zeta is good."),
    ]


def test_unparsable_files_and_test_suites_are_left_out(site):
    assert [d.name for d in docstrings_of(["zeta"])] == ["zeta.good"]
    assert not any("test" in module.name for module in installed_docs.list_modules(["alpha"]))


def test_an_unknown_package_names_the_nearest(site):
    with pytest.raises(DataError, match="did you mean 'alpha'"):
        docstrings_of(["alhpa"])


def test_a_module_is_one_document_of_prose(site):
    (site / "zeta" / "good.py").write_text(
        '"""Adds.\n\n>>> 1 + 1\n2\n\nThat is all."""\n'
        'def f():\n    """Returns\n    -------\n    :class:`~torch.Tensor` or ``None``, see :py:func:`g`."""\n'
    )
    (good,) = [m for m in installed_docs.list_modules(["zeta"]) if m.name == "zeta.good"]
    assert installed_docs.module_text(good) == ("Adds.\n\n\nThat is all.\n\nReturns\ntorch.Tensor or None, see g.")


def test_the_real_environment_gives_prose_in_a_stable_order():
    first, second = (docstrings_of(["rich"])[:200] for _ in range(2))
    assert first == second
    assert len(first) == 200
    assert {d.package for d in first} == {"rich"}

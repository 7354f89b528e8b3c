"""A report resolves and works out each thing once, and starts without the libraries that train."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import study_on_disk

from kd_megatron.analysis import comparisons, results, run_checks
from kd_megatron.analysis.once import once
from kd_megatron.recipe import arms
from kd_megatron.report.page import drawing
from kd_megatron.report.publish import publish

HEAVY = ("torch", "transformers", "sklearn", "pandas", "deepspeed", "datasets")


@pytest.fixture
def study(tmp_path):
    return study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe())


def test_every_arm_is_resolved_once_and_every_check_and_family_made_once(study, tmp_path, monkeypatch):
    calls = Counter()

    def counted(name, work):
        def call(*given):
            calls[name] += 1
            return work(*given)

        return call

    monkeypatch.setitem(drawing.STYLE, "savefig.dpi", 30)
    monkeypatch.setattr(results, "resolve_arm", counted("resolve", arms.resolve_arm))
    monkeypatch.setattr(run_checks, "_fingerprints", counted("checks", run_checks._fingerprints))
    monkeypatch.setattr(comparisons, "_family", counted("families", comparisons._family))
    publish(study, tmp_path / "page")
    assert calls["resolve"] == len(study_on_disk.ARMS)
    assert calls["checks"] == 1 + 3  # over all seeds, and for each seed by itself
    # to the reference those that are judged first and the others; pairs of other arms by each measure and in each task
    assert calls["families"] == 2 + 4


def test_what_was_found_stays_with_its_study_and_not_with_a_copy(study):
    asked = []

    @once
    def seeds(of, arm):
        asked.append(arm)
        return sorted(of.runs[arm])

    found = results.load(study)
    assert seeds(found, "minilm") is seeds(found, "minilm")
    assert (seeds(found, "scratch"), asked) == ([0, 1, 2], ["minilm", "scratch"])
    fewer = replace(found, runs={arm: {0: runs[0]} for arm, runs in found.runs.items()})
    assert (seeds(fewer, "minilm"), fewer.resolved) == ([0], found.resolved)


def test_a_report_starts_and_ends_without_the_libraries_that_train(study, tmp_path):
    code = (
        "import sys; from kd_megatron.cli.main import main\n"
        f"assert main(['report', {str(study)!r}, '--to', {str(tmp_path / 'page')!r}]) == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1:] == ["[]"], ended.stderr

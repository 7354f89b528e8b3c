"""The short form of `fuzz_data`; ``./launch.sh test -m long`` does all 2,000 cases."""

import pytest
from reliability import damage, fuzz_data


def run(cases: int, capsys: pytest.CaptureFixture[str]) -> str:
    code = fuzz_data.main(["--cases", str(cases)])
    output = capsys.readouterr().out
    assert code == 0, output
    assert f"{cases} cases, 0 failed" in output
    return output


def test_damaged_shard_sets_are_refused_or_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    run(60, capsys)


@pytest.mark.long
def test_two_thousand_damaged_shard_sets(capsys: pytest.CaptureFixture[str]) -> None:
    output = run(2000, capsys)
    for harm in [*damage.AT_REST, *damage.UNDER_A_RUN]:
        assert f"  {harm.__name__} " in output


def test_what_is_accepted_silently_would_be_counted(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The judge itself: with every check of a file's content gone, bytes written in place are found out."""
    fuzz_data.write_intact_sets(tmp_path)
    reference = {split: fuzz_data.batches(tmp_path / "intact", split) for split in ("train", "valid")}
    seed = next(seed for seed in range(1000) if fuzz_data.damage_of(seed)[0] is damage.written_in_place)
    monkeypatch.setattr("kd_megatron.data.mapped.MappedFile.require_unchanged", lambda self: None)
    result = fuzz_data.run_case(tmp_path, seed, reference)
    assert result["outcome"] == "FAILED"

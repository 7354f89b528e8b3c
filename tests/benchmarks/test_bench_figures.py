"""The figures: fields of a row, pairwise ratios, percentiles, turns, peak memory of known allocations, the bound."""

import json
from dataclasses import asdict, fields

import pytest
import torch

from benchmarks import timing
from benchmarks.kernels import bounds, memory, shapes, suite
from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.kernels.vocab_cases import VocabCrossEntropy, VocabKl, VocabTopkKl
from benchmarks.rows import (
    COLUMNS,
    Row,
    as_json,
    as_markdown,
    cells,
    median_ratio,
    peak_share,
    percentile,
    timing_figures,
)

CPU = torch.device("cpu")
FIELDS = ["name", "backend", "shape", "dtype", "device", "p20_ms", "p50_ms", "p80_ms", "peak_mib"]
FIELDS += ["tokens_per_second", "ratio", "ratio_to", "mfu"]
MIB = 2**20


def row(backend: str, peak_mib: float | None = 4.0, **changed) -> Row:
    figures = {"p20_ms": 1.0, "p50_ms": 2.0, "p80_ms": 3.0, "tokens_per_second": 1e6, "ratio": 1.5}
    place = {"name": "kernel", "shape": "B1 L2", "dtype": "fp32", "device": "cpu", "ratio_to": "eager"}
    return Row(**{**place, **figures, "backend": backend, "peak_mib": peak_mib, **changed})


def test_a_row_has_exactly_these_fields():
    assert [field.name for field in fields(Row)] == FIELDS


def test_a_file_from_before_mfu_is_still_read_and_shown_as_it_was():
    old = {name: value for name, value in asdict(row("eager")).items() if name != "mfu"}
    assert Row(**old) == row("eager")
    assert "MFU" not in as_markdown([row("eager")])
    with_mfu = as_markdown([row("eager", mfu=0.4567), row("tiled")])
    assert "| tokens/s | MFU |" in with_mfu
    assert "| 1,000,000 | 45.7% |" in with_mfu


def test_measured_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    rows: list[Row] = []
    case = ScoreMse(2, 12, (2, 8), (2, 8))
    suite.measure(case, suite.SuitePlan(torch.float32, CPU, seconds=0.0, compiler="aot_eager"), rows, [])
    assert [row.backend for row in rows] == ["eager", "torch.compile", "closed_form", "tiled"]
    assert rows[0].ratio == 1.0
    for each in rows:
        assert (each.name, each.shape, each.dtype, each.device) == ("score_mse", "B2 L12 H2 d8", "fp32", "cpu")
        assert 0 < each.p20_ms <= each.p50_ms <= each.p80_ms
        assert each.tokens_per_second == pytest.approx(24 / (each.p50_ms / 1000), rel=1e-3)
        assert (each.peak_mib or 0) > 0
        assert each.ratio_to == "eager"
    assert list(json.loads(json.dumps(as_json(rows, {"commit": "c"})))["rows"][0]) == FIELDS


def test_a_shape_too_large_for_eager_is_relative_to_the_first_that_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr("benchmarks.kernels.memory.free_bytes", lambda device: 1)
    rows: list[Row] = []
    left_out: list[suite.LeftOut] = []
    suite.measure(ScoreMse(2, 12, (2, 8), (2, 8)), suite.SuitePlan(torch.float32, CPU, seconds=0.0), rows, left_out)
    assert {each.ratio_to for each in rows} == {"closed_form"}
    assert {each.backend for each in left_out} == {"eager", "torch.compile", "triton"}


def test_ratios_are_taken_pair_by_pair():
    # A machine that becomes ten times slower after two of five rounds: every pair still says 2.
    theirs = [2.0, 2.0, 20.0, 20.0, 20.0]
    ours = [1.0, 1.0, 10.0, 10.0, 10.0]
    assert median_ratio(theirs, ours) == 2.0
    # One disturbed pair moves nothing; the ratio of the two medians would be 20.
    assert median_ratio([20.0, 2.0, 20.0], [10.0, 1.0, 1.0]) == 2.0
    with pytest.raises(ValueError, match="zip"):
        median_ratio([1.0], [1.0, 2.0])


def test_percentiles():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([0.0, 10.0], 0.2) == pytest.approx(2.0)
    figures = timing_figures([0.010, 0.020, 0.030], [0.020, 0.020, 0.060], num_tokens=100)
    assert figures["p50_ms"] == 20.0
    assert figures["tokens_per_second"] == 5000.0
    assert figures["ratio"] == 2.0


def test_steps_are_timed_in_turn_and_every_other_round_backwards():
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = timing.time_in_turn(steps, CPU, budget_seconds=0.0)
    assert len(rounds) == timing.MIN_ROUNDS
    assert "".join(calls[:12]) == "abccbaabccba"
    assert all(set(each) == {"a", "b", "c"} for each in rounds)
    assert len(timing.time_in_turn(steps, CPU, budget_seconds=60.0)) == timing.MAX_ROUNDS


def test_peak_memory_of_a_known_allocation():
    kept = torch.ones(3 * MIB // 4)  # alive before: costs nothing

    def step():
        first = torch.empty(8 * MIB // 4)
        second = torch.empty(2 * MIB // 4)
        del first
        third = torch.empty(4 * MIB // 4)
        return second.sum() + third.sum() + kept.sum()

    assert memory.peak_bytes(step, CPU) == pytest.approx(10 * MIB, rel=1e-3)
    # What a step returns counts until it has been measured.
    assert memory.peak_bytes(lambda: [torch.empty(MIB), torch.empty(MIB)], CPU) == 8 * MIB


def test_peak_memory_sees_what_compiled_code_allocates():
    x = torch.randn(256, 1024, requires_grad=True)

    @torch.compile(dynamic=False)
    def loss(x):
        return (x @ x.T).sin().exp().sum()  # [256, 256] waits for the backward

    def step():
        return torch.autograd.grad(loss(x), x)

    step()
    peak = memory.peak_bytes(step, CPU)
    product, gradient = 256 * 256 * 4, x.numel() * 4
    assert product + gradient <= peak <= 4 * product + 3 * gradient


def test_share_of_peak_memory():
    rows = [row("eager", 8.0), row("fused", 2.0), row("other", None), row("fused", 2.0, shape="B1 L4")]
    assert [peak_share(each, rows) for each in rows] == [1.0, 0.25, None, None]


def test_markdown_has_a_line_for_every_row():
    rows = [row("eager", 8.0), row("fused", 2.0)]
    lines = as_markdown(rows).splitlines()
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    assert lines[3] == "| kernel | B1 L2 | fp32 | fused | 2.00 | 1.00 to 3.00 | 1.50x | 2.00 | 0.250 | 1,000,000 |"
    assert "relative to eager" in lines[-1]
    assert all(len(cells(each, rows)) == len(COLUMNS) for each in rows)


def test_json_keeps_what_the_rows_were_measured_with():
    record = as_json([row("eager")], {"commit": "c", "versions": {}})
    assert set(record) == {"date", "commit", "versions", "rows"}
    assert record["rows"] == [asdict(row("eager"))]


def test_sets_of_shapes_cover_what_is_promised():
    small, paper = ({(each.name, each.shape) for each in shapes.SETS[name]} for name in ("small", "paper"))
    assert {
        ("relation_kl", "B16 L128 R12 d64 x3"),
        ("relation_kl", "B16 L512 R12 d64 x3"),
        ("score_mse", "B16 L512 H12 d64"),
        ("vocab_kl", "N2400 V30522 D768"),
        ("vocab_topk_kl", "N2400 V30522 D768 k64"),
    } <= small
    assert {
        ("relation_kl", "B256 L128 R12 d64 x3"),
        ("relation_kl", "B256 L128 R48 d16 x3"),
        ("relation_kl", "B64 L512 R12 d64 x3"),
        ("relation_kl", "B64 L512 R48 d16 x3"),
    } <= paper
    for cases in (*shapes.SETS.values(), shapes.REDUCED):
        assert {each.name for each in cases} == set(shapes.KERNELS)


def test_the_bound_is_the_slowest_of_three_resources():
    rates = bounds.Rates("slow", bf16_flops=100.0, exponentials=10.0, bytes=1000.0)
    assert bounds.Cost(flops=100.0, exponentials=0.0, bytes=500.0).seconds(rates) == (1.0, "matrix products")
    assert bounds.Cost(flops=100.0, exponentials=20.0, bytes=500.0).seconds(rates) == (2.0, "exponentials")
    assert bounds.Cost(flops=0.0, exponentials=0.0, bytes=3000.0).seconds(rates) == (3.0, "bytes")


def test_costs_counted_by_hand():
    # One relation of 2 x 2 entries, head size 4: scores 2 * 4 FLOPs each; twice two scores and one gradient: 40.
    short = RelationKl(1, 2, (1, 4), (1, 4), num_relation_heads=1, num_relations=1)
    # Entry by entry: two scores and two products of 2 d, two exponentials; both taps read, a gradient written.
    assert bounds.cost(short) == bounds.Cost(flops=128.0, exponentials=8.0, bytes=2.0 * (2 * 8 + 2 * 4))
    # Five products, six exponentials, both taps read twice.
    assert bounds.cost(short, 4) == bounds.Cost(flops=160.0, exponentials=24.0, bytes=4.0 * (2 * 2 * 8 + 2 * 4))
    long = bounds.cost(RelationKl(1, 200, (1, 4), (1, 4), num_relation_heads=1, num_relations=1))
    assert (long.flops, long.exponentials) == (160.0 * 100**2, 24.0 * 100**2)
    # Short: tiles, 4 entries of 2 scores and 2 gradients at 2 * 4. Long: Grams, linear in L.
    assert bounds.cost(ScoreMse(1, 2, (1, 4), (1, 4))).flops == 4 * 4 * 8
    long, longer = (bounds.cost(ScoreMse(1, length, (1, 4), (1, 4))).flops for length in (4096, 8192))
    assert longer == 2 * long
    # One row of 5 logits from 3 features: the logits and two gradients, and the teacher's logits.
    assert bounds.cost(VocabCrossEntropy(1, 5, 3)).flops == 5 * 2 * 9
    assert bounds.cost(VocabKl(1, 5, 3, teacher_width=4)).flops == 5 * 2 * (9 + 4)
    # A cached teacher saves its logits and one of three softmaxes.
    cached = bounds.cost(VocabTopkKl(1, 5, 3, num_kept=2))
    assert (cached.flops, cached.exponentials) == (5 * 2 * 9, 5 * 2)

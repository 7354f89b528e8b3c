"""What launches say they move and compute, beside the bounds and by hand; they are pure: nothing is launched."""

import pytest

pytest.importorskip("triton")

from benchmarks.kernels import bounds
from benchmarks.kernels.attention_cases import HiddenMse, RelationKl, ScoreMse
from kd_megatron.kernels.hidden_mse import hidden_mse_flops
from kd_megatron.kernels.hidden_mse import triton_launch as hidden_mse
from kd_megatron.kernels.relation_kl import triton_launch as relation_kl
from kd_megatron.kernels.relation_kl import triton_whole_launch
from kd_megatron.kernels.score_mse import triton_launch as score_mse

HEADS = {"student_heads": (2, 16), "teacher_heads": (4, 12)}  # widths 32 and 48


def test_hidden_mse_moves_what_the_bound_has_and_computes_what_is_charged():
    costs = [cost(3, 40, 768, 2, 2) for cost in (hidden_mse.forward_cost, hidden_mse.backward_cost)]
    moved = sum(cost.bytes_read + cost.bytes_written for cost in costs)
    num_sums = 3 * 10  # of 4 positions
    assert moved == bounds.cost(HiddenMse(3, 40, 768)).bytes + 4 * num_sums
    assert sum(cost.flops for cost in costs) == 3 * hidden_mse_flops(40, 768)


def test_relation_kl_in_tiles_adds_row_statistics_and_element_wise_work_to_the_bound():
    case = RelationKl(3, 200, num_relation_heads=4, num_relations=2, **HEADS)
    sizes = (2, 3, 200, 4, 32, 48, 2)
    forward, backward = relation_kl.forward_cost(*sizes), relation_kl.backward_cost(*sizes)
    statistics, entries = 2 * 3 * 4 * 200 * 4 * 4, 2 * 3 * 4 * 200**2
    moved = sum(cost.bytes_read + cost.bytes_written for cost in (forward, backward))
    assert moved == bounds.cost(case).bytes + 2 * statistics
    assert forward.flops + backward.flops == bounds.cost(case).flops + (15 + 17) * entries


def test_whole_relations_write_their_gradient_in_float32():
    case = RelationKl(3, 100, num_relation_heads=4, num_relations=2, **HEADS)
    cost = triton_whole_launch.whole_cost(2, 3, 100, 4, 32, 48, 2)
    numbers, entries = 2 * 3 * 100 * 32, 2 * 3 * 4 * 100**2
    assert cost.bytes_written == 4 * numbers
    assert cost.bytes_read + 2 * numbers == bounds.cost(case).bytes
    assert cost.flops == bounds.cost(case).flops + 18 * entries


def test_score_mse_is_two_launches():
    case = ScoreMse(3, 16, (2, 16), (2, 24))  # so short that tiles are less than Grams
    queries, keys = (score_mse.tiles_cost(3, 16, 2, 32, 48, 2, with_loss=loss) for loss in (True, False))
    entries, numbers = 3 * 2 * 16**2, 3 * 16
    # Both launches make both scores: the second again, beside the bound.
    again = 2.0 * numbers * 16 * (32 + 48)
    assert queries.flops + keys.flops == bounds.cost(case).flops + again + (3 + 1) * entries
    assert queries.bytes_read == keys.bytes_read == 2 * 2 * numbers * (32 + 48)
    assert queries.bytes_written == 4 * numbers * 32
    assert score_mse.tiles_cost(3, 16, 2, 32, 48, 2, with_loss=True, with_gradient=False).bytes_written == 0.0

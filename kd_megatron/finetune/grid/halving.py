"""Successive halving over seeds: settings that are hopeless with the first seeds do not run with the later ones.

Every setting (learning rate, batch size) of a task runs with the first seed; the better half of them, rounded up, runs
with the second; and so on until the seeds are spent. Better is a higher mean selection score over the seeds so far, and
of equals the earlier in the grid. Which cells run is a function of those scores alone, and how many is a function of
the grid's size, so every model is given the same number of runs. (Jamieson and Talwalkar 2016, arXiv 1502.07943, with
the seed as the resource.)
"""

from collections.abc import Mapping, Sequence

from kd_megatron.finetune.places import Cell

Setting = tuple[float, int]  # learning rate, batch size


def setting_of(cell: Cell) -> Setting:
    """What is chosen between: the cell without its seed."""
    return cell.learning_rate, cell.batch_size


def eligible(cells: Sequence[Cell], scores: Mapping[Cell, float]) -> list[Cell]:
    """The cells of one task that can run now, in the order of the grid; empty when the plan is carried out.

    Args:
        cells: all cells of the task in the order of the grid, every setting with every seed.
        scores: the selection scores of the finished ones; those of cells outside the plan are not looked at.
    """
    return [cell for cell in _reached(cells, scores) if cell not in scores]


def planned(cells: Sequence[Cell], scores: Mapping[Cell, float]) -> list[Cell]:
    """The cells of ``cells`` that belong to the plan as far as ``scores`` tell, in the order of the grid."""
    reached = set(_reached(cells, scores))
    return [cell for cell in cells if cell in reached]


def num_runs(num_settings: int, num_seeds: int) -> int:
    """How many cells a task's plan has in the end."""
    total = 0
    for _ in range(num_seeds):
        total += num_settings
        num_settings = _half(num_settings)
    return total


def _reached(cells: Sequence[Cell], scores: Mapping[Cell, float]) -> list[Cell]:
    """The cells of all rounds whose settings are known, round after round."""
    settings = list(dict.fromkeys(map(setting_of, cells)))
    by_name = {(setting_of(cell), cell.seed): cell for cell in cells}
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    reached: list[Cell] = []
    for number, seed in enumerate(seeds, start=1):
        round_cells = [by_name[setting, seed] for setting in settings]
        reached += round_cells
        if not all(cell in scores for cell in round_cells):
            break
        means = {s: sum(scores[by_name[s, earlier]] for earlier in seeds[:number]) / number for s in settings}
        better = sorted(settings, key=lambda setting: -means[setting])[: _half(len(settings))]
        settings = [setting for setting in settings if setting in better]
    return reached


def _half(number: int) -> int:
    return -(-number // 2)

"""How fast the arms of a study will run: assumed of a GPU's data sheet, or measured by the command calibrate."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_megatron.engine.flops import ArmCost
from kd_megatron.errors import RecipeError
from kd_megatron.machine.gpus import Gpu
from kd_megatron.recipe import StudyRecipe

EFFICIENCY = 0.4  # share of a data sheet's rate that training reaches: assumed, and said where it is used


@dataclass(frozen=True)
class Rate:
    """Tokens per second of one arm, all devices together: the median and the 20th and 80th percentile of rounds."""

    p50: float
    p20: float
    p80: float


@dataclass(frozen=True)
class Speed:
    """What turns hours into tokens and back."""

    source: str  # in words
    flops_per_second: float  # of all devices together; what has no rate of its own goes by it
    gpu: Gpu | None = None
    measured: Mapping[str, Rate] = field(default_factory=dict)  # by arm; empty when a data sheet is all there is

    def seconds(self, arm: str, cost: ArmCost, tokens: float, epochs: float = 1.0) -> float:
        """What so many tokens take ``arm``, repeats of windows counted as ``cost`` counts them."""
        if arm in self.measured:
            return tokens / self.measured[arm].p50
        return tokens * cost.mean_flops_per_token(epochs) / self.flops_per_second

    def tokens_in(self, hours: float, arm: str, cost: ArmCost, pool: int | None) -> float:
        """Tokens of ``arm`` in that time, of which those beyond the first ``pool`` are repeats."""
        if arm in self.measured:
            return 3600.0 * hours * self.measured[arm].p50
        saved = cost.teacher_flops_per_token - cost.teacher_again_flops_per_token
        return tokens_for(3600.0 * hours * self.flops_per_second, cost.total_flops_per_token, saved, pool)

    def hours(self, flops: float) -> float:
        """What so many FLOPs take that belong to no arm's training step."""
        return flops / self.flops_per_second / 3600.0

    def tokens_per_second(self, arm: str, cost: ArmCost) -> float:
        """Of ``arm`` while nothing repeats."""
        return 1.0 / self.seconds(arm, cost, 1.0)


def tokens_for(flops: float, price: float, saved: float, pool: int | None) -> float:
    """Tokens that so many FLOPs buy at ``price`` each, and ``saved`` less for those beyond the first ``pool``."""
    tokens = flops / price
    if pool is not None and tokens > pool:
        tokens = pool + (flops - pool * price) / (price - saved)
    return tokens


def of_data_sheet(gpu: Gpu, precision: str, efficiency: float, num_devices: int) -> Speed:
    """``efficiency`` of what the data sheet promises, on each of ``num_devices``."""
    if not 0.0 < efficiency <= 1.0:
        raise RecipeError(
            given=f"--efficiency {efficiency:g}", expected="a share above 0 and at most 1", fix="give such as 0.4"
        )
    peak = gpu.flops(precision)
    devices = "one" if num_devices == 1 else f"{num_devices} at perfect scaling"
    return Speed(
        source=f"{gpu.name} ({devices}), {peak / 1e12:.4g} TFLOP/s in {precision} ({gpu.source}) "
        f"at an assumed efficiency of {efficiency:g}",
        flops_per_second=peak * efficiency * num_devices,
        gpu=gpu,
    )


def of_calibration(
    path: Path, resolved: Mapping[str, StudyRecipe], costs: Mapping[str, ArmCost], num_processes: int
) -> Speed:
    """What the command calibrate wrote: tokens per second of each arm on the machine it ran on.

    Of a schedule it wrote the speed over phases that share the steps, as those of a calibrated budget do; phases that
    share the hours take more steps where they are faster.

    Raises:
        RecipeError: the file cannot be read, lacks an arm, or was measured with another number of processes or of
            another recipe.
    """
    content = _read(path)
    try:
        measured = {arm: _rate(content["arms"][arm]["tokens_per_second"]) for arm in costs}
    except (KeyError, TypeError, ValueError) as error:
        known = ", ".join(content["arms"]) if isinstance(content.get("arms"), dict) else "none"
        raise RecipeError(
            given=f"--calibration {path}: no tokens per second of every arm ({error}); arms in it: {known}",
            expected=f"what calibrate writes for a recipe with the arms {', '.join(costs)}",
            fix="calibrate this recipe again",
        ) from error
    rates = [measured[arm].p50 * cost.total_flops_per_token for arm, cost in costs.items()]
    hardware = content.get("hardware", {})
    if hardware.get("num_processes", num_processes) != num_processes:
        raise RecipeError(
            given=f"--calibration {path} of {hardware['num_processes']} processes, and a plan for {num_processes}",
            expected="as many processes as were measured together",
            fix=f"add --procs {hardware['num_processes']}, or calibrate with {num_processes}",
        )
    for arm, recipe in resolved.items():
        _refuse_another_recipe(path, content, arm, recipe)
    device = hardware.get("device", "the machine that was calibrated")
    return Speed(f"measured on {device} ({path.name})", statistics.median(rates), measured=measured)


def _refuse_another_recipe(path: Path, content: Mapping[str, Any], arm: str, recipe: StudyRecipe) -> None:
    """Raise `RecipeError` where a step of ``arm`` was timed otherwise; what a file does not say is not compared."""
    there = {
        "budget.charge": sorted(content["charge"]) if "charge" in content else None,
        "training.precision": content.get("precision"),
        "tokens per step": content["arms"][arm].get("tokens_per_step"),
    }
    here = {
        "budget.charge": sorted(recipe.budget.charge),
        "training.precision": recipe.training.precision,
        "tokens per step": recipe.training.global_batch_size * recipe.data.sequence_length,
    }
    differing = [key for key, value in there.items() if value is not None and value != here[key]]
    if differing:
        was, now = (", ".join(f"{key} {values[key]}" for key in differing) for values in (there, here))
        raise RecipeError(
            given=f"--calibration {path} of arm {arm} with {was}, and a plan with {now}",
            expected="a calibration of this recipe",
            fix="calibrate this recipe, or plan the one that was calibrated",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            given=f"--calibration {path} cannot be read: {error}",
            expected="a file that the command calibrate wrote",
            fix="correct the path",
        ) from error
    return content if isinstance(content, dict) else {}


def _rate(raw: Mapping[str, Any]) -> Rate:
    rate = Rate(float(raw["p50"]), float(raw["p20"]), float(raw["p80"]))
    if not rate.p50 > 0:
        raise ValueError(f"p50 is {rate.p50}")
    return rate

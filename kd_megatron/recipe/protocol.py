"""What a study promises before its first step: what is primary, how many students, when it is looked at."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from kd_megatron.recipe.config import Strict
from kd_megatron.recipe.paths import PathPart
from kd_megatron.recipe.types import Count, Positive


class ProtocolRecipe(Strict):
    """A protocol: fixed before the first step, so that what is claimed was not chosen after a look at the results."""

    measure: Literal["probe_loss", "own_loss", "score"] = "probe_loss"  # the primary one
    arms: Annotated[list[PathPart], Field(min_length=1)] | None = None  # primary contrasts to the reference; None: all
    students: Count | None = None  # pretraining seeds of an arm at which verdicts are given; None: by power
    smallest_effect: Positive | None = None  # of interest, in nats or points of 100
    stopping: str = "one look, when all seeds of all arms are finished"  # in words

    def problems(self) -> Iterator[str]:
        """Arms that are named twice, and students who have no interval."""
        if self.arms is not None and len(set(self.arms)) < len(self.arms):
            yield f"protocol.arms names an arm twice: {self.arms}"
        if self.students == 1:
            yield "protocol.students 1: a verdict needs an interval, and an interval needs at least 2"

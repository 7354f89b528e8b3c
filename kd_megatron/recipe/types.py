"""What values of a recipe may be: numbers within bounds, names of precisions."""

from typing import Annotated, Literal

from pydantic import Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(gt=0, le=10**15)]
LARGEST_SEED = 2**32 - 1  # what numpy's and torch's generators take
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Precision = Literal["auto", "bf16", "fp32"]  # auto: bf16 where the hardware multiplies it, fp32 elsewhere

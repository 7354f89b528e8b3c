"""torch.compile as this package uses it: static shapes, and no function that is left uncompiled without a word.

Of one function torch keeps a few compiled forms, one for each kind of layer and shape that it met. Past its limit it
runs the function as it is, and says so in a log: in a process that trains one arm after another, the last arms alone
would then be slower. Here the limit is high, and passing it is an error.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch._dynamo.config

Function = TypeVar("Function", bound=Callable[..., Any])
MOST_FORMS = 64  # of one function: student and teacher, training and validation, each arm's kinds of layers


def compiled(function: Function) -> Function:
    """``function`` by torch.compile; it is compiled when it is first called, and again for other shapes."""
    torch._dynamo.config.recompile_limit = max(MOST_FORMS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return cast(Function, torch.compile(function, dynamic=False))

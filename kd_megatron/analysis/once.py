"""What is worked out of a study is worked out once: a report asks for the same number in tables, figures and words."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

Of = TypeVar("Of")
Asked = ParamSpec("Asked")
Found = TypeVar("Found")


def once(work: Callable[Concatenate[Of, Asked], Found]) -> Callable[Concatenate[Of, Asked], Found]:
    """A function of a study, a grid or a cell of one, whose results are kept with that value, by the other arguments.

    Those values are frozen, so that what was found of one stays true; nobody changes what is returned. A copy made by
    `dataclasses.replace` begins with nothing.
    """

    @functools.wraps(work)
    def remembered(of: Of, /, *asked: Asked.args, **named: Asked.kwargs) -> Found:
        kept: dict[Any, Found] = vars(of).setdefault("kept", {})
        key = (work, asked, tuple(named.items()))
        if key not in kept:
            kept[key] = work(of, *asked, **named)
        return kept[key]

    return remembered

"""Objects of frozen dataclasses, made as quickly as those of other dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


def maker_of(frozen: Callable[P, T]) -> Callable[P, T]:
    """
    Return a function that makes the same objects as a frozen dataclass, but faster.

    A frozen class fills its fields by `object.__setattr__`, one call for each. The
    function is a twin of the class that is not frozen. It assigns its fields, and then
    becomes an object of the frozen class: Python allows that where both have the same
    slots.

    Args:
        frozen: the class, with slots and without `__post_init__`.

    """
    cls = cast("type[Any]", frozen)

    def become_frozen(made: Any) -> None:
        made.__class__ = cls

    twin: Any = dataclasses.make_dataclass(
        cls.__name__,
        [(each.name, each.type, copy.copy(each)) for each in dataclasses.fields(cls)],
        namespace={"__post_init__": become_frozen},
        eq=False,
        repr=False,
        slots=True,
    )
    return cast("Callable[P, T]", twin)

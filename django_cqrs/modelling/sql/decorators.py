"""The decorators of SQL methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

STATEMENT = "__cqrs_statement__"


@dataclasses.dataclass(frozen=True, slots=True)
class Json:
    """``Annotated[list[int], Json()]``: this parameter is bound as JSON text."""


@dataclasses.dataclass(frozen=True, slots=True)
class Statement:
    """A decorator's declaration on one method."""

    text: str
    writes: bool
    using: str | None

    @property
    def decorator(self) -> str:
        """Its name, as written in code."""
        return "@sql_write" if self.writes else "@sql_query"


def sql_query(statement: str, /, *, using: str | None = None) -> Callable[[F], F]:
    """
    Make a method of a business interface return the rows of a query.

    The return annotation decides the form of the rows.

    Args:
        statement: SQL with ``%(name)s`` for the parameter `name`, or
            ``%(name.part)s`` for an attribute of it, and ``%%`` for a percent sign.
        using: the database alias; by default ``"default"``.

    """
    return _decorator(Statement(statement, False, using))


def sql_write(statement: str, /, *, using: str | None = None) -> Callable[[F], F]:
    """
    Make a method of a business interface change rows.

    It returns their number, or nothing if it is annotated with None.

    Args:
        statement: SQL, as for :func:`sql_query`.
        using: the database alias; by default ``"default"``.

    """
    return _decorator(Statement(statement, True, using))


def _decorator(statement: Statement) -> Callable[[F], F]:
    if not isinstance(statement.text, str):
        msg = f"{statement.decorator} takes a statement: {statement.decorator}('...')."
        raise TypeError(msg)

    def decorate(function: F) -> F:
        setattr(function, STATEMENT, statement)
        return function

    return decorate

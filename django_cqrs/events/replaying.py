"""The limits of a replay: it sends no messages, and writes nothing but its views."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from django.apps import apps
from django.db import connections, models

from django_cqrs.events.models import Partition
from django_cqrs.events.projecting import ProjectionOptions
from django_cqrs.exceptions import ReplayForbidden
from django_cqrs.messages import HeaderValue, Origin


class ReplayOrigin(Origin):
    """In the place of the message that is handled, while events are handled again."""

    __slots__ = ("_projection",)

    def __init__(self, projection: str) -> None:
        """Take the name of the projection, for errors."""
        super().__init__()
        self._projection = projection

    @property
    def _user(self) -> Mapping[str, HeaderValue]:
        """
        Refuse to be the cause of a message.

        Raises:
            ReplayForbidden: always.

        """
        msg = (
            f"The projection {self._projection!r} sent a message, or asked a query, "
            "while it handled events again. What must not happen twice belongs in an "
            "event handler on a channel; what a replay reads is its events and views."
        )
        raise ReplayForbidden(msg)

    @_user.setter
    def _user(self, headers: Mapping[str, HeaderValue]) -> None:
        """Keep nothing."""


def tables_of(options: ProjectionOptions) -> frozenset[str]:
    """Return the tables of the views of a projection, in lower case."""
    tables = {Partition._meta.db_table}
    for view in options.views:
        if isinstance(view, type) and issubclass(view, models.Model):
            tables.add(view._meta.db_table)
            through: list[Any] = [
                field.remote_field.through for field in view._meta.many_to_many
            ]
            tables.update(each._meta.db_table for each in through)
            tables.update(each._meta.db_table for each in view._meta.get_parent_list())
        elif apps.is_installed("django_cqrs.documents"):
            document = apps.get_model("django_cqrs_documents", "Document")
            tables.add(document._meta.db_table)
    return frozenset(each.lower() for each in tables)


# `FOR UPDATE`, `DO UPDATE SET` and `ON DUPLICATE KEY UPDATE` write nothing else.
_WRITES: Final = re.compile(
    r"""(?:\b(?:INSERT|REPLACE)(?:\s+OR\s+\w+|\s+IGNORE)?\s+INTO
        |\bDELETE\s+FROM
        |\bMERGE\s+INTO
        |\bTRUNCATE(?:\s+TABLE)?
        |\bCOPY
        |(?<!\bFOR\s)(?<!\bDO\s)(?<!\bKEY\s)\bUPDATE)
        \s+(?:ONLY\s+)?(?:["`\w]+\.)?["`]?(\w+)""",
    re.IGNORECASE | re.VERBOSE,
)


def tables_written_by(statement: str) -> list[str]:
    """Return the tables that a statement names to be written, in lower case."""
    return [found.lower() for found in _WRITES.findall(statement)]


@contextmanager
def replaying(options: ProjectionOptions) -> Iterator[None]:
    """
    Refuse statements that write to other tables than views, on any database.

    Args:
        options: of the projection.

    Raises:
        ReplayForbidden: inside the block, in place of the statement.

    """
    allowed = tables_of(options)

    def refuse(
        execute: Callable[..., Any], sql: Any, params: Any, many: Any, context: Any
    ) -> Any:
        for table in tables_written_by(str(sql)):
            if table not in allowed:
                msg = (
                    f"The projection {options.name!r} wrote to {table!r} while it "
                    "handled events again, and that is none of its views. Name its "
                    "model in views=, or write it in an event handler."
                )
                raise ReplayForbidden(msg)
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for alias in connections:
            stack.enter_context(connections[alias].execute_wrapper(refuse))
        yield

"""The text of statements: its size, and what it can do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.exceptions import StatementTooLarge

Item = TypeVar("Item")

MOST_BYTES: Final = 4 * 2**20
"""The maximum length of a statement with several rows, in bytes."""

# Every server accepts this much, so it is not asked about less.
_ALWAYS: Final = 2**20

# A packet larger than max_allowed_packet; the same if the server just hangs up.
_TOO_LARGE: Final = frozenset({1153, 2006, 2013, 2055})


def written(*values: bytes | memoryview | str) -> int:
    """Return the maximum number of bytes of a statement with some values."""
    # Bytes as hexadecimal; in text every character escaped.
    return 2 * sum(
        len(value.encode(errors="surrogatepass"))
        if isinstance(value, str)
        else memoryview(value).nbytes
        for value in values
    )


def portions(
    connection: BaseDatabaseWrapper,
    items: Sequence[Item],
    size_of: Callable[[Item], int],
    *,
    rows: int,
) -> list[Sequence[Item]]:
    """
    Divide the rows of a table into statements that the server accepts.

    Args:
        connection: the connection of the database.
        items: the items that become rows, in order.
        size_of: returns the number of bytes that an item takes in a statement.
        rows: the maximum number of rows in a statement.

    Returns:
        The items by statement, in order. One that is too large is alone.

    """
    sizes = [size_of(item) for item in items]
    if len(items) <= rows and sum(sizes) <= _ALWAYS:  # the usual case
        return [items]
    limit = _limit_of(connection)
    room = MOST_BYTES if limit is None else min(MOST_BYTES, limit - 2**10)
    found: list[Sequence[Item]] = []
    start = length = 0
    for place, size in enumerate(sizes):
        if place > start and (length + size > room or place - start >= rows):
            found.append(items[start:place])
            start, length = place, 0
        length += size
    found.append(items[start:])
    return found


@contextmanager
def fitting(
    connection: BaseDatabaseWrapper, size_of: Callable[[], int], what: Callable[[], str]
) -> Iterator[None]:
    """
    Add an explanation to the error of a statement that is too large.

    Args:
        connection: the connection of the database.
        size_of: returns the maximum number of bytes of the statement.
        what: returns the name of the written data, for the error.

    Raises:
        StatementTooLarge: MySQL or MariaDB does not accept a statement of this length.

    """
    try:
        yield
    except DatabaseError as error:
        code = error.args[0] if error.args else None
        if connection.vendor != "mysql" or code not in _TOO_LARGE:
            raise
        size, limit = size_of(), _limit_of_server(connection)
        if limit is None or size <= limit:
            raise
        msg = (
            f"{what()} cannot be stored in the database {connection.alias!r}: the "
            f"statement has up to {size:,} bytes, and the server takes {limit:,} "
            "(max_allowed_packet). Keep the data elsewhere and store a reference to "
            "it, or raise max_allowed_packet."
        )
        raise StatementTooLarge(msg) from error


def _limit_of(connection: BaseDatabaseWrapper) -> int | None:
    """Return the maximum number of bytes in a statement; None if there is no limit."""
    if connection.vendor != "mysql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (limit,) = cursor.fetchone()
    return int(limit)


def _limit_of_server(connection: BaseDatabaseWrapper) -> int | None:
    """Return the same through a new connection; None if the server is unavailable."""
    other = connection.copy()  # it has closed the old one
    try:
        return _limit_of(other)
    except DatabaseError:
        return None
    finally:
        other.close()


_PLAIN: Final = re.compile(
    r"[\s(]*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|SAVEPOINT|RELEASE|ROLLBACK\s+TO)"
    r"\b[^;]*;?\s*\Z",
    re.IGNORECASE,
)


class PlainStatements(str):
    """The text of several statements, none of which ends a transaction."""

    __slots__ = ()


def is_plain(query: object) -> bool:
    """
    Return whether a query is the text of one statement that ends no transaction.

    A semicolon in a literal makes it one that is not plain. Parameters do not matter,
    since the driver quotes them.
    """
    return type(query) is str and _PLAIN.match(query) is not None

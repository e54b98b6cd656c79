"""What a database's JSON cannot hold, and would change without a word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.exceptions import FieldError, MessageConversionError

SMALLEST: Final = -(2**63)
"""The smallest integer that MySQL's JSON keeps as one."""

LARGEST: Final = 2**64 - 1
"""The largest."""


def ensure_kept(content: Any, connection: BaseDatabaseWrapper, target: str) -> None:
    """
    Refuse content that a database would keep as something else.

    MySQL turns an integer beyond 64 bits into a float, and says nothing. MariaDB keeps
    JSON as text, as SQLite does; PostgreSQL has numbers of any size.

    Args:
        content: what the JSON form consists of.
        connection: of the database.
        target: the name of the type, for the error.

    Raises:
        MessageConversionError: there are such integers; the error has the path of each.

    """
    if connection.vendor != "mysql":
        return
    server: Any = connection
    if server.mysql_is_mariadb:
        return
    faults = [
        FieldError(
            path,
            "the integer has more than 64 bits, and MySQL would store it as a float; "
            "store it as text",
            "not_json",
        )
        for path in wide_integers(content)
    ]
    if faults:
        raise MessageConversionError(target, faults)


def wide_integers(content: Any, path: str = "") -> Iterator[str]:
    """
    Yield where integers are that MySQL's JSON keeps as floats.

    Args:
        content: what JSON consists of: dicts, lists and plain values.
        path: of the content itself, dotted.

    """
    if isinstance(content, dict):
        for name, value in content.items():
            yield from wide_integers(value, f"{path}.{name}" if path else name)
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from wide_integers(value, f"{path}.{place}" if path else str(place))
    elif isinstance(content, int) and not SMALLEST <= content <= LARGEST:
        yield path

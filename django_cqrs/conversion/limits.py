"""Values that a database's JSON cannot hold, and would silently change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.annotations import path_of
from django_cqrs.exceptions import FieldError, MessageConversionError

SMALLEST: Final = -(2**63)
"""The smallest integer that MySQL's JSON keeps as an integer."""

LARGEST: Final = 2**64 - 1
"""The largest such integer."""


def ensure_kept(content: Any, connection: BaseDatabaseWrapper, target: str) -> None:
    """
    Refuse content that a database would change.

    MySQL silently turns an integer beyond 64 bits into a float. MariaDB stores JSON as
    text, as SQLite does; PostgreSQL has numbers of any size.

    Args:
        content: the content of the JSON form.
        connection: of the database.
        target: the name of the type, for the error.

    Raises:
        MessageConversionError: it has such integers; the error has the path of each.

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
    Yield the paths of integers that MySQL's JSON keeps as floats.

    Args:
        content: the content of JSON: dicts, lists and plain values.
        path: the path of the content itself, dotted.

    """
    if isinstance(content, dict):
        for name, value in content.items():
            yield from wide_integers(value, f"{path}.{name}" if path else name)
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from wide_integers(value, f"{path}.{place}" if path else str(place))
    elif isinstance(content, int) and not SMALLEST <= content <= LARGEST:
        yield path


# An escaped NUL; one whose backslash is escaped itself has an even number before it.
_NULL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_MAYBE_NULL: Final = b"\\u0000"


def ensure_storable(
    text: bytes, connection: BaseDatabaseWrapper, target: type | str
) -> None:
    """
    Refuse JSON text that a database would refuse or change.

    PostgreSQL's ``jsonb`` cannot hold the character NUL; events are the same on every
    database.

    Args:
        text: the JSON.
        connection: of the database.
        target: the type, or its name, for the error.

    Raises:
        MessageConversionError: it has such a character, or such integers; the error has
            the path.

    """
    if text.find(_MAYBE_NULL) >= 0 and _NULL.search(text):
        path = next(iter(_places_of_null(json.loads(text))), "")
        fault = FieldError(path, "a text contains the character NUL", "not_json")
        raise MessageConversionError(_said(target), [fault])
    if connection.vendor == "mysql" and not getattr(
        connection, "mysql_is_mariadb", True
    ):
        ensure_kept(json.loads(text), connection, _said(target))


def _said(target: type | str) -> str:
    return target if isinstance(target, str) else path_of(target)


def _places_of_null(content: Any, path: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            if "\0" in name:
                yield path
            yield from _places_of_null(value, f"{path}.{name}" if path else name)
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from _places_of_null(value, f"{path}.{place}" if path else str(place))
    elif isinstance(content, str) and "\0" in content:
        yield path

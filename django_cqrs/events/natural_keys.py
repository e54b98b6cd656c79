"""Natural keys: values that one object of a category has, and no other."""

from __future__ import annotations

from typing import Any, Final

from django.db import IntegrityError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.events.columns import STREAM, key_column
from django_cqrs.events.models import NaturalKey
from django_cqrs.exceptions import InvalidIdentifier
from django_cqrs.modelling.identifiers import plain

LONGEST: Final = 255

_TABLE: Final = NaturalKey._meta.db_table


class KeyTaken(Exception):
    """Another stream of the category has the value."""


def text_of(value: Any) -> str | None:
    """
    Return a natural key as it is stored and compared, None for None.

    Raises:
        InvalidIdentifier: it has several values, or is too long.

    """
    if value is None:
        return None
    text = str(plain(value))
    if len(text) > LONGEST:
        msg = (
            f"A natural key has at most {LONGEST} characters, and this one has "
            f"{len(text)}: {text[:40]!r}..."
        )
        raise InvalidIdentifier(msg)
    return text


def release(connection: BaseDatabaseWrapper, stream_id: int) -> None:
    """Free the value of a stream."""
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {_TABLE} WHERE stream_id = %s", [stream_id])


def claim(
    connection: BaseDatabaseWrapper, category: str, stream_id: int, value: str
) -> None:
    """
    Take a value for a stream.

    Raises:
        KeyTaken: another stream has it. The transaction can continue.

    """
    ignore = " ON CONFLICT DO NOTHING" if connection.vendor == "postgresql" else ""
    statement = (
        f"INSERT INTO {_TABLE} (category, value, stream_id) VALUES (%s, %s, %s){ignore}"
    )
    with connection.cursor() as cursor:
        try:
            cursor.execute(statement, [category, value, stream_id])
        except IntegrityError as error:  # the statement undoes itself alone
            raise KeyTaken from error
        if cursor.rowcount == 0:
            raise KeyTaken


def key_by(connection: BaseDatabaseWrapper, category: str, value: str) -> str | None:
    """Return the key of the stream that has a value, None if none has it."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT s.{key_column(connection)} FROM {_TABLE} n "
            f"JOIN {STREAM} s ON s.id = n.stream_id "
            "WHERE n.category = %s AND n.value = %s",
            [category, value],
        )
        row = cursor.fetchone()
    return None if row is None else str(row[0])

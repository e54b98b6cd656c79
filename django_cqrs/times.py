"""Times as databases store them, in UTC, and as messages have them, with a zone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Expression
from django.utils import timezone

from django_cqrs.clock import now


def as_stored(moment: datetime, connection: BaseDatabaseWrapper) -> Any:
    """
    Return a time for the driver: in UTC, whatever zones the settings name.

    On a local clock one hour a year comes twice, and another one never. Times measured
    by it fall due early, or late.
    """
    moment = as_sent(moment).astimezone(UTC)
    if connection.vendor == "postgresql":
        return moment
    return str(moment.replace(tzinfo=None))


def as_sent(moment: datetime) -> datetime:
    """Return a time from the database, with its zone."""
    return timezone.make_aware(moment) if timezone.is_naive(moment) else moment


def as_read(moment: datetime, connection: BaseDatabaseWrapper) -> datetime:
    """Return a time with its zone that a backend took for local time, if it has one."""
    if connection.vendor == "postgresql":
        return as_sent(moment)
    return moment.replace(tzinfo=UTC, fold=0)


class MomentField(models.DateTimeField):  # type: ignore[type-arg]
    """
    A date and time that is stored in UTC.

    Django stores local time under ``USE_TZ=False``, and if a database has a
    ``TIME_ZONE``. Values are read in Django's form.
    """

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        """Return the deconstruction of Django's own field: the column is the same."""
        name, _, args, options = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, options

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        """Return the value for the driver."""
        if not prepared:
            value = self.get_prep_value(value)
        if not isinstance(value, datetime):
            return value
        return as_stored(value, connection)

    def from_db_value(
        self, value: datetime | None, _: Any, connection: BaseDatabaseWrapper
    ) -> datetime | None:
        """Return a time with its zone, or local time without one."""
        if value is None or connection.vendor == "postgresql":
            return value
        moment = as_read(value, connection)
        return moment if settings.USE_TZ else timezone.make_naive(moment)


# The time of the statement, which can be searched with an index.
_FROM_NOW: Final = {
    "postgresql": "STATEMENT_TIMESTAMP() + %s * INTERVAL '1 second'",
    "mysql": "UTC_TIMESTAMP(6) + INTERVAL %s SECOND",
}


def from_now(
    connection: BaseDatabaseWrapper, span: timedelta = timedelta()
) -> tuple[str, Any]:
    """
    Return an SQL expression for a time from now on, and its parameter.

    The clock is that of the database. SQLite has no clock of its own, so this machine's
    is used: all its clients share it.

    Args:
        connection: the connection of the database.
        span: the time from now.

    """
    if connection.vendor in _FROM_NOW:
        return _FROM_NOW[connection.vendor], span.total_seconds()
    return "%s", as_stored(now() + span, connection)


class TimeFromNow(Expression):
    """A time from now on by the clock of the database, in a query or an update."""

    def __init__(self, span: timedelta = timedelta()) -> None:
        """
        Take a time from now on.

        Args:
            span: by default zero: the present time.

        """
        super().__init__(output_field=MomentField())
        self.span = span

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        """Return its text and its parameter."""
        text, parameter = from_now(connection, self.span)
        return text, [parameter]


def read_now(connection: BaseDatabaseWrapper) -> datetime:
    """Return the present time by the clock of the database, in UTC."""
    text, parameter = from_now(connection)
    if connection.vendor not in _FROM_NOW:
        return datetime.now(UTC)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {text}", [parameter])
        (found,) = cursor.fetchone()
    moment: datetime = found
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment

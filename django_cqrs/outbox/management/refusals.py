"""The commands' errors when the outbox's database fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import Error, InterfaceError, OperationalError

from django_cqrs.logged_errors import described
from django_cqrs.outbox.worker.outages import is_not_migrated


@contextmanager
def clear_errors(using: str, *, code: int = 1) -> Iterator[None]:
    """
    Turn an error of the database into one line.

    Args:
        using: the alias of the database.
        code: the exit code of the process.

    Raises:
        CommandError: the tables are missing, or the database is unavailable.

    """
    try:
        yield
    except Error as error:
        text = " ".join(described(error).split())
        if is_not_migrated(error):
            msg = (
                f"The database {using!r} does not have the outbox tables that this "
                f"version needs ({text}). Create them: python manage.py migrate "
                f"--database {using}"
            )
        elif isinstance(error, (OperationalError, InterfaceError)):
            msg = f"The database {using!r} is unavailable: {text}"
        else:
            raise
        raise CommandError(msg, returncode=code) from error

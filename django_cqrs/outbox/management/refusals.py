"""What the commands say where the outbox's database does not answer them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import Error, InterfaceError, OperationalError

from django_cqrs.outbox.journal import described
from django_cqrs.outbox.worker.outages import is_not_migrated


@contextmanager
def clear_errors(using: str, *, code: int = 1) -> Iterator[None]:
    """
    Make one line of an error that is the database's.

    Args:
        using: the alias of the database.
        code: with which the process is to end.

    Raises:
        CommandError: there are no tables, or the database is out of reach.

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

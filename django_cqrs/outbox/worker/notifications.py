"""The PostgreSQL notifications that wake idle workers."""

from __future__ import annotations

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.channels.aliases import channels as all_channels
from django_cqrs.exceptions import InvalidChannel


def wakes_workers(alias: str) -> bool:
    """Return whether a channel wakes its workers."""
    try:
        return bool(getattr(all_channels[alias], "notifies", False))
    except InvalidChannel:
        return False


def can_listen(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the driver can wait for notifications."""
    driver = getattr(connection, "Database", None)
    return connection.vendor == "postgresql" and hasattr(
        getattr(driver, "Connection", None), "notifies"
    )

"""Checks of the database, run by `check --database`, `migrate` and the worker."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, models, router

from django_cqrs.buses.registries import registry
from django_cqrs.channels.aliases import channels
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.outbox.channel import OutboxChannel
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.pipeline.tenancy import is_of_tenants, tenancy


def check_tables(
    *, databases: Collection[str] | None = None, **_kwargs: Any
) -> list[CheckMessage]:
    """Check that the databases of outbox channels have its tables, up to date."""
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        with connection.cursor() as cursor:
            tables = connection.introspection.table_names(cursor)
        if OutboxMessage._meta.db_table in tables:
            found += _stale_columns(alias, tables)
        else:
            found += _lacking(alias)
    return found


def _lacking(alias: str) -> Iterator[CheckMessage]:
    """Yield an error if handlers send messages to a database without the table."""
    may_migrate = router.allow_migrate_model(alias, OutboxMessage)
    if may_migrate and sys.argv[1:2] == ["migrate"]:
        return  # it is about to create the table
    if not any(map(_is_outbox, channels)) or _is_broken_tenancy():
        return
    of_tenants = _aliases_of_tenants()
    senders = sorted(
        endpoint.name
        for endpoint in registry.routes.endpoints
        if (
            alias in of_tenants
            if is_of_tenants(endpoint)
            else (endpoint.alias or DEFAULT_DB_ALIAS) == alias
        )
    )
    if not senders:
        return
    hint = f"Run manage.py migrate --database={alias}."
    if not may_migrate:
        hint = (
            "Let allow_migrate of your router allow 'django_cqrs_outbox' there, and "
            f"run manage.py migrate --database={alias}."
        )
    yield Error(
        f"The database {alias!r} has no outbox tables to store the messages of "
        f"{senders[0]}.",
        hint=hint,
        id="django_cqrs_outbox.E002",
    )


def _is_broken_tenancy() -> bool:
    try:
        tenancy()
    except ImproperlyConfigured:  # another check reports it
        return True
    return False


def _aliases_of_tenants() -> Collection[str]:
    """Return the databases of tenants, as far as the settings say which there are."""
    policy = tenancy()
    with suppress(ImproperlyConfigured):
        return () if policy is None else policy.aliases()
    return ()


def _is_outbox(alias: str) -> bool:
    try:
        return isinstance(channels[alias], OutboxChannel)
    except InvalidChannel:  # another check reports it
        return False


def _stale_columns(alias: str, tables: Collection[str]) -> Iterator[CheckMessage]:
    """Yield an error for ids that an older MariaDB stored as texts."""
    connection = connections[alias]
    if connection.vendor != "mysql" or not connection.features.has_native_uuid_field:
        return
    for model in apps.get_app_config(OutboxMessage._meta.app_label).get_models():
        table = model._meta.db_table
        columns: dict[str, str] = {
            str(field.column): "NULL" if field.null else "NOT NULL"
            for field in model._meta.fields
            if isinstance(field, models.UUIDField)
        }
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT column_name FROM information_schema.columns WHERE "
                "table_schema = DATABASE() AND table_name = %s AND data_type = 'char'",
                [table],
            )
            stale = [name for (name,) in cursor.fetchall() if name in columns]
        if table in tables and stale:
            names = ", ".join(sorted(stale))
            changes = ", ".join(
                f"MODIFY {name} uuid {columns[name]}" for name in sorted(stale)
            )
            yield Error(
                f"The table {table} of the database {alias!r} has text columns where "
                f"Django has written a uuid since MariaDB 10.7: {names}. Django "
                "cannot write to it.",
                hint=f"Stop the workers, then run: ALTER TABLE {table} {changes};",
                id="django_cqrs_outbox.E003",
            )

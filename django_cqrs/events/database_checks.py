"""Checks of the database of a store, for `check --database`, `migrate` and workers."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

from django.core.checks import CheckMessage, Error
from django.db import connections

from django_cqrs.events.columns import EVENT
from django_cqrs.events.rules import StreamRule
from django_cqrs.events.store_faults import faults_of_setup


def check_stores(
    *, databases: Collection[str] | None = None, **_kwargs: Any
) -> list[CheckMessage]:
    """Check functions and sequences of the databases that have the tables of events."""
    found: list[CheckMessage] = []
    is_migrating = sys.argv[1:2] == ["migrate"]
    for alias in databases or ():
        connection = connections[alias]
        with connection.cursor() as cursor:
            if EVENT not in connection.introspection.table_names(cursor):
                continue
        for fault in faults_of_setup(connection):
            if is_migrating and fault.is_migrated_away:
                continue
            text = f"The store of events in the database {alias!r}: {fault.text}"
            found.append(Error(text, hint=fault.hint, id=StreamRule.BAD_STORE.id))
    return found

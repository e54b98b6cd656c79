"""Two tenants, each with a database of its own; the shared part is in the first one."""

from __future__ import annotations

import inspect
import shutil
from contextlib import contextmanager
from copy import deepcopy

from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings

from tests.settings import DJANGO_CQRS

DATABASES = {"acme": "default", "globex": "other"}
ROUTER = "django_cqrs.tenancy.TenantRouter"


def with_tenancy(databases=None, *, also=None, routers=(ROUTER,), **keys):
    """Return a block, or a decorator, with the setting TENANCY."""
    tenancy = {"HEADER": "tenant", "DATABASES": databases or DATABASES, **keys}
    return override_settings(
        DJANGO_CQRS={**DJANGO_CQRS, **(also or {}), "TENANCY": tenancy},
        DATABASE_ROUTERS=list(routers),
    )


@contextmanager
def with_settings_of(databases):
    """Add databases to the settings, by alias, and let the running test use them."""
    ensure = inspect.getclosurevars(BaseDatabaseWrapper.ensure_connection)
    case = ensure.nonlocals["cls"]
    before = case.databases
    connections.settings.update(databases)
    case.databases = before | databases.keys()
    try:
        yield
    finally:
        for alias in databases:
            connections[alias].close()
            del connections[alias]
            del connections.settings[alias]
        case.databases = before


@contextmanager
def with_alias(alias, like="other", **changes):
    """Add a database that is like another one but for some keys of its settings."""
    own = {**deepcopy(connections.settings[like]), **changes}
    with with_settings_of({alias: own}):
        yield own


@contextmanager
def with_files(folder, aliases):
    """Add databases of SQLite, as they are after `migrate`."""
    files = {alias: str(folder / f"{alias}.sqlite3") for alias in aliases}
    first, *others = files.values()
    with connection.cursor() as cursor:
        cursor.execute("VACUUM INTO %s", [first])
    for each in others:
        shutil.copy(first, each)
    own = connections.settings["default"]
    with with_settings_of(
        {alias: {**deepcopy(own), "NAME": name} for alias, name in files.items()}
    ):
        yield


def away_in(folder):
    """Return the changes of a database's settings by which it cannot be reached."""
    if connection.vendor == "sqlite":
        return {"NAME": str(folder / "away" / "away.sqlite3")}
    return {"HOST": "127.0.0.1", "PORT": "1"}

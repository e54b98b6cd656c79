"""
The options ``--database`` and ``--tenant`` of management commands.

A command that reads or changes rows calls :func:`add_database_options` with its parser,
and does its work inside :func:`chosen_rows`::

    def add_arguments(self, parser):
        add_database_options(parser)

    def handle(self, *, database, tenant, **options):
        with chosen_rows(database, tenant) as chosen:
            for row in chosen.of(Row.objects.all()):
                ...

So does a command for streams, projections or schedules. A table in the schema of each
tenant needs nothing else, since the tenant is active inside the block.
"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import Model, QuerySet

from django_cqrs import conf
from django_cqrs.exceptions import UnknownTenant
from django_cqrs.pipeline.tenancy import (
    KEY,
    Tenancy,
    shares_its_database,
    tenancy,
    tenant,
)

M = TypeVar("M", bound=Model)

COLUMN: Final = "tenant"
"""The column of tables that several tenants may share."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChosenRows:
    """The rows that a command may look at."""

    using: str
    """The alias of the database."""
    tenant: str | None = None
    """The tenant whose rows they are; None for all rows of the database."""

    def of(self, rows: QuerySet[M]) -> QuerySet[M]:
        """Return the chosen rows of a table; all, if it does not say whose they are."""
        rows = rows.using(self.using)
        if self.tenant is None or not has_tenants(rows.model):
            return rows
        return rows.filter(**{COLUMN: self.tenant})

    def refuse_one_tenant(self, what: str) -> None:
        """
        Refuse what cannot be done for one of several tenants.

        Args:
            what: the beginning of the error.

        Raises:
            CommandError: the tenant shares the tables with others.

        """
        if self.tenant is not None:
            msg = (
                f"{what} for tenant {self.tenant!r} alone, since several tenants share "
                f"the tables in {self.using!r}. Use --database {self.using}, for all "
                "of them."
            )
            raise CommandError(msg)


def has_tenants(model: type[Model]) -> bool:
    """Return whether the rows of a table say which tenant they belong to."""
    return any(each.name == COLUMN for each in model._meta.fields)


def add_database_options(
    parser: ArgumentParser,
    *,
    help: str = "The database (default: %(default)s).",  # noqa: A002 - as argparse calls it
) -> Any:
    """
    Add ``--database`` and ``--tenant``, of which one may be given.

    Args:
        parser: the parser of a command, or of one of its actions.
        help: the help of ``--database``.

    Returns:
        The group, for other options that exclude both.

    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--database",
        default=DEFAULT_DB_ALIAS,
        choices=tuple(connections),
        help=help,
    )
    add_tenant_option(group, "Only this tenant, in the database of the tenant.")
    return group


def add_tenant_option(parser: Any, text: str) -> None:
    """Add ``--tenant`` alone, with its help."""
    parser.add_argument("--tenant", metavar="NAME", help=text)


@contextmanager
def chosen_rows(database: str, name: str | None) -> Iterator[ChosenRows]:
    """
    Yield the rows that the options choose, with the tenant active.

    Args:
        database: the value of ``--database``.
        name: the value of ``--tenant``; None if it was not given.

    Raises:
        CommandError: the tenant is not known, or the project has none.

    """
    if name is None:
        yield ChosenRows(database)
        return
    with active_by_option(name) as policy:
        using = policy.alias_of(name) or database
        is_shared = shares_its_database(policy, name, using)
        yield ChosenRows(using, name if is_shared else None)


@contextmanager
def active_by_option(name: str) -> Iterator[Tenancy]:
    """
    Make the tenant of ``--tenant`` active.

    Raises:
        CommandError: the tenant is not known, or the project has none.

    """
    policy = required_tenancy("--tenant")
    try:
        block = tenant(name)
        block.__enter__()
    except (UnknownTenant, ImproperlyConfigured) as error:
        raise CommandError(str(error)) from error
    try:
        yield policy
    finally:
        block.__exit__(None, None, None)


def required_tenancy(option: str) -> Tenancy:
    """
    Return the setting ``TENANCY`` for an option that needs it.

    Raises:
        CommandError: the setting is missing, or cannot be used.

    """
    try:
        policy = tenancy()
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error
    if policy is None:
        msg = f"{option} needs {conf.NAME}[{KEY!r}] in the settings."
        raise CommandError(msg)
    return policy

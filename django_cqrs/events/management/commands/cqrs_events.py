"""``manage.py cqrs_events``: look after streams, events and snapshots."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections, router

from django_cqrs.events.columns import EVENT
from django_cqrs.events.management import (
    check_command,
    export_command,
    head_command,
    import_command,
    read_command,
    shapes_command,
    show_command,
    snapshot_command,
    streams_command,
)
from django_cqrs.events.models import StoredEvent
from django_cqrs.exceptions import CQRSError
from django_cqrs.tenant_options import add_tenant_option, chosen_rows

SUBCOMMANDS: Final[dict[str, ModuleType]] = {
    "streams": streams_command,
    "show": show_command,
    "read": read_command,
    "head": head_command,
    "shapes": shapes_command,
    "snapshots": snapshot_command,
    "check": check_command,
    "export": export_command,
    "import": import_command,
}
"""The modules of the subcommands, by name: each has a help, arguments and a handler."""


class Command(BaseCommand):
    """Look after event streams."""

    help = "Shows, examines and maintains the streams of events."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the subcommands."""
        actions = parser.add_subparsers(dest="action", required=True)
        for name, module in SUBCOMMANDS.items():
            each = actions.add_parser(name, help=module.HELP, description=module.HELP)
            module.add_arguments(each)
            group = each.add_mutually_exclusive_group()
            group.add_argument(
                "--database",
                choices=tuple(connections),
                help="The database with the events (default: the router's).",
            )
            add_tenant_option(group, "Only this tenant, in the database of the tenant.")

    def handle(
        self, *, action: str, database: str | None, tenant: str | None, **options: Any
    ) -> None:
        """Do what the subcommand says."""
        for name in _OF_DJANGO:
            options.pop(name, None)
        with chosen_rows(database or DEFAULT_DB_ALIAS, tenant) as chosen:
            chosen.refuse_one_tenant(f"cqrs_events {action} cannot run")
            using = chosen.using
            if database is None and tenant is None:
                using = router.db_for_write(StoredEvent)
            _refuse_missing_tables(using)
            try:
                SUBCOMMANDS[action].handle(self.stdout, using=using, **options)
            except CQRSError as error:
                raise CommandError(str(error)) from error


def _refuse_missing_tables(using: str) -> None:
    connection = connections[using]
    with connection.cursor() as cursor:
        if EVENT in connection.introspection.table_names(cursor):
            return
    msg = (
        f"The database {using!r} does not have the tables of events. Create them: "
        f"python manage.py migrate --database {using}"
    )
    raise CommandError(msg)


_OF_DJANGO: Final = (
    "force_color",
    "no_color",
    "pythonpath",
    "settings",
    "skip_checks",
    "stderr",
    "stdout",
    "traceback",
    "verbosity",
)

"""``manage.py cqrs_check_deployed``: count messages that this code cannot handle."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tabulate import tabulate

from django_cqrs.outbox.deployment import stored_kinds
from django_cqrs.outbox.management.refusals import clear_errors
from django_cqrs.tenant_options import add_database_options, chosen_rows


class Command(BaseCommand):
    """Count the stored messages that this code cannot handle."""

    help = (
        "Run it with the new code before a deployment: it counts the waiting messages "
        "whose channel, endpoint, name or version this code does not know, and exits "
        "with 1 if there are any. It changes nothing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the database, and whether dead letters count."""
        add_database_options(
            parser, help="The database of the outbox (default: %(default)s)."
        )
        parser.add_argument(
            "--dead-letters",
            action="store_true",
            help="Count dead letters too, which could not be replayed.",
        )

    def handle(
        self,
        *,
        database: str,
        tenant: str | None,
        dead_letters: bool,
        **_options: Any,
    ) -> None:
        """Print the messages that cannot be handled."""
        with chosen_rows(database, tenant) as chosen, clear_errors(chosen.using):
            kinds = stored_kinds(
                chosen.using, dead_letters=dead_letters, tenant=chosen.tenant
            )
        broken = [each for each in kinds if each.faults]
        total = sum(each.count for each in kinds)
        if not broken:
            which = (
                "the stored message" if total == 1 else f"all {total} stored messages"
            )
            self.stdout.write(f"This code can handle {which}.")
            return
        rows = [
            (
                each.count,
                "dead" if each.is_dead else "waiting",
                each.channel,
                each.endpoint,
                f"{each.name or 'value'} {each.version or ''}".strip(),
            )
            for each in broken
        ]
        headers = ["Messages", "State", "Channel", "Endpoint", "Name and version"]
        self.stdout.write(tabulate(rows, headers=headers))
        for fault in dict.fromkeys(fault for each in broken for fault in each.faults):
            self.stdout.write(f"- {fault}")
        count = sum(each.count for each in broken)
        msg = f"This code cannot handle {count} of {total} stored messages."
        raise CommandError(msg, returncode=1)

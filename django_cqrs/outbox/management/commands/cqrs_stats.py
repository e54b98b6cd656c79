"""``manage.py cqrs_stats``: count waiting, dead and handled messages by channel."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from tabulate import tabulate

from django_cqrs.attendants import Figures, attendants
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.outbox.attendance import living_workers
from django_cqrs.outbox.channel import outbox_of
from django_cqrs.outbox.long_transactions import long_transactions
from django_cqrs.outbox.management.refusals import clear_errors
from django_cqrs.outbox.pausing import described, paused_channels
from django_cqrs.outbox.statistics import ChannelStatistics, statistics_of
from django_cqrs.tenant_options import add_database_options, chosen_rows

JSON_VERSION = 1

COLUMNS = {
    "channel": "Channel",
    "pending": "Pending",
    "oldest": "Oldest",
    "delayed": "Delayed",
    "parked": "Parked",
    "dead": "Dead",
    "handled_5_minutes": "Handled 5 min",
    "handled_hour": "Handled 1 h",
    "handled_day": "Handled 24 h",
    "failed_hour": "Failed 1 h",
}
# Shown only if a channel has some.
OPTIONAL = ("parked", "failed_hour")


class Command(BaseCommand):
    """Show the figures of the channels."""

    help = (
        "Shows for each channel of the outbox how many messages are due, how long the "
        "oldest has waited, how many are delayed and dead, and how many were handled; "
        "how far each projection of events has come; and which transactions have been "
        "open for long."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the channels, the database and a format."""
        parser.add_argument(
            "channels",
            nargs="*",
            metavar="CHANNEL",
            help="The aliases of the channels (default: all).",
        )
        add_database_options(parser)
        parser.add_argument(
            "--format",
            choices=["table", "json"],
            default="table",
            help="The output format (default: %(default)s).",
        )

    def handle(
        self,
        *,
        channels: list[str],
        database: str,
        tenant: str | None,
        format: str,
        **_options: Any,
    ) -> None:
        """Print the figures."""
        try:
            for alias in channels:
                outbox_of(alias)
        except InvalidChannel as error:
            raise CommandError(str(error)) from error
        with chosen_rows(database, tenant) as chosen, clear_errors(chosen.using):
            database, tenant = chosen.using, chosen.tenant
            found = statistics_of(database, channels or None, tenant=tenant)
            # Their statements may be those of another tenant.
            transactions = long_transactions(database) if tenant is None else []
            workers = living_workers(database)
            paused = paused_channels(database)
            # Events and projections are not divided by tenant.
            others = [] if tenant is not None else _of_attendants(database, channels)
        if format == "json":
            document: dict[str, Any] = {
                "version": JSON_VERSION,
                "database": database,
                "at": timezone.now().isoformat(),
                "channels": [dataclasses.asdict(each) for each in found],
            }
            if tenant is not None:
                document["tenant"] = tenant
            if workers:
                document["workers"] = [
                    {
                        "name": each.name,
                        "channels": each.channels,
                        "since": each.since.isoformat(),
                        "seen_at": each.seen_at.isoformat(),
                    }
                    for each in workers
                ]
            if paused:
                document["paused_channels"] = sorted(paused)
            if transactions:
                document["long_transactions"] = [
                    dataclasses.asdict(each) for each in transactions
                ]
            for figures in others:
                document |= figures.documents
            self.stdout.write(json.dumps(document, indent=2))
            return
        self.stdout.write(_table(found) if found else "No channels.")
        for worker in workers:
            names = ", ".join(worker.channels)
            self.stdout.write(f"Worker {worker.name} handles {names}.")
        for name, row in paused.items():
            self.stdout.write(f"Channel {name} is paused {described(row)}.")
        for each in transactions:
            self.stdout.write(each.described())
        for figures in others:
            self._write_figures(figures)

    def _write_figures(self, figures: Figures) -> None:
        if figures.rows:
            table = tabulate(
                figures.rows, headers=figures.headings, disable_numparse=True
            )
            self.stdout.write(f"\n{table}")
        for note in figures.notes:
            self.stdout.write(note)


def _of_attendants(using: str, channels: list[str]) -> list[Figures]:
    """Return the figures of other apps."""
    found = (each.figures(using, channels or None) for each in attendants())
    return [figures for figures in found if figures is not None]


def _table(found: list[ChannelStatistics]) -> str:
    rows = [_row(each) for each in found]
    columns = [
        column
        for column in COLUMNS
        if (column not in OPTIONAL and all(column in row for row in rows))
        or any(row.get(column) for row in rows)
    ]
    return tabulate(
        [[row[column] for column in columns] for row in rows],
        headers=[COLUMNS[column] for column in columns],
        disable_numparse=True,
        colalign=["left", *["right"] * (len(columns) - 1)],
    )


def _row(each: ChannelStatistics) -> dict[str, Any]:
    seconds = each.oldest_seconds
    return {
        **dataclasses.asdict(each),
        "oldest": "" if seconds is None else str(timedelta(seconds=int(seconds))),
        **{f"handled_{window}": count for window, count in each.handled.items()},
        **{f"failed_{window}": count for window, count in each.failed.items()},
    }

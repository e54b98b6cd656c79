"""``manage.py cqrs_channels``: list channels, pause one, and resume it."""

from __future__ import annotations

import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tabulate import tabulate

from django_cqrs.exceptions import InvalidChannel
from django_cqrs.outbox.attendance import living_workers
from django_cqrs.outbox.channel import outbox_of
from django_cqrs.outbox.management.refusals import clear_errors
from django_cqrs.outbox.pausing import described, pause, paused_channels, resume
from django_cqrs.outbox.statistics import kept_channels, outboxes
from django_cqrs.tenant_options import add_database_options, chosen_rows


class Command(BaseCommand):
    """List, pause and resume channels."""

    help = (
        "Lists the channels of the outbox and their workers, pauses channels, whose "
        "messages then wait, and resumes them."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the three subcommands."""
        actions = parser.add_subparsers(dest="action", required=True)
        listing = actions.add_parser("list", help="List channels and workers.")
        pausing = actions.add_parser(
            "pause", help="Have workers leave the messages of channels alone."
        )
        pausing.add_argument(
            "--reason", default="", help="The reason, for others to see."
        )
        resuming = actions.add_parser(
            "resume", help="Have workers handle the messages of channels again."
        )
        for each in (pausing, resuming):
            each.add_argument("channels", nargs="+", metavar="CHANNEL")
        for each in (listing, pausing, resuming):
            add_database_options(
                each, help="The database of the outbox (default: %(default)s)."
            )

    def handle(
        self, *, action: str, database: str, tenant: str | None, **options: Any
    ) -> None:
        """Do what the subcommand says."""
        with chosen_rows(database, tenant) as chosen, clear_errors(chosen.using):
            if action == "list":
                self._list(chosen.using)
                return
            names = ", ".join(options["channels"])
            chosen.refuse_one_tenant(f"{names} cannot be paused or resumed")
            if action == "pause":
                self._pause(options["channels"], chosen.using, options["reason"])
            else:
                self._resume(options["channels"], chosen.using)

    def _list(self, using: str) -> None:
        workers = living_workers(using)
        paused = paused_channels(using)
        names = dict.fromkeys([*outboxes(), *sorted(kept_channels(using)), *paused])
        if not names:
            self.stdout.write("No channels.")
            return
        rows = [
            (
                name,
                sum(name in each.channels for each in workers),
                described(paused[name]) if name in paused else "",
            )
            for name in names
        ]
        self.stdout.write(tabulate(rows, headers=["Channel", "Workers", "Paused"]))

    def _pause(self, channels: list[str], using: str, reason: str) -> None:
        try:
            for name in channels:
                outbox_of(name)
        except InvalidChannel as error:
            raise CommandError(str(error)) from error
        for name in dict.fromkeys(channels):
            is_new = pause(name, using=using, by=_user(), reason=reason)
            text = "Paused" if is_new else "Already paused:"
            self.stdout.write(f"{text} {name}.")

    def _resume(self, channels: list[str], using: str) -> None:
        unknown = set(channels).difference(outboxes(), paused_channels(using))
        if unknown:
            msg = f"There is no channel {', '.join(map(repr, sorted(unknown)))}."
            raise CommandError(msg)
        for name in dict.fromkeys(channels):
            text = "Resumed" if resume(name, using=using) else "Not paused:"
            self.stdout.write(f"{text} {name}.")


def _user() -> str:
    """Return the name of the operating system's user, if it has one."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""

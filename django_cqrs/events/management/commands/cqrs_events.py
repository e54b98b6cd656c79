"""``manage.py cqrs_events``: look after streams, events and snapshots."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandParser

from django_cqrs.events.management import snapshot_command

SUBCOMMANDS: Final[dict[str, ModuleType]] = {"snapshots": snapshot_command}
"""The modules of the subcommands, by name: each has a help, arguments and a handler."""


class Command(BaseCommand):
    """Look after event streams."""

    help = "Shows and maintains the streams of events."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the subcommands."""
        actions = parser.add_subparsers(dest="action", required=True)
        for name, module in SUBCOMMANDS.items():
            module.add_arguments(
                actions.add_parser(name, help=module.HELP, description=module.HELP)
            )

    def handle(self, *, action: str, **options: Any) -> None:
        """Do what the subcommand says."""
        for name in _OF_DJANGO:
            options.pop(name, None)
        SUBCOMMANDS[action].handle(self.stdout, **options)


_OF_DJANGO: Final = (
    "force_color",
    "no_color",
    "pythonpath",
    "settings",
    "skip_checks",
    "traceback",
    "verbosity",
)

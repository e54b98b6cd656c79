"""``manage.py cqrs_events head``: the last and the settled position."""

from __future__ import annotations

import dataclasses
from typing import Final

from django.core.management.base import CommandParser, OutputWrapper

from django_cqrs.events.management.output import add_format, blocker_text, write_json
from django_cqrs.events.status import store_status

HELP: Final = (
    "Shows the last and the settled position, and the transactions that hold "
    "followers back."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the option of the subcommand."""
    add_format(parser)


def handle(stdout: OutputWrapper, *, using: str, format: str) -> None:
    """Show the positions of a store."""
    found = store_status(using)
    if format == "json":
        held = [dataclasses.asdict(each) for each in found.blockers]
        write_json(
            stdout,
            {"head": found.head, "settled": found.settled, "held_back_by": held},
        )
        return
    stdout.write(f"Settled position {found.settled} of {found.head}.")
    for each in found.blockers:
        stdout.write(blocker_text(each))

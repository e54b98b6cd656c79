"""``manage.py cqrs_events check``: find faults in a store of events."""

from __future__ import annotations

import dataclasses
from typing import Final

from django.core.management.base import CommandError, CommandParser, OutputWrapper
from django.db import connections

from django_cqrs.events.management.output import add_format, write_json
from django_cqrs.events.store_faults import all_faults, faults_of_setup

HELP: Final = (
    "Looks for faults in the store: holes in streams, tags and keys without events, "
    "a sequence that is behind, functions that are missing. Reads all events. Exits "
    "with 1 if there are any."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Look only at functions and sequences, as manage.py check --database.",
    )
    add_format(parser)


def handle(stdout: OutputWrapper, *, using: str, quick: bool, format: str) -> None:
    """
    Look for faults.

    Raises:
        CommandError: there are some.

    """
    find = faults_of_setup if quick else all_faults
    found = list(find(connections[using]))
    if format == "json":
        faults = [dataclasses.asdict(each) for each in found]
        write_json(stdout, {"faults": faults})
    else:
        for each in found:
            stdout.write(f"{each.text} {each.hint}")
    if found:
        noun = "fault" if len(found) == 1 else "faults"
        msg = f"The store in the database {using!r} has {len(found)} {noun}."
        raise CommandError(msg, returncode=1)
    if format == "text":
        stdout.write("No faults.")

"""``manage.py cqrs_events import``: add the events of an export that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_cqrs.events.store import EventStore
from django_cqrs.events.transfer import check_lines, import_lines

HELP: Final = (
    "Adds the streams, events and natural keys of an export that are missing, with "
    "their ids and versions. Nothing is published. It can be repeated."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the file."""
    parser.add_argument("file", metavar="FILE", help="A file that export has written.")


def handle(stdout: OutputWrapper, *, using: str, file: str) -> None:
    """
    Read the file twice: nothing is imported if a line is wrong.

    Raises:
        CommandError: the file cannot be read.
        InvalidOption: a line is wrong, or does not fit the store.

    """
    try:
        with Path(file).open(encoding="utf-8") as lines:
            check_lines(lines)
        with Path(file).open(encoding="utf-8") as lines:
            registry = EventStore(using).registry
            done = import_lines(lines, using=using, registry=registry)
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Cannot read {file}: {error}"
        raise CommandError(msg) from error
    stdout.write(
        f"Added {done.streams} streams, {done.events} events and {done.keys} natural "
        "keys."
    )
    if done.events:
        stdout.write(
            "Inline projections get them with the next event of their streams, or by "
            "manage.py cqrs_projections backfill --all."
        )

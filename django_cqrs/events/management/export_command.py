"""``manage.py cqrs_events export``: write a whole store as lines of JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from django_cqrs.events.transfer import exported

HELP: Final = (
    "Writes streams, settled events and natural keys as lines of JSON. Sensitive "
    "values are written as they are stored."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the option of the subcommand."""
    parser.add_argument(
        "--output", metavar="FILE", help="Write into this new file, not to the output."
    )


def handle(stdout: OutputWrapper, *, using: str, output: str | None) -> None:
    """
    Write the lines.

    Raises:
        CommandError: the file exists, or cannot be written.

    """
    if output is None:
        for line in exported(using):
            stdout.write(line)
        return
    try:
        with Path(output).open("x", encoding="ascii") as file:
            count = sum(file.write(f"{line}\n") > 0 for line in exported(using))
    except OSError as error:
        msg = f"Cannot write {output}: {error.strerror}."
        raise CommandError(msg) from error
    stdout.write(f"Wrote {count} lines.")

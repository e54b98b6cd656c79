"""The common options and output of the commands for streams and projections."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from typing import Any, Final

from django.core.management.base import CommandParser, OutputWrapper

from django_cqrs.events.settling import Blocker
from django_cqrs.logged_errors import writable

JSON_VERSION: Final = 1


def add_format(parser: CommandParser) -> None:
    """Add ``--format``."""
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="The output format (default: %(default)s).",
    )


def write_json(stdout: OutputWrapper, value: dict[str, Any]) -> None:
    """Write a JSON object, with the version of its keys."""
    document = {"version": JSON_VERSION, **value}
    text = json.dumps(document, indent=2, default=str, ensure_ascii=False)
    stdout.write(writable(text))


def blocker_text(blocker: Blocker) -> str:
    """Return a sentence about a transaction that holds followers back."""
    who = "a prepared transaction"
    if blocker.session is not None:
        who = f"session {blocker.session} of the server"
    since = "" if blocker.age is None else f", which began {blocker.age} ago"
    return f"Held back at {blocker.floor} by {who}{since}."


def add_limit(parser: CommandParser, *, default: int | None = 20) -> None:
    """Add ``--limit``; without a default, it may be left out."""
    text = "The maximum number of rows"
    if default is not None:
        text += " (default: %(default)s)"
    parser.add_argument("--limit", type=_positive, default=default, help=f"{text}.")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"it takes a number from 1, not {text}"
        raise ArgumentTypeError(msg)
    return number

"""``manage.py cqrs_prune``: delete expired rows in batches."""

from __future__ import annotations

import argparse
import re
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.dateparse import parse_duration

from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.management.commands.cqrs_worker import positive
from django_cqrs.outbox.management.refusals import clear_errors
from django_cqrs.outbox.pruning import Pruned, prune
from django_cqrs.outbox.store.batches import SIZE
from django_cqrs.tenant_options import add_database_options, chosen_rows

LARGEST = 10_000


def age(text: str) -> timedelta:
    """Return a duration in Django's format, or as a number with its unit."""
    bare = text.strip()
    # A plain number could mean seconds or days, and "P" is an empty duration.
    if re.search(r"\d", bare) and not re.fullmatch(r"[\d.,]+", bare):
        for form in (bare, f"P{bare.upper()}", f"PT{bare.upper()}"):
            try:
                span = parse_duration(form)
            except (OverflowError, ValueError):
                break
            if span is not None and span >= timedelta(0):
                return span
    msg = f"{text!r} is not a valid age: give a number with a unit, such as 30d or 12h."
    raise argparse.ArgumentTypeError(msg)


def batch_size(text: str) -> int:
    """Return a whole number within the parameter limit of a statement."""
    number = positive(text)
    if number > LARGEST:
        msg = f"{text} rows are too many for one statement: {LARGEST} at most."
        raise argparse.ArgumentTypeError(msg)
    return number


class Command(BaseCommand):
    """Keep the tables of the outbox small."""

    help = (
        "Deletes expired rows in batches: keys older than IDEMPOTENCY_WINDOW, counts "
        "older than a day, journal entries older than JOURNAL, and results of tasks "
        "older than TASK_RESULTS. Deletes dead "
        "letters only if an age is given."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the age of dead letters, the database, and the options of deletion."""
        parser.add_argument(
            "--dead-letters-older-than",
            type=age,
            metavar="AGE",
            help=(
                "Also permanently delete dead letters older than this, such as 30d "
                "or 12h."
            ),
        )
        add_database_options(parser)
        parser.add_argument(
            "--batch-size",
            type=batch_size,
            default=SIZE,
            metavar="N",
            help=(
                "Maximum number of rows deleted in one statement (default: "
                "%(default)s)."
            ),
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only show how many it would be."
        )

    def handle(
        self,
        *,
        dead_letters_older_than: timedelta | None,
        database: str,
        tenant: str | None,
        batch_size: int,
        dry_run: bool,
        verbosity: int,
        **_options: Any,
    ) -> None:
        """Delete, and print the counts."""
        try:
            with chosen_rows(database, tenant) as chosen, clear_errors(chosen.using):
                for each in prune(
                    chosen.using,
                    dead_letters=dead_letters_older_than,
                    size=batch_size,
                    dry_run=dry_run,
                    tenant=chosen.tenant,
                ):
                    if verbosity > 0:
                        self.stdout.write(_describe(each, verbosity, dry_run=dry_run))
        except InvalidOption as error:
            raise CommandError(str(error)) from error


def _describe(each: Pruned, verbosity: int, *, dry_run: bool) -> str:
    options = each.model._meta
    noun = options.verbose_name if each.count == 1 else options.verbose_name_plural
    said = f"{'Would delete' if dry_run else 'Deleted'} {each.count} {noun}"
    if verbosity > 1:
        said += f", made before {each.before:%Y-%m-%d %H:%M:%S}"
    return f"{said}."

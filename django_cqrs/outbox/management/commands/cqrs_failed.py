"""``manage.py cqrs_failed``: view, replay and delete dead letters."""

from __future__ import annotations

import json
import shutil
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import QuerySet
from tabulate import tabulate

from django_cqrs.conversion.masking import MASK
from django_cqrs.outbox.management.refusals import clear_errors
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, Reason, State
from django_cqrs.outbox.redaction import (
    MASKED,
    NOT_SHOWN,
    RedactedMessage,
    reason_text,
    redact,
    redact_list,
)
from django_cqrs.outbox.store.dead_letters import discard, replay
from django_cqrs.tenant_options import ChosenRows, add_database_options, chosen_rows

NARROW = 60


class Command(BaseCommand):
    """List, show, replay and delete messages that failed for good."""

    help = "Shows dead letters; replays or deletes them."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the actions, and the selection of dead letters."""
        actions = parser.add_subparsers(dest="action", required=True)
        listing = actions.add_parser("list", help="List dead letters, newest first.")
        self._add_filters(listing)
        listing.add_argument(
            "--limit",
            type=int,
            default=20,
            help="Maximum number of rows (default: %(default)s).",
        )
        listing.add_argument(
            "--format",
            choices=["table", "json"],
            default="table",
            help="The output format (default: %(default)s).",
        )
        waiting = actions.add_parser(
            "waiting",
            help="List messages that failed and will be retried, soonest first.",
        )
        waiting.add_argument("--channel", help="Only of this channel.")
        waiting.add_argument("--endpoint", help="Only for this endpoint.")
        waiting.add_argument(
            "--limit",
            type=int,
            default=20,
            help="Maximum number of rows (default: %(default)s).",
        )
        show = actions.add_parser(
            "show", help="Show one dead letter with its error and payload."
        )
        show.add_argument(
            "id", type=int, help="The id of the dead letter, as shown in the list."
        )
        for action, text in (
            (
                "replay",
                "Put dead letters back into their channel for their own handler.",
            ),
            ("delete", "Permanently delete dead letters."),
        ):
            sub = actions.add_parser(action, help=text)
            sub.add_argument(
                "ids", nargs="*", type=int, help="The ids of the dead letters."
            )
            sub.add_argument(
                "--all",
                action="store_true",
                help="Choose all dead letters that match the filters.",
            )
            sub.add_argument(
                "--dry-run", action="store_true", help="Only show how many it would be."
            )
            if action == "delete":
                sub.add_argument(
                    "--no-input",
                    "--noinput",
                    action="store_false",
                    dest="interactive",
                    help="Do not ask for confirmation.",
                )
            self._add_filters(sub)
        for sub in actions.choices.values():
            add_database_options(sub)

    def _add_filters(self, parser: CommandParser) -> None:
        parser.add_argument("--channel", help="Only of this channel.")
        parser.add_argument("--endpoint", help="Only for this endpoint.")
        parser.add_argument("--message", help="Only messages with this name.")
        parser.add_argument(
            "--reason",
            choices=Reason.values,
            help="Only dead letters with this reason.",
        )

    def handle(
        self, *, action: str, database: str, tenant: str | None, **options: Any
    ) -> None:
        """Run the chosen action."""
        with (
            chosen_rows(database, tenant) as chosen,
            clear_errors(chosen.using),
        ):
            self._do(action, chosen, options)

    def _do(self, action: str, rows: ChosenRows, options: dict[str, Any]) -> None:
        if action == "waiting":
            self._list_waiting(rows, options)
            return
        letters, database = rows.of(DeadLetter.objects.all()), rows.using
        if action == "show":
            self._show(letters.filter(pk=options["id"]).first(), options["id"])
            return
        chosen = self._filtered(letters, options)
        if action == "list":
            self._list(chosen, options["limit"], options["format"])
            return
        ids = options["ids"]
        if ids:
            chosen = chosen.filter(pk__in=ids)
            missing = set(ids) - set(chosen.values_list("pk", flat=True))
            if missing:
                numbers = ", ".join(map(str, sorted(missing)))
                msg = f"Dead letter not found: {numbers}. Nothing was done."
                raise CommandError(msg)
        elif not options["all"]:
            msg = (
                f"Name the dead letters: cqrs_failed {action} ID ..., or --all with "
                "or without filters."
            )
            raise CommandError(msg)
        if options["dry_run"]:
            self.stdout.write(f"Would {action} {chosen.count()}.")
        elif action == "replay":
            count = replay(chosen.order_by("sequence").iterator(), using=database)
            self.stdout.write(self.style.SUCCESS(f"Replayed {count}."))
        else:
            self._delete(chosen, database, interactive=options["interactive"])

    def _filtered(
        self, letters: QuerySet[DeadLetter], options: dict[str, Any]
    ) -> QuerySet[DeadLetter]:
        for option, field in (
            ("channel", "channel"),
            ("endpoint", "endpoint"),
            ("message", "name"),
            ("reason", "reason"),
        ):
            if options.get(option) is not None:
                letters = letters.filter(**{field: options[option]})
        return letters

    def _list(self, letters: QuerySet[DeadLetter], limit: int, form: str) -> None:
        newest = letters.order_by("-failed_at", "-pk")[:limit]
        rows = list(newest.defer("payload", "headers", "traceback"))
        seen = redact_list(rows, using=letters.db)
        if form == "json":
            found = [_as_dict(row, seen[row.pk]) for row in rows]
            self.stdout.write(json.dumps(found, indent=2))
            return
        if not rows:
            self.stdout.write("No dead letters.")
            return
        width = shutil.get_terminal_size().columns if self.stdout.isatty() else 0
        cells = [
            [
                row.pk,
                f"{row.failed_at:%Y-%m-%d %H:%M:%S}",
                row.channel,
                row.endpoint,
                row.reason,
                row.attempts,
                _shortened(row, seen[row.pk], width),
            ]
            for row in rows
        ]
        headers = ["Id", "Failed at", "Channel", "Endpoint", "Reason", "Tries", "Error"]
        self.stdout.write(tabulate(cells, headers=headers, disable_numparse=True))
        total = letters.count()
        if total > len(rows):
            self.stdout.write(f"... and {total - len(rows)} more.")

    def _list_waiting(self, chosen: ChosenRows, options: dict[str, Any]) -> None:
        rows = chosen.of(OutboxMessage.objects.all()).filter(
            state=State.DELAYED, last_error__isnull=False
        )
        for field in ("channel", "endpoint"):
            if options[field] is not None:
                rows = rows.filter(**{field: options[field]})
        limit = options["limit"]
        found = list(
            rows.order_by("available_at", "pk").defer("payload", "headers")[: limit + 1]
        )
        if not found:
            self.stdout.write("No messages are waiting for another attempt.")
            return
        width = shutil.get_terminal_size().columns if self.stdout.isatty() else 0
        cells = [
            [
                row.pk,
                f"{row.available_at:%Y-%m-%d %H:%M:%S}",
                row.channel,
                row.endpoint,
                row.attempts,
                _first_line(row.last_error or "", width),
            ]
            for row in found[:limit]
        ]
        headers = ["Id", "Next try", "Channel", "Endpoint", "Tries", "Last error"]
        self.stdout.write(tabulate(cells, headers=headers, disable_numparse=True))
        if len(found) > limit:
            self.stdout.write("... and more.")

    def _show(self, letter: DeadLetter | None, key: int) -> None:
        if letter is None:
            msg = f"Dead letter not found: {key}."
            raise CommandError(msg)
        seen = redact(letter)
        told = {**_as_dict(letter, seen), "reason": reason_text(letter.reason)}
        for name, value in told.items():
            self.stdout.write(f"{name + ':':<16}{value if value is not None else '-'}")
        payload = f"{NOT_SHOWN} {seen.reason}" if seen.reason else seen.text
        self.stdout.write(f"{'headers:':<16}{seen.header_text_of(letter)}")
        self.stdout.write(f"{'payload:':<16}{payload}")
        if MASK in payload:
            self.stdout.write(f"{'':<16}{MASKED}")
        if letter.traceback:
            self.stdout.write(f"\n{seen.traceback_of(letter)}")

    def _delete(
        self, letters: QuerySet[DeadLetter], database: str, *, interactive: bool
    ) -> None:
        count = letters.count()
        if interactive and count:
            answer = input(f"Permanently delete {count}? Type 'yes' to continue: ")
            if answer != "yes":
                self.stdout.write("Nothing was deleted.")
                return
        discard(letters, using=database)
        self.stdout.write(self.style.SUCCESS(f"Deleted {count}."))


def _as_dict(letter: DeadLetter, seen: RedactedMessage) -> dict[str, Any]:
    return {
        "id": letter.pk,
        "channel": letter.channel,
        "endpoint": letter.endpoint,
        "message": letter.name,
        "version": letter.version,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "failed_at": letter.failed_at.isoformat(),
        "sent_at": letter.sent_at.isoformat(),
        "exception": letter.exception,
        "error": seen.error_of(letter),
        "message_id": str(letter.message_id),
        "correlation_id": str(letter.correlation_id),
        "causation_id": str(letter.causation_id) if letter.causation_id else None,
    }


def _shortened(letter: DeadLetter, seen: RedactedMessage, width: int) -> str:
    return _first_line(seen.error_of(letter) or letter.exception, width)


def _first_line(error: str, width: int) -> str:
    text = error.splitlines() or [""]
    room = max(20, width - 100) if width else NARROW
    return text[0] if len(text[0]) <= room else f"{text[0][: room - 3]}..."

"""``manage.py cqrs_schedules``: list schedules, pause and resume them, run them now."""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import (
    Error,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
)
from tabulate import tabulate

from django_cqrs.exceptions import CQRSError, UnknownSchedule
from django_cqrs.logged_errors import described
from django_cqrs.schedules.operations import (
    ScheduleState,
    ScheduleStatus,
    next_times,
    pause,
    resume,
    run_now,
    statuses,
)
from django_cqrs.tenant_options import (
    add_database_options,
    add_tenant_option,
    chosen_rows,
)

JSON_VERSION: Final = 1

MOST_TIMES: Final = 1000
"""The maximum number of next times that are shown."""


def positive(text: str) -> int:
    """Return a whole number from 1 to :data:`MOST_TIMES`."""
    number = int(text) if text.isascii() and text.isdecimal() else 0
    if not 0 < number <= MOST_TIMES:
        msg = f"{text!r} is not a whole number from 1 to {MOST_TIMES}."
        raise argparse.ArgumentTypeError(msg)
    return number


class Command(BaseCommand):
    """List, describe, pause, resume and run schedules."""

    help = (
        "Lists the schedules with their next times and what became of their last "
        "commands, shows the next times of one, pauses and resumes schedules, and "
        "sends a command now."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the five subcommands."""
        actions = parser.add_subparsers(dest="action", required=True)
        listing = actions.add_parser("list", help="List all schedules.")
        coming = actions.add_parser(
            "next", help="Show the next times of a schedule, in its zone and in UTC."
        )
        coming.add_argument(
            "-n",
            dest="count",
            type=positive,
            default=5,
            help="The number of times (default: %(default)s).",
        )
        running = actions.add_parser(
            "run", help="Send one command now; the next time stays as it is."
        )
        pausing = actions.add_parser(
            "pause", help="Send no commands until the schedule is resumed."
        )
        resuming = actions.add_parser(
            "resume", help="Send commands again, from the next time on."
        )
        for each in (coming, running):
            each.add_argument("name", metavar="SCHEDULE")
        for each in (pausing, resuming):
            each.add_argument("names", nargs="+", metavar="SCHEDULE")
        for each in (listing, coming):
            each.add_argument(
                "--format",
                choices=("text", "json"),
                default="text",
                help="The format of the output (default: %(default)s).",
            )
        add_database_options(
            listing,
            help="The database of the schedules (default: %(default)s).",
        )
        for each in (coming, running):
            add_tenant_option(each, _OF_TENANT)
        for each in (pausing, resuming):
            group = each.add_mutually_exclusive_group()
            group.add_argument(
                "--database",
                choices=tuple(connections),
                help=(
                    "The database with the rows of the schedules (default: that of "
                    "their handlers)."
                ),
            )
            add_tenant_option(group, _OF_TENANT)

    def handle(self, *, action: str, **options: Any) -> None:
        """Do what the subcommand says."""
        actions: dict[str, Callable[[dict[str, Any]], None]] = {
            "list": self._list,
            "next": self._next,
            "run": self._run,
            "pause": self._pause,
            "resume": self._resume,
        }
        try:
            actions[action](options)
        except CQRSError as error:
            raise CommandError(str(error)) from error
        except (OperationalError, InterfaceError, ProgrammingError) as error:
            raise CommandError(_said(error)) from error

    def _list(self, options: dict[str, Any]) -> None:
        with chosen_rows(options["database"], options["tenant"]) as chosen:
            found = statuses(chosen.using, tenant=chosen.tenant)
        if options["format"] == "json":
            self._write_json({"schedules": [_as_json(each) for each in found]})
            return
        if not found:
            self.stdout.write("No schedules.")
            return
        headers = ["Schedule", "State", "Next", "Last", "Outcome", "Timetable"]
        has_tenants = any(each.tenant for each in found)
        if has_tenants:
            headers.insert(1, "Tenant")
        rows = [
            (
                each.name,
                *([each.tenant] if has_tenants else ()),
                _state(each),
                _time(each.next_times[0]) if each.next_times else "",
                _time(each.due_at),
                each.outcome,
                f"{each.timetable} {each.zone}".strip(),
            )
            for each in found
        ]
        self.stdout.write(tabulate(rows, headers=headers, disable_numparse=True))

    def _next(self, options: dict[str, Any]) -> None:
        times = next_times(options["name"], options["count"], tenant=options["tenant"])
        if options["format"] == "json":
            found = [_stamp(each) for each in times]
            self._write_json({"schedule": options["name"], "next": found})
            return
        if not times:
            self.stdout.write("No time is left.")
            return
        rows = [(_time(each), _time(each.astimezone(UTC))) for each in times]
        headers = [str(times[0].tzinfo), "UTC"]
        self.stdout.write(tabulate(rows, headers=headers, disable_numparse=True))

    def _run(self, options: dict[str, Any]) -> None:
        name = options["name"]
        try:
            message_id = run_now(name, tenant=options["tenant"])
        except (UnknownSchedule, Error):
            raise
        except Exception as error:
            text = " ".join(described(error).split())
            msg = f"{name} could not be run. {type(error).__name__}: {text}"
            raise CommandError(msg) from error
        if message_id is None:
            msg = f"{name} sent nothing: an interceptor has stopped its command."
            raise CommandError(msg)
        self.stdout.write(f"Sent {message_id} for {name}.")

    def _pause(self, options: dict[str, Any]) -> None:
        self._ensure_declared(options)
        for name in dict.fromkeys(options["names"]):
            is_new = pause(name, **_where(options), by=_user())
            text = "Paused" if is_new else "Already paused:"
            self.stdout.write(f"{text} {name}.")

    def _resume(self, options: dict[str, Any]) -> None:
        self._ensure_declared(options)
        for name in dict.fromkeys(options["names"]):
            is_new = resume(name, **_where(options))
            text = "Resumed" if is_new else "Not paused:"
            self.stdout.write(f"{text} {name}.")

    def _ensure_declared(self, options: dict[str, Any]) -> None:
        """Refuse an unknown name before anything is changed."""
        for name in options["names"]:
            next_times(name, 0, tenant=options["tenant"])

    def _write_json(self, document: dict[str, Any]) -> None:
        self.stdout.write(json.dumps({"version": JSON_VERSION, **document}, indent=2))


_OF_TENANT: Final = "The tenant, for a schedule that fires for each tenant."


def _where(options: dict[str, Any]) -> dict[str, Any]:
    return {"using": options["database"], "tenant": options["tenant"]}


def _said(error: Error) -> str:
    text = " ".join(described(error).split())
    return (
        f"The schedules cannot be read or changed ({text}). If a table is missing, run "
        "python manage.py migrate."
    )


def _state(status: ScheduleStatus) -> str:
    """Return the state for people: who has paused it, and how often it failed."""
    text = str(status.state)
    if status.state is ScheduleState.PAUSED and status.paused_by:
        text = f"paused by {status.paused_by}"
    return f"{text}, {status.failures} failed" if status.failures else text


def _time(moment: datetime | None) -> str:
    """Return a time with its offset; empty without one."""
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S%z}"


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _as_json(status: ScheduleStatus) -> dict[str, Any]:
    """Return a schedule for a program: times in ISO 8601, with their offsets."""
    found = dataclasses.asdict(status)
    found["next"] = [_stamp(each) for each in found.pop("next_times")]
    for name in ("due_at", "fired_at", "failed_at", "paused_at", "vanished_at"):
        found[name] = _stamp(found[name])
    found["state"] = str(status.state)
    found["message_id"] = None if status.message_id is None else str(status.message_id)
    return found


def _user() -> str:
    """Return the name of the operating system's user, if it has one."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""

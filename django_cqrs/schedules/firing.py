"""
Fire a schedule: move its next time and store its command, in one transaction.

Whoever finds a schedule due changes its next time from what was seen. So one of many
workers fires, and a worker that is killed meanwhile has fired nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, InterfaceError, OperationalError, transaction
from django.db.models import F

from django_cqrs.buses.bus import converted_payload
from django_cqrs.buses.registries import Registry
from django_cqrs.channels.aliases import channels
from django_cqrs.logged_errors import described, loggable
from django_cqrs.messages import Message, SentMessage, current
from django_cqrs.pipeline.tenancy import tenant
from django_cqrs.schedules.declared import DeclaredSchedule, call, is_enabled
from django_cqrs.schedules.models import Schedule
from django_cqrs.schedules.planning import MOST, Firing, plan_of
from django_cqrs.times import TimeFromNow

logger: Final = logging.getLogger("django_cqrs.schedules")

LONGEST_ERROR: Final = 1000
"""The maximum number of characters that are kept of an error."""

_OUTAGES: Final = (OperationalError, InterfaceError)


class _FunctionFailed(Exception):
    """A function of the schedule has raised its cause."""


class Firer:
    """Fires the schedules of one registry in one database."""

    def __init__(
        self,
        registry: Registry,
        using: str = DEFAULT_DB_ALIAS,
        *,
        report: Callable[[Exception], None] | None = None,
    ) -> None:
        """
        Fire schedules.

        Args:
            registry: whose command bus sends the commands.
            using: the alias of the database with the rows of the schedules.
            report: called with the exception of each firing that failed, after it was
                noted in the row.

        """
        self._registry = registry
        self._using = using
        self._report = report

    def fire_due(
        self, schedule: DeclaredSchedule, row: Schedule, now: datetime
    ) -> datetime | None:
        """
        Send the commands that are due, each in a transaction of its own.

        Args:
            schedule: the schedule.
            row: its row, as it was seen; it is not paused.
            now: the present time, by the clock of the database.

        Returns:
            The next time; None if there is none, or if another process knows it.

        Raises:
            Error: the database is unavailable. What was not committed is still due.

        """
        with _tenant_of(schedule):
            return self._fire_due(schedule, row, now)

    def _fire_due(
        self, schedule: DeclaredSchedule, row: Schedule, now: datetime
    ) -> datetime | None:
        seen = row.next_at
        assert seen is not None  # noqa: S101 - it is due
        plan = plan_of(schedule, seen, now)
        if plan.is_cut:
            logger.warning(
                "Schedule %s has missed more than %s times; the oldest are dropped",
                _title(schedule),
                f"{MOST:,}",
            )
        if not plan.firings and not self._move(schedule, row, plan.next_at):
            return None
        shift = schedule.shift
        for number, firing in enumerate(plan.firings, 1):
            is_last = number == len(plan.firings)
            upcoming = plan.next_at
            if not is_last:
                upcoming = plan.firings[number].due + shift
            if not self._fire(schedule, row, firing, upcoming):
                return None
        return plan.next_at

    def recount(self, schedule: DeclaredSchedule, row: Schedule) -> datetime | None:
        """Find the next time of a schedule that was resumed, and store it."""
        counted_from = row.counted_from
        assert counted_from is not None  # noqa: S101 - it is to be counted from then
        next_at = schedule.next_after(counted_from)
        rows = Schedule.objects.using(self._using)
        own = rows.filter(pk=row.pk, counted_from=counted_from, is_paused=False)
        changed = own.update(
            next_at=next_at, counted_from=None, fingerprint=schedule.fingerprint
        )
        return next_at if changed else None

    def run_now(self, schedule: DeclaredSchedule, now: datetime) -> UUID | None:
        """
        Send one command now; no due time changes.

        Args:
            schedule: the schedule.
            now: the present time, which is the due time of the command.

        Returns:
            The id of the message; None if an interceptor has stopped it.

        Raises:
            Exception: the exception of a function of the schedule, or of the sending,
                unchanged. Nothing was sent.

        """
        with _tenant_of(schedule), transaction.atomic(using=self._using):
            rows = Schedule.objects.using(self._using)
            # For a schedule that no worker has seen; it counts from its own code.
            new = Schedule(name=schedule.name, tenant=schedule.tenant)
            rows.bulk_create([new], ignore_conflicts=True)
            row = rows.select_for_update().get(
                name=schedule.name, tenant=schedule.tenant
            )
            firing = Firing(now)
            message = self._message(schedule, firing, wraps=False)
            sent = self._send(schedule, message)
            if sent is not None:
                self._note(row, self._open(schedule, row), sent, firing)
        return sent

    def _fire(
        self,
        schedule: DeclaredSchedule,
        row: Schedule,
        firing: Firing,
        upcoming: datetime | None,
    ) -> bool:
        """Send one command; return whether no other process did."""
        try:
            with transaction.atomic(using=self._using):
                if not self._move(schedule, row, upcoming, failures=0, error=""):
                    return False
                self._send_due(schedule, row, firing)
        except _OUTAGES:
            raise
        except Exception as error:  # noqa: BLE001 - it is noted
            cause = error.__cause__ if isinstance(error, _FunctionFailed) else error
            failure = cause if isinstance(cause, Exception) else error
            if not self._fail(schedule, row, upcoming, failure):
                return False
            if self._report is not None:
                self._report(failure)
        row.next_at, row.fingerprint = upcoming, schedule.fingerprint
        return True

    def _fail(
        self,
        schedule: DeclaredSchedule,
        row: Schedule,
        upcoming: datetime | None,
        error: BaseException,
    ) -> bool:
        """Note a failure, and move on; return whether no other process did."""
        said = f"{type(error).__name__}: {' '.join(described(error).split())}"
        moved = self._move(
            schedule,
            row,
            upcoming,
            failures=F("failures") + 1,
            failed_at=TimeFromNow(),
            error=said[:LONGEST_ERROR],
        )
        if moved:
            logger.error(
                "Schedule %s could not send its command",
                _title(schedule),
                exc_info=loggable(error),
            )
        return moved

    def _move(
        self,
        schedule: DeclaredSchedule,
        row: Schedule,
        upcoming: datetime | None,
        **values: Any,
    ) -> bool:
        """Change the next time if it is the one seen; return whether it was."""
        rows = Schedule.objects.using(self._using).filter(
            pk=row.pk,
            next_at=row.next_at,
            fingerprint=row.fingerprint,
            counted_from=None,
            is_paused=False,
        )
        moved = rows.update(
            next_at=upcoming,
            fingerprint=schedule.fingerprint,
            vanished_at=None,
            **values,
        )
        return moved == 1

    def _send_due(
        self, schedule: DeclaredSchedule, row: Schedule, firing: Firing
    ) -> None:
        try:
            if not is_enabled(schedule):
                return
        except Exception as error:
            raise _FunctionFailed from error
        message = self._message(schedule, firing)
        waiting: list[UUID] = []
        if schedule.options.overlap == "skip":
            waiting = self._open(schedule, row)
            if waiting:
                self._skip(schedule, message)
                return
        sent = self._send(schedule, message)
        if sent is not None:
            self._note(row, waiting, sent, firing)

    def _message(
        self, schedule: DeclaredSchedule, firing: Firing, *, wraps: bool = True
    ) -> Message:
        """
        Return the command of a firing.

        Args:
            schedule: the schedule.
            firing: the firing.
            wraps: whether an exception of its functions becomes the cause of another.

        Raises:
            _FunctionFailed: one of its functions has raised its cause.

        """
        options, endpoint = schedule.options, schedule.endpoint
        due = firing.due.astimezone(schedule.timetable.zone)
        try:
            payload = call(options.payload, due)
            headers: Mapping[str, Any] | None = call(options.headers, due)
        except Exception as error:
            if not wraps:
                raise
            raise _FunctionFailed from error
        payload = converted_payload(endpoint, payload, None)
        message = Message(payload, current.get())
        if headers:
            message._add_headers(headers)
        message._aggregate = {
            "schedule_name": schedule.name,
            "schedule_due_at": due,
            "schedule_missed": firing.missed,
        }
        return message

    def _send(self, schedule: DeclaredSchedule, message: Message) -> UUID | None:
        """Send a command; return the id of its message, None if it was stopped."""
        bus = self._registry.command_bus
        stored: list[SentMessage] = []
        message.handling.stored = stored
        bus.run_for(schedule.endpoint, message.payload, None)(message)
        return stored[-1].message_id if stored else None

    def _skip(self, schedule: DeclaredSchedule, message: Message) -> None:
        logger.info(
            "Schedule %s sends no command: an earlier one is not handled yet",
            _title(schedule),
        )
        self._registry.command_bus._outlet(schedule.endpoint).skip(message)

    def _open(self, schedule: DeclaredSchedule, row: Schedule) -> list[UUID]:
        """Return the messages of a schedule that wait or are being handled, by id."""
        if schedule.options.overlap != "skip":
            return []
        kept = Schedule.objects.using(self._using).filter(pk=row.pk)
        texts: list[str] = kept.values_list("open_messages", flat=True)[0]
        ids = [UUID(text) for text in texts]
        channel = channels[schedule.channel]
        found = channel.waiting_among(self._using, ids) if ids else set()
        return [each for each in ids if each in found]

    def _note(
        self, row: Schedule, waiting: list[UUID], sent: UUID, firing: Firing
    ) -> None:
        """Note the last message of a schedule."""
        rows = Schedule.objects.using(self._using).filter(pk=row.pk)
        rows.update(
            message_id=sent,
            due_at=firing.due,
            fired_at=TimeFromNow(),
            open_messages=[str(each) for each in (*waiting, sent)],
        )


def _tenant_of(schedule: DeclaredSchedule) -> AbstractContextManager[None]:
    """Return a block in which the tenant of a schedule is active, if it has one."""
    return tenant(schedule.tenant) if schedule.tenant else nullcontext()


def _title(schedule: DeclaredSchedule) -> str:
    """Return the name of a schedule, and whose it is, for the log."""
    if schedule.tenant:
        return f"{schedule.name} of tenant {schedule.tenant!r}"
    return schedule.name

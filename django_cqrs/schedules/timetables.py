"""Timetables: the due times of a schedule, by a cron expression or an interval."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.conf import settings

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

NAMES: Final = {
    "@HOURLY": "0 * * * *",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@WEEKLY": "0 0 * * 0",
    "@MONTHLY": "0 0 1 * *",
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
}

_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)


class Timetable(ABC):
    """The due times of a schedule."""

    @property
    @abstractmethod
    def zone(self) -> tzinfo:
        """The time zone in which its times are shown."""

    @property
    @abstractmethod
    def fault(self) -> str | None:
        """The reason why it has no times, as a sentence; None if it has some."""

    @property
    @abstractmethod
    def text(self) -> str:
        """A text that differs for timetables with different times."""

    @abstractmethod
    def after(self, moment: datetime, starts: datetime | None) -> Iterator[datetime]:
        """
        Yield the times after a moment, in order, in UTC.

        The arithmetic of datetimes in other zones goes by the clock on the wall.

        Args:
            moment: an aware datetime.
            starts: the time from which an interval is counted; by default the epoch.

        """


@dataclasses.dataclass(frozen=True, slots=True)
class Cron(Timetable):
    """The times of a cron expression. :func:`cron` returns it."""

    expression: str
    timezone: str | tzinfo | None = None

    @property
    def zone(self) -> tzinfo:
        """The time zone in which the expression is meant."""
        found = settings.TIME_ZONE if self.timezone is None else self.timezone
        return ZoneInfo(found) if isinstance(found, str) else found

    def __str__(self) -> str:
        """Return the expression."""
        return f"{self.expression}"

    @property
    def fields(self) -> str:
        """The expression as cronsim reads it, with six fields."""
        text = " ".join(self.expression.upper().split())
        text = NAMES.get(text, text)
        return text if len(text.split()) != _FIELDS - 1 else f"0 {text}"

    @property
    def text(self) -> str:
        return f"cron {self.fields} {self.zone}"

    @property
    def fault(self) -> str | None:
        try:
            import cronsim
        except ImportError:
            return (
                "Cron expressions need the package cronsim: install "
                "django-cqrs-kit[schedules]."
            )
        if not isinstance(self.expression, str):
            return f"{self.expression!r} is not a cron expression: it is not a string."
        zone = self.timezone
        if not (zone is None or isinstance(zone, (str, tzinfo))):
            return f"timezone={zone!r} is not the name of a time zone."
        try:
            self.zone  # noqa: B018 - it is looked for now
        except (ZoneInfoNotFoundError, ValueError, OSError):
            named = settings.TIME_ZONE if zone is None else zone
            return f"There is no time zone {named!r}."
        try:
            first = next(self._local_times(EPOCH.replace(tzinfo=None)), None)
        except cronsim.CronSimError as error:
            reason = str(error)
            reason = f"{reason[:1].lower()}{reason[1:]}"
            return f"{self.expression!r} is not a cron expression: {reason}."
        if first is None:
            return f"{self.expression!r} never comes in fifty years."
        return None

    @property
    def is_fixed(self) -> bool:
        """
        Whether it names hours and minutes, so that each of its times comes once a day.

        Otherwise it repeats within an hour or from hour to hour, and goes by elapsed
        time. Debian's cron makes the same distinction.
        """
        _, minute, hour, *_ = self.fields.split()
        return not minute.startswith("*") and not hour.startswith("*")

    def after(
        self, moment: datetime, starts: datetime | None = None
    ) -> Iterator[datetime]:
        """Yield the times after a moment; whether a schedule has started is not its."""
        return self._fixed(moment) if self.is_fixed else self._elapsing(moment)

    def _local_times(self, local: datetime) -> Iterator[datetime]:
        """Yield the matching times on the wall after one, whatever the zone."""
        from cronsim import CronSim

        return CronSim(self.fields, local)

    def _fixed(self, moment: datetime) -> Iterator[datetime]:
        """
        Yield fixed times: one that the clock skips comes right after its change.

        One that comes twice comes the first time.
        """
        zone = self.zone
        last = moment.astimezone(UTC)
        for local in self._local_times(moment.astimezone(zone).replace(tzinfo=None)):
            found = _first_moment(local, zone)
            if found > last:
                yield found
                last = found

    def _elapsing(self, moment: datetime) -> Iterator[datetime]:
        """Yield every moment at which the clock on the wall matches."""
        zone = self.zone
        seen = moment.astimezone(UTC).replace(microsecond=0)
        offset = _offset(seen, zone)
        local = _wall(seen, offset)
        while True:
            change = None
            for matching in self._local_times(local):
                found = matching.replace(tzinfo=UTC) - offset
                change = _change_between(seen, found, zone)
                if change is not None:
                    break
                seen = found
                yield found
            if change is None:
                return
            # From the change on, the clock shows other times.
            seen, offset = change, _offset(change, zone)
            local = _wall(seen, offset) - _SECOND


@dataclasses.dataclass(frozen=True, slots=True)
class Every(Timetable):
    """The times of an interval. :func:`every` returns it."""

    weeks: float = 0
    days: float = 0
    hours: float = 0
    minutes: float = 0
    seconds: float = 0

    @property
    def span(self) -> timedelta:
        """
        The interval.

        Raises:
            TypeError: an argument is not a number.
            ValueError: an argument is not finite.
            OverflowError: it is too long.

        """
        return timedelta(**dataclasses.asdict(self))

    def __str__(self) -> str:
        """Return the interval in words."""
        parts = [
            f"{value} {name if value != 1 else name.removesuffix('s')}"
            for name, value in dataclasses.asdict(self).items()
            if value != 0
        ]
        return f"every {' '.join(parts)}"

    @property
    def zone(self) -> tzinfo:
        """The time zone of the project, in which its times are shown."""
        return ZoneInfo(settings.TIME_ZONE)

    @property
    def text(self) -> str:
        return f"every {self.span.total_seconds():.6f}"

    @property
    def fault(self) -> str | None:
        given = ", ".join(
            f"{name}={value!r}"
            for name, value in dataclasses.asdict(self).items()
            if value != 0
        )
        try:
            span = self.span
        except (TypeError, ValueError):
            return f"every({given}) is not a valid time."
        except OverflowError:
            span = timedelta.max
        if span < _SECOND:
            return f"every({given}) is shorter than a second."
        if span > _LONGEST:
            return f"every({given}) is longer than a hundred years."
        return None

    def after(
        self, moment: datetime, starts: datetime | None = None
    ) -> Iterator[datetime]:
        """Yield the times after a moment, counted from the epoch, or from a start."""
        span = self.span
        begin = EPOCH if starts is None else starts.astimezone(UTC)
        found = begin + ((moment - begin) // span + 1) * span
        while True:
            yield found
            found += span


def cron(expression: str, *, timezone: str | tzinfo | None = None) -> Cron:
    """
    Return the timetable of a cron expression.

    A time that the clock of the zone skips comes right after its change, and a time
    that comes twice comes once. ``*`` and ``*/n`` as the minute or the hour go by
    elapsed time.

    Args:
        expression: five fields (minute, hour, day of the month, month, day of the
            week), or six with the seconds first; or ``@hourly``, ``@daily``,
            ``@weekly``, ``@monthly`` or ``@yearly``. Names, ``L`` and ``#`` are
            allowed: ``"0 8 * * MON#1"``.
        timezone: the time zone, or its name; by default ``TIME_ZONE``.

    """
    return Cron(expression, timezone)


def every(
    *,
    weeks: float = 0,
    days: float = 0,
    hours: float = 0,
    minutes: float = 0,
    seconds: float = 0,
) -> Every:
    """
    Return the timetable of an interval, which is the sum of the arguments.

    It is counted from the epoch, or from the `starts=` of the schedule: every hour
    means each full hour of UTC, whenever the process was started.

    Args:
        weeks: a number of weeks.
        days: a number of days, of 24 hours each.
        hours: a number of hours.
        minutes: a number of minutes.
        seconds: a number of seconds.

    """
    return Every(weeks, days, hours, minutes, seconds)


_LONGEST: Final = timedelta(days=36_525)
_FIELDS: Final = 6


def _wall(moment: datetime, offset: timedelta) -> datetime:
    """Return the time on the wall at a moment in UTC."""
    return (moment + offset).replace(tzinfo=None)


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _first_moment(local: datetime, zone: tzinfo) -> datetime:
    """Return the first moment of a time on the wall, or that after its gap."""
    first = local.replace(tzinfo=zone, fold=0)
    back = first.astimezone(UTC).astimezone(zone)
    if back.replace(tzinfo=None) == local:
        return first.astimezone(UTC)
    # The clock skips it. Its change is between the moments of both offsets.
    early = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    late = first.astimezone(UTC)
    return _change(early, late, zone)


def _change(early: datetime, late: datetime, zone: tzinfo) -> datetime:
    """Return the moment of the change of the offset between two others."""
    before = _offset(early, zone)
    while late - early > _SECOND:
        middle = early + timedelta(seconds=(late - early) // _SECOND // 2)
        if _offset(middle, zone) == before:
            early = middle
        else:
            late = middle
    return late


def _change_between(early: datetime, late: datetime, zone: tzinfo) -> datetime | None:
    """Return the first change of the offset between two moments, None without one."""
    before = _offset(early, zone)
    while early < late:
        later = min(early + _DAY, late)
        if _offset(later, zone) != before:
            return _change(early, later, zone)
        early = later
    return None

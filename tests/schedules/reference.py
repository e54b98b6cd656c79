"""A plain reference of cron: minute by minute, with no calendar but Python's."""

from __future__ import annotations

from datetime import UTC, timedelta

MINUTE = timedelta(minutes=1)
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def matcher(expression):
    """Return a function that tells whether a time on the wall matches."""
    texts = expression.split()
    sets = [_values(text, *bounds) for text, bounds in zip(texts, RANGES, strict=True)]
    minutes, hours, days, months, weekdays = sets
    weekdays = {each % 7 for each in weekdays}
    both = texts[2].startswith("*") or texts[4].startswith("*")

    def matches(local):
        of_month = local.day in days
        of_week = (local.weekday() + 1) % 7 in weekdays
        return (
            local.minute in minutes
            and local.hour in hours
            and local.month in months
            and ((of_month and of_week) if both else (of_month or of_week))
        )

    return matches


def _values(text, first, last):
    found = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        if span == "*":
            begin, end = first, last
        else:
            begin, _, end = span.partition("-")
            begin = DAYS.index(begin) if begin in DAYS else int(begin)
            end = (DAYS.index(end) if end in DAYS else int(end)) if end else begin
        found |= set(range(begin, end + 1, int(step or 1)))
    return found


def times(expression, zone, start, end):
    """
    Return the moments after `start` and up to `end` at which an expression is due.

    One that names minutes and hours is due once for each time on the wall: at the first
    of two, and at the moment after the change for those that the clock skips. Any other
    is due whenever the clock on the wall matches.
    """
    matches = matcher(expression)
    minute, hour, *_ = expression.split()
    is_fixed = not minute.startswith("*") and not hour.startswith("*")
    found = []
    moment = start.astimezone(UTC)
    before = moment.astimezone(zone)
    while moment < end:
        moment += MINUTE
        local = moment.astimezone(zone)
        is_due = matches(local)
        if is_fixed:
            is_due = is_due and local.fold == 0
            skipped = before.replace(tzinfo=None, fold=0) + MINUTE
            while skipped < local.replace(tzinfo=None, fold=0):
                is_due = is_due or matches(skipped)
                skipped += MINUTE
        if is_due:
            found.append(moment)
        before = local
    return found

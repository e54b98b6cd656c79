"""The due times of cron expressions and intervals, in every zone."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo, available_timezones

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import settings as examples_of
from hypothesis import strategies as st

from django_cqrs.schedules import cron, every
from tests.outbox.support import SOAKS
from tests.schedules import reference

BERLIN = ZoneInfo("Europe/Berlin")
LONG_NIGHT = datetime(2026, 10, 25)  # noqa: DTZ001 - a date of several zones
SHORT_NIGHT = datetime(2026, 3, 29)  # noqa: DTZ001


def on(night, expression, zone=BERLIN, hours=6):
    """Return the times of a night, as on the clock of the wall with its offset."""
    start = night.replace(tzinfo=zone) - timedelta(minutes=1)
    end = night.replace(tzinfo=zone, hour=hours)
    found = times(expression, zone, start, end)
    return [
        each.astimezone(zone).isoformat()[11:16]
        + each.astimezone(zone).isoformat()[19:]
        for each in found
    ]


def times(expression, zone, start, end):
    """Return the times after a moment and up to another one."""
    found = cron(expression, timezone=zone).after(start)
    return list(takewhile(lambda each: each <= end, found))


# What a night does -----------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["", "0 "])
def test_s05_1_a_time_that_the_clock_skips_comes_right_after_the_change(seconds):
    """`30 2 * * *` on the short night: once, at the moment after the change. [S05.1]"""
    assert on(SHORT_NIGHT, f"{seconds}30 2 * * *") == ["03:00+02:00"]


@pytest.mark.parametrize("seconds", ["", "0 "])
def test_s05_2_a_time_that_comes_twice_comes_the_first_time(seconds):
    """`30 2 * * *` on the long night: once, the first time. [S05.2]"""
    assert on(LONG_NIGHT, f"{seconds}30 2 * * *") == ["02:30+02:00"]


def test_s05_3_stars_go_by_elapsed_time():
    """`0 * * * *` and `*/30 * * * *` on both nights: every real hour and half-hour once. [S05.3]"""
    for expression, step in (("0 * * * *", 60), ("*/30 * * * *", 30)):
        for night in (LONG_NIGHT, SHORT_NIGHT):
            start = night.replace(tzinfo=BERLIN).astimezone(UTC)
            found = times(expression, BERLIN, start, start + timedelta(hours=5))
            count = 5 * 60 // step
            assert [each.astimezone(UTC) for each in found] == [
                start + timedelta(minutes=step * number)
                for number in range(1, count + 1)
            ]


def test_s05_4_hours_in_a_range_come_once_each():
    """`0 2-4 * * *`: three on the long night; on the short one two, since two fall on one moment. [S05.4]"""
    assert on(LONG_NIGHT, "0 2-4 * * *") == [
        "02:00+02:00",
        "03:00+01:00",
        "04:00+01:00",
    ]
    assert on(SHORT_NIGHT, "0 2-4 * * *") == ["03:00+02:00", "04:00+02:00"]


def test_a_change_of_half_an_hour():
    """In Lord Howe the clock goes from 2:00 to 1:30, and back from 2:00 to 2:30. [S05.1, S05.2, S05.3]"""
    zone = ZoneInfo("Australia/Lord_Howe")
    long, short = (
        LONG_NIGHT.replace(month=4, day=5),
        LONG_NIGHT.replace(month=10, day=4),
    )

    assert on(long, "45 1 * * *", zone) == ["01:45+11:00"]
    assert on(short, "10,40 2 * * *", zone) == ["02:30+11:00", "02:40+11:00"]
    # Twice within half an hour, since each is on the clock of the wall.
    assert on(long, "45 * * * *", zone, 3) == [
        *("00:45+11:00", "01:45+11:00", "01:45+10:30", "02:45+10:30"),
    ]
    assert on(long, "5 */2 * * *", zone, 5) == [
        *("00:05+11:00", "02:05+10:30", "04:05+10:30"),
    ]


def test_every_second_of_a_time_that_is_skipped_comes_at_once():
    """They fall on one moment, which comes once. [S05.1]"""
    assert on(SHORT_NIGHT, "*/10 30 2 * * *") == ["03:00+02:00"]


def test_the_moment_after_the_change_has_no_seconds_of_its_own():
    """With seconds in the expression it is the change all the same. [S05.1]"""
    [found] = times(
        "15 30 2 29 3 *",
        BERLIN,
        datetime(2026, 3, 1, tzinfo=UTC),
        datetime(2026, 4, 1, tzinfo=UTC),
    )

    assert found == datetime(2026, 3, 29, 1, tzinfo=UTC)


# Against references ----------------------------------------------------------------

ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
]
EXPRESSIONS = [
    *("30 2 * * *", "0 * * * *", "*/30 * * * *", "0 2-4 * * *", "45 * * * *"),
    *("*/7 1-3 * * *", "5 */2 * * *", "15,45 0-3 * * SUN", "* 2 * * *", "0 0 1 * *"),
    *("30 1,2 * 3,4,10,11 *", "59 23 * * *", "*/20 */3 1-7 * MON", "10 3 13 * FRI"),
]

numbers = st.integers(0, 59)
MINUTES = st.one_of(
    st.just("*"),
    st.sampled_from(["*/5", "*/7", "*/30", "0-10/3"]),
    st.lists(numbers, min_size=1, max_size=3).map(lambda n: ",".join(map(str, n))),
)
HOURS = st.one_of(
    st.just("*"),
    st.sampled_from(["*/2", "*/3", "0-4", "1-3", "22-23"]),
    st.lists(st.integers(0, 23), min_size=1, max_size=3).map(
        lambda n: ",".join(map(str, n))
    ),
)
DAYS = st.sampled_from(["*", "*/2", "1-7", "25-31", "1,15"])
WEEKDAYS = st.sampled_from(["*", "SUN", "1-5", "7", "*/3"])


def changes_of(zone, year):
    """Return the days of a year on which the offset of a zone changes."""
    start = datetime(year, 1, 1, tzinfo=UTC)
    days = [start + timedelta(days=number) for number in range(366)]
    offsets = [day.astimezone(zone).utcoffset() for day in days]
    return [
        day
        for day, one, other in zip(days, offsets, offsets[1:], strict=False)
        if one != other
    ]


def periods(zone):
    """Return what is compared of a year: all of it, or the days around its changes."""
    if SOAKS:
        start = datetime(2026, 1, 1, tzinfo=UTC)
        return [(start, start + timedelta(days=365))]
    found = changes_of(zone, 2026) or [datetime(2026, 6, 1, tzinfo=UTC)]
    return [(day - timedelta(hours=12), day + timedelta(days=1.5)) for day in found]


@pytest.mark.parametrize("zone", ZONES)
def test_s05_5_times_are_those_of_a_plain_reference(zone):
    """Minute by minute, for every expression of a table. [S05.5]"""
    zone = ZoneInfo(zone)
    for expression in EXPRESSIONS:
        for start, end in periods(zone):
            assert times(expression, zone, start, end) == reference.times(
                expression, zone, start, end
            ), expression


@pytest.mark.long
@examples_of(max_examples=500 if SOAKS else 15)
@given(
    zone=st.sampled_from(sorted(available_timezones() - {"localtime"})),
    fields=st.tuples(MINUTES, HOURS, DAYS, st.just("*"), WEEKDAYS),
)
def test_s05_5_drawn_expressions_are_those_of_the_reference(zone, fields):
    """In any zone of the system. [S05.5]"""
    zone, expression = ZoneInfo(zone), " ".join(fields)
    for start, end in periods(zone):
        assert times(expression, zone, start, end) == reference.times(
            expression, zone, start, end
        )


def zones_alike(years):
    """Return one zone of each group whose offsets are the same in some years."""
    groups = defaultdict(list)
    start = datetime(years[0], 1, 1, tzinfo=UTC)
    moments = [start + timedelta(days=number) for number in range(366 * len(years))]
    for name in sorted(available_timezones() - {"localtime"}):
        zone = ZoneInfo(name)
        groups[tuple(each.astimezone(zone).utcoffset() for each in moments)].append(
            name
        )
    return [names[0] for names in groups.values()]


# These change by other times than an hour, or on the half of one: cronsim then jumps over
# some times of the clock on the wall; see findings/cronsim-jumps.py.
JUMPS = {"Antarctica/Troll", "Australia/LHI", "Australia/Lord_Howe"}


@pytest.mark.long
def test_every_zone_has_the_times_of_cronsim(say):
    """Over two years, for each zone of the system whose changes differ. [S05.5]"""
    zones = zones_alike([2026, 2027])
    compared = zones if SOAKS else zones[:: max(1, len(zones) // 3)]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = datetime(2028, 1, 1, tzinfo=UTC)
    for name in compared:
        zone = ZoneInfo(name)
        for expression in (
            "30 2 * * *",
            "0 0-4 * * *",
            "15 */6 * * SUN",
            "*/30 0-3 * * *",
        ):
            if name in JUMPS and expression.startswith(("*", "15 *")):
                continue
            theirs = takewhile(
                lambda each: each <= end, CronSim(expression, start.astimezone(zone))
            )
            assert times(expression, zone, start, end) == [
                each.astimezone(UTC) for each in theirs
            ], (
                name,
                expression,
            )
    say(f"{len(compared)} of {len(zones)} zones that differ in two years")


# Forms ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
    ],
)
def test_names_stand_for_expressions(name, fields):
    """As cron has them."""
    start = datetime(2026, 1, 15, tzinfo=UTC)
    some = [list(islice(cron(each).after(start), 3)) for each in (name, fields)]

    assert some[0] == some[1]


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("0 8 * * MON#1", "2026-02-02T08:00"),
        ("0 8 L * *", "2026-01-31T08:00"),
        ("0 8 * * FRIL", None),
        ("30 15 10 * * *", "2026-01-15T10:15:30"),
        ("0 12 * jan mon-fri", "2026-01-15T12:00"),
    ],
)
def test_what_an_expression_may_have(expression, first):
    """Seconds, names in any case, the last day, and the nth weekday."""
    timetable = cron(expression)
    if first is None:
        assert (
            timetable.fault
            == f"{expression!r} is not a cron expression: bad day-of-week."
        )
        return
    found = next(timetable.after(datetime(2026, 1, 15, tzinfo=UTC)))

    assert found.isoformat().startswith(first)


def test_s05_6_the_zone_is_that_of_the_project(settings):
    """Without timezone=, an expression is meant in TIME_ZONE. [S05.6]"""
    settings.TIME_ZONE = "America/New_York"
    found = next(cron("0 9 * * *").after(datetime(2026, 1, 1, tzinfo=UTC)))

    assert found == datetime(2026, 1, 1, 14, tzinfo=UTC)
    assert cron("0 9 * * *").zone == ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("timetable", "fault"),
    [
        (
            cron("every day"),
            "'every day' is not a cron expression: wrong number of fields.",
        ),
        (cron("0 25 * * *"), "'0 25 * * *' is not a cron expression: bad hour."),
        (
            cron("0 0 31 2 *"),
            "'0 0 31 2 *' is not a cron expression: bad day-of-month.",
        ),
        (cron("0 0 30 2 1"), None),
        (cron(""), "'' is not a cron expression: wrong number of fields."),
        (cron(5), "5 is not a cron expression: it is not a string."),
        (
            cron("@reboot"),
            "'@reboot' is not a cron expression: wrong number of fields.",
        ),
        (
            cron("0 0 * * *", timezone="Europe/Nowhere"),
            "There is no time zone 'Europe/Nowhere'.",
        ),
        (cron("0 0 * * *", timezone="../etc"), "There is no time zone '../etc'."),
        (cron("0 0 * * *", timezone=""), "There is no time zone ''."),
        (cron("0 0 * * *", timezone=1), "timezone=1 is not the name of a time zone."),
        (cron("0 0 * * *", timezone=UTC), None),
        (every(minutes=5), None),
        (every(), "every() is shorter than a second."),
        (every(seconds=0.5), "every(seconds=0.5) is shorter than a second."),
        (every(minutes=-5), "every(minutes=-5) is shorter than a second."),
        (every(hours="1"), "every(hours='1') is not a valid time."),
        (every(days=float("nan")), "every(days=nan) is not a valid time."),
        (every(weeks=10**9), "every(weeks=1000000000) is longer than a hundred years."),
        (every(weeks=10**20), f"every(weeks={10**20}) is longer than a hundred years."),
    ],
    ids=str,
)
def test_s05_7_what_has_no_times_says_why(timetable, fault):
    """An expression, a zone that tzdata does not know, an interval. [S05.7]"""
    assert timetable.fault == fault


def test_an_interval_is_counted_from_the_epoch_or_a_start():
    """Not from the start of a process. [S01.5]"""
    timetable = every(minutes=5)
    moment = datetime(2026, 7, 1, 12, 4, tzinfo=UTC)

    assert next(timetable.after(moment, None)) == moment.replace(minute=5)
    assert next(timetable.after(moment.replace(minute=5), None)) == moment.replace(
        minute=10
    )
    start = moment.replace(minute=1)
    assert list(islice(timetable.after(moment, start), 2)) == [
        moment.replace(minute=6),
        moment.replace(minute=11),
    ]


def test_an_interval_goes_by_elapsed_time():
    """A day has 24 hours, whatever the clock on the wall does."""
    start = datetime(2026, 10, 24, 12, tzinfo=BERLIN)
    found = list(islice(every(days=1).after(start.astimezone(UTC), start), 2))

    assert [each - start.astimezone(UTC) for each in found] == [
        timedelta(hours=24),
        timedelta(hours=48),
    ]

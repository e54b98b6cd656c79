"""What a schedule may be given, and what the checks say of the rest."""

from datetime import UTC, datetime, timedelta

import pytest

from django_cqrs import Registry, command_handler, event_handler, query_handler
from django_cqrs.checks import check_registry
from django_cqrs.schedules import cron, every, scheduled
from django_cqrs.schedules.declared import declared_in
from tests.schedules.support import Purge

HOURLY = every(hours=1)


def faults_in(*handlers):
    """Return the ids and texts of what is wrong; then no worker fires it."""
    registry = Registry()
    for each in handlers:
        registry.add(each)
    found = check_registry(registry)
    assert all(each.hint for each in found)
    return registry, [(each.id.partition(".")[2], each.msg) for each in found]


def faults_of(*, timetable=HOURLY, handler=None, **options):
    def tick(): ...

    handler = handler or command_handler("tick", name="tick", channel="outbox")(tick)
    registry, found = faults_in(scheduled(timetable, **options)(handler))
    assert bool(found) is (declared_in(registry) == {})
    return [(number, text.partition("tick ")[2]) for number, text in found]


# E060 -------------------------------------------------------------------------------


def test_E060_s01_7_a_schedule_needs_a_command_handler():
    """E060: nobody sends an event or a query at a time. [S01.7]"""

    @scheduled(HOURLY)
    @event_handler("tick", channel="outbox")
    def tick(): ...

    @scheduled(HOURLY)
    @query_handler("tock")
    def tock() -> int: ...

    _, found = faults_in(tick, tock)

    place = f"{__name__}.test_E060_s01_7_a_schedule_needs_a_command_handler.<locals>"
    assert found == [
        ("E060", f"{place}.tick has a schedule, but it handles events."),
        ("E060", f"{place}.tock has a schedule, but it handles queries."),
    ]


def test_s01_7_a_function_may_handle_an_event_beside_its_command():
    """Then the schedule is that of the command. [S01.7]"""

    @scheduled(HOURLY)
    @command_handler("tick", name="tick", channel="outbox")
    @event_handler("tick.event")
    def tick(): ...

    registry, found = faults_in(tick)

    assert found == []
    assert list(declared_in(registry)) == ["tick"]


def test_E060_s01_7_a_schedule_needs_a_channel_that_keeps():
    """E060: a worker sends the command of a schedule, so that it must be kept. [S01.7]"""

    def tick(): ...

    at_once = command_handler("tick", name="tick")(tick)
    assert faults_of(handler=at_once) == [
        (
            "E060",
            (
                "has a schedule, but it is called immediately, so that no worker would "
                "send its commands."
            ),
        )
    ]


def test_E060_s01_7_a_channel_must_keep(settings):
    """E060: what OnCommitChannel has when the process ends is lost. [S01.7]"""
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            "commit": {"BACKEND": "django_cqrs.channels.OnCommitChannel"},
            "at once": {"BACKEND": "django_cqrs.channels.ImmediateChannel"},
        }
    }

    def tick(): ...

    handler = command_handler("tick", name="tick", channel="commit")(tick)
    assert faults_of(handler=handler) == [
        (
            "E060",
            (
                "has a schedule, but the channel 'commit' (OnCommitChannel) does not "
                "keep messages."
            ),
        )
    ]

    def tick(): ...

    # For tests that replace channels.
    handler = command_handler("tick", name="tick", channel="at once")(tick)
    assert faults_of(handler=handler) == []


def test_s01_7_an_unknown_channel_is_reported_once():
    """By the check of channels; the schedule does not fire. [S01.7]"""

    def tick(): ...

    handler = command_handler("tick", name="tick", channel="nowhere")(tick)
    [(number, _)] = faults_of(handler=handler)

    assert number == "E016"


def test_E060_s01_7_the_app_must_be_installed(settings):
    """E060, once for all schedules. [S01.7]"""
    settings.INSTALLED_APPS = [
        each for each in settings.INSTALLED_APPS if each != "django_cqrs.schedules"
    ]

    def tick(): ...

    handler = command_handler("tick", name="tick", channel="outbox")(tick)
    assert faults_of(
        timetable=HOURLY, handler=scheduled(HOURLY, name="b")(handler)
    ) == [("E060", "has a schedule, but no installed app keeps schedules.")]


# E061 -------------------------------------------------------------------------------

NAIVE = datetime(2026, 7, 1)  # noqa: DTZ001
AWARE = datetime(2026, 7, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"timetable": "0 6 * * *"},
            "@scheduled takes cron(...) or every(...), not '0 6 * * *'.",
        ),
        (
            {"timetable": cron("0 6 * *")},
            "'0 6 * *' is not a cron expression: wrong number of fields.",
        ),
        (
            {"timetable": cron("0 0 31 2 *")},
            "'0 0 31 2 *' is not a cron expression: bad day-of-month.",
        ),
        (
            {"timetable": cron("@daily", timezone="Mars/Base")},
            "There is no time zone 'Mars/Base'.",
        ),
        ({"timetable": every(seconds=0)}, "every() is shorter than a second."),
        ({"name": ""}, "'' is not a name."),
        ({"name": "x" * 256}, f"{'x' * 256!r} is not a name."),
        ({"name": "tick", "aliases": [5]}, "5 is not a name."),
        ({"name": "tick", "aliases": 5}, "5 is not a name."),
        ({"missed": "none"}, "missed='none' is not possible."),
        ({"missed": []}, "missed=[] is not possible."),
        ({"overlap": True}, "overlap=True is not possible."),
        ({"grace": -1}, "grace=-1 is negative."),
        ({"grace": None}, "grace= takes seconds or a timedelta, not None."),
        ({"spread": "1h"}, "spread= takes seconds or a timedelta, not '1h'."),
        ({"starts": NAIVE}, f"starts={NAIVE!r} is not a datetime with a time zone."),
        ({"ends": "never"}, "ends='never' is not a datetime with a time zone."),
        (
            {"starts": AWARE, "ends": AWARE - timedelta(1)},
            (
                "It ends before it starts: starts=2026-07-01 00:00:00+00:00, "
                "ends=2026-06-30 00:00:00+00:00."
            ),
        ),
        ({"enabled": "yes"}, "enabled='yes' is not possible."),
        ({"enabled": None}, "enabled=None is not possible."),
        ({"headers": 5}, "headers=5 is not a dictionary."),
        (
            {"headers": {"schedule_name": "x"}},
            (
                "The header 'schedule_name' is reserved: every message has its own. "
                "Choose another name; only correlation_id may be given."
            ),
        ),
        (
            {"headers": {"x": [1]}},
            (
                "The header 'x' has a value of type list. A header's value must be a "
                "str, int, float, bool, None, UUID, Decimal, datetime or Enum."
            ),
        ),
    ],
    ids=str,
)
def test_E061_s01_7_what_a_schedule_cannot_be_given(options, fault):
    """E061: an expression, a time zone, a keyword that cannot be. [S01.7, S05.7]"""
    assert faults_of(**options) == [
        ("E061", f"has a schedule that cannot be used. {fault}")
    ]


@pytest.mark.parametrize("keyword", ["payload", "headers", "enabled"])
def test_E061_s01_7_functions_take_what_they_are_given(keyword):
    """E061: the due time, and enabled= nothing. [S01.7]"""

    def function(one, another): ...

    [(number, text)] = faults_of(**{keyword: function})

    assert number == "E061"
    assert ("does not take a time" in text) is (keyword != "enabled")


def test_E061_s05_6_schedules_need_time_zones(settings):
    """E061: without USE_TZ an hour of each year has no times of its own. [S05.6]"""
    settings.USE_TZ = False

    assert faults_of() == [
        (
            "E061",
            (
                "has a schedule, but USE_TZ is off, so that an hour of each year has no "
                "times of its own."
            ),
        )
    ]


def test_E061_s01_7_the_package_of_expressions_may_be_missing(monkeypatch):
    """E061 says what to install; an interval needs nothing. [S01.7]"""
    monkeypatch.setitem(__import__("sys").modules, "cronsim", None)

    assert faults_of(timetable=cron("0 6 * * *")) == [
        (
            "E061",
            (
                "has a schedule that cannot be used. Cron expressions need the package "
                "cronsim: install django-cqrs-kit[schedules]."
            ),
        )
    ]
    assert faults_of(timetable=HOURLY) == []


# E062 -------------------------------------------------------------------------------


def test_E062_s01_7_a_name_is_given_once():
    """E062: two schedules of one handler, or of two; neither fires. [S01.7]"""

    @scheduled(HOURLY)
    @scheduled(cron("@daily"))
    @command_handler("tick", name="tick", channel="outbox")
    def tick(): ...

    @scheduled(HOURLY, name="x")
    @command_handler("one", channel="outbox")
    def one(): ...

    @scheduled(HOURLY, name="x")
    @command_handler("two", channel="outbox")
    def two(): ...

    place = f"{__name__}.test_E062_s01_7_a_name_is_given_once.<locals>"
    registry, found = faults_in(tick, one, two)

    assert found == [
        ("E062", f"{place}.tick has 2 schedules 'tick'."),
        ("E062", f"{place}.one and {place}.two have schedules with the name 'x'."),
    ]
    assert declared_in(registry) == {}


def test_E062_s01_7_a_former_name_is_not_that_of_another_one():
    """E062: the row would be of both. [S01.7]"""

    @scheduled(HOURLY, name="new", aliases="tick")
    @scheduled(cron("@daily"))
    @command_handler("tick", name="tick", channel="outbox")
    def tick(): ...

    place = (
        f"{__name__}.test_E062_s01_7_a_former_name_is_not_that_of_another_one.<locals>"
    )
    _, found = faults_in(tick)

    assert found == [
        (
            "E062",
            (
                f"{place}.tick has a schedule with the former name 'tick', which "
                f"another one has now: {place}.tick."
            ),
        )
    ]


# E063 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({}, "has a schedule without payload=, but it needs a payload: Purge."),
        (
            {"payload": 5},
            (
                "has a schedule whose payload= does not fit it. Cannot convert the "
                "payload to Purge: a value of type int is not allowed."
            ),
        ),
        ({"payload": Purge(AWARE)}, None),
        ({"payload": {"before": "2026-07-01T00:00:00Z"}}, None),
        ({"payload": Purge}, None),
        ({"payload": lambda due: Purge(due - timedelta(1))}, None),
    ],
    ids=["none", "another type", "an object", "a dict", "a class", "a function"],
)
def test_E063_s01_7_the_payload_fits_the_handler(options, fault):
    """E063: a value is checked now, and what a function returns when it is due. [S01.7]"""

    @command_handler("tick", name="tick", channel="outbox")
    def tick(command: Purge): ...

    found = faults_of(handler=tick, **options)

    if fault is None:
        assert found == []
        return
    [(number, text)] = found
    assert number == "E063"
    assert text[:60] == fault[:60]


def test_E063_s01_7_a_payload_that_nobody_takes():
    """E063: the handler has no parameter for it; a default needs none. [S01.7]"""
    assert faults_of(payload=5) == [
        ("E063", "has a schedule with payload=, but it takes no payload.")
    ]

    @command_handler("tick", name="tick", channel="outbox")
    def tick(text: str = "x"): ...

    assert faults_of(handler=tick) == []


# The decorator ----------------------------------------------------------------------


def test_the_order_of_the_decorators_is_free():
    """A schedule may stand above or below the declaration of the handler."""

    @command_handler("tick", name="tick", channel="outbox")
    @scheduled(HOURLY)
    def tick(): ...

    registry, found = faults_in(tick)

    assert found == []
    assert list(declared_in(registry)) == ["tick"]


def test_a_class_is_no_handler():
    """It is refused where it is written."""
    with pytest.raises(TypeError, match="decorates a function or a method, not <class"):

        @scheduled(HOURLY)
        class Tick: ...


def test_the_names_of_schedules_are_those_of_their_endpoints():
    """Unless one is given."""

    @scheduled(HOURLY)
    @scheduled(HOURLY, name="other")
    @command_handler("tick", name="desk.tick", channel="outbox")
    def tick(): ...

    registry, _ = faults_in(tick)

    assert sorted(declared_in(registry)) == ["desk.tick", "other"]

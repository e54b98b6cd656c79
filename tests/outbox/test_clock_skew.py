"""The clocks of this machine and of the database: who is told that they differ."""

import io
import re
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.core.management import call_command
from django.db import connection

from django_cqrs.outbox.clock_skew import MOST_SKEW, clock_skew, skew_in_words
from django_cqrs.outbox.health import find_problems
from tests.outbox.support import on_a_server, on_databases

pytestmark = on_databases

AHEAD = [40, -40]


def shifted(seconds):
    """Have this machine's clock go ahead of the database's."""
    return time_machine.travel(datetime.now(UTC) + timedelta(seconds=seconds))


def test_clocks_that_agree_are_no_problem():
    assert abs(clock_skew()) <= MOST_SKEW
    assert find_problems() == []


@pytest.mark.parametrize("seconds", AHEAD)
def test_the_skew_is_how_far_this_machine_is_ahead(seconds):
    """Never more, however long the database takes to answer."""
    on_a_server()
    with shifted(seconds):
        skew = clock_skew().total_seconds()

    assert 0.5 < skew / seconds <= 1.001


@pytest.mark.parametrize("zone", ["+09:00", "-05:00"])
def test_the_zone_of_a_session_is_no_skew(zone):
    on_a_server()
    zones = {
        "postgresql": "SET TIME ZONE INTERVAL %s HOUR TO MINUTE",
        "mysql": "SET time_zone = %s",
    }
    with connection.cursor() as cursor:
        cursor.execute(zones[connection.vendor], [zone])
        try:
            assert abs(clock_skew()) <= MOST_SKEW
        finally:
            connection.close()


@pytest.mark.parametrize(
    ("skew", "said"),
    [
        (timedelta(seconds=5), None),
        (timedelta(seconds=-5), None),
        (
            timedelta(seconds=40.2),
            (
                "The clock of this machine is 40 s ahead of the database's, so that delays "
                "and expiry end at the wrong time."
            ),
        ),
        (
            timedelta(seconds=-3600),
            (
                "The clock of this machine is 3600 s behind the database's, so that delays "
                "and expiry end at the wrong time."
            ),
        ),
    ],
)
def test_it_is_said_from_five_seconds_on(skew, said):
    assert skew_in_words(skew) == said


@pytest.mark.parametrize("seconds", AHEAD)
def test_clocks_that_differ_are_a_problem(seconds):
    on_a_server()
    with shifted(seconds):
        found = find_problems()

    assert [(each.kind, each.channel) for each in found] == [("clock", None)]
    assert re.fullmatch(
        r"The clock of this machine is \d+ s (ahead of|behind) the database's, so that "
        r"delays and expiry end at the wrong time\.",
        str(found[0]),
    )


@pytest.mark.parametrize("seconds", AHEAD)
def test_a_worker_warns_at_its_start_of_clocks_that_differ(seconds, caplog):
    """It works all the same: its leases are counted by the database's clock."""
    on_a_server()
    with shifted(seconds):
        call_command("cqrs_worker", "outbox", "--until-empty", stdout=io.StringIO())

    where = "ahead of" if seconds > 0 else "behind"
    assert [
        (record.levelname, re.sub(r"\d+ s", "N s", record.getMessage()))
        for record in caplog.records
    ] == [
        (
            "WARNING",
            (
                f"The clock of this machine is N s {where} the database's, so that delays "
                f"and expiry end at the wrong time."
            ),
        )
    ]


def test_a_worker_whose_clock_agrees_says_nothing_of_it(caplog):
    call_command("cqrs_worker", "outbox", "--until-empty", stdout=io.StringIO())

    assert caplog.messages == []

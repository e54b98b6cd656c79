"""Positions: nothing is skipped, and nothing waits that does not append."""

import random
import threading
import time
from collections import defaultdict
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections, transaction

from django_cqrs import DEADLOCKS
from django_cqrs.events import where
from django_cqrs.events.floors import FLOOR
from django_cqrs.events.models import StoredEvent
from django_cqrs.events.positions import POSITION, complete
from django_cqrs.events.settling import blockers, clean_floors, last_position, settled
from tests.events.support import (
    SOAKS,
    Added,
    Follower,
    Removed,
    Session,
    in_a_transaction,
    numbers,
    on_a_server,
    on_databases,
    only_on,
    sessions,
    store,
)
from tests.limits import LIMIT

pytestmark = on_databases


def test_e15_1_a_lower_position_that_commits_later_is_not_skipped():
    """A appends, B appends and commits, a follower reads, A commits: the follower gets both. [E15.1]"""
    on_a_server()
    follower = Follower()
    with sessions(2) as (first, second):
        first.begin()
        low = first.append(1).position
        high = second.append(2).position
        assert low < high
        assert follower.poll() == []
        assert follower.position < low
        first.commit()

    assert follower.poll() == [1, 2]
    assert follower.position == high


def test_e15_3_a_hole_delays_nothing():
    """Positions that were rolled back are never there: the next event comes at once. [E15.3]"""
    follower = Follower()
    store.append(Added(1))
    for _ in range(2):
        with transaction.atomic():
            store.append([Added(number) for number in range(1000)])
            transaction.set_rollback(True)
    store.append(Added(2))

    assert follower.poll() == [1, 2]
    assert follower.poll() == []


def test_e15_4_the_first_event_of_all_is_not_skipped():
    """The very first event in flight holds back the second, in an empty table. [E15.4]"""
    on_a_server()
    if connection.vendor == "postgresql":  # it has never been called
        with connection.cursor() as cursor:
            cursor.execute(
                "ALTER SEQUENCE django_cqrs_events_storedevent_position RESTART"
            )
    follower = Follower()
    with sessions(2) as (first, second):
        first.begin()
        first.append(1)
        assert follower.poll() == []
        second.append(2)
        assert follower.poll() == []
        assert follower.position < StoredEvent.objects.get().position
        first.commit()

    assert follower.poll() == [1, 2]


def test_the_last_position_ever_given_is_that_of_now():
    """It is not what the server remembers of it, as MySQL does for a day."""
    for _ in range(2):
        store.append([Added(1)] * 3)
        assert last_position(connection) == settled(connection)


def test_e15_5_who_appends_nothing_delays_nobody():
    """A transaction that writes other tables does not hold followers back. [E15.5]"""
    on_a_server()
    from tests.testapp.models import Note

    follower = Follower()

    def write_elsewhere(alias):
        Note.objects.using(alias).create(text="a", number=1)

    with sessions() as here:
        there = Session("other")
        for session, alias in ((here, "default"), (there, "other")):
            session.begin()
            session.do(write_elsewhere, alias)
        store.append(Added(1))
        assert follower.poll() == [1]
        assert blockers(connections["default"]) == []
        there.end()


def test_e15_6_who_appended_is_named_and_comes_first():
    """What holds followers back is told by session, age and statement. [E15.6]"""
    on_a_server()
    follower = Follower()
    store.append(Added(1))
    function = {"postgresql": "pg_backend_pid", "mysql": "CONNECTION_ID"}

    def own_number():
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {function[connection.vendor]}()")
            return cursor.fetchone()[0]

    with sessions(2) as (first, second):
        number = first.do(own_number)
        first.begin()
        first.append(2)
        second.append(3)
        assert follower.poll() == [1]

        [blocker] = blockers(connections["default"])
        assert blocker.session == number
        assert blocker.floor == follower.position
        assert 0 <= blocker.age.total_seconds() < LIMIT
        if connection.vendor == "postgresql":
            assert "django_cqrs_events_append" in blocker.query
        first.commit()

    assert follower.poll() == [2, 3]
    assert blockers(connections["default"]) == []


def test_e15_7_a_page_that_is_not_full_moves_to_the_bound_alone():
    """While an append is in flight, a follower moves to the settled position, no further. [E15.7]"""
    on_a_server()
    follower = Follower(limit=3)
    for number in range(4):
        store.append(Added(number))
    with sessions(2) as (first, second):
        first.begin()
        first.append(4)
        second.append(5, 6)
        bound = settled(connections["default"])
        assert follower.poll() == [0, 1, 2, 3]
        assert follower.position == bound < store.head()
        first.rollback()

    assert follower.poll() == [5, 6]
    assert follower.position == store.head()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_e15_8_an_old_snapshot_gets_a_page_of_its_own(level):
    """Inside an older snapshot a page ends before what only others see. [E15.8]"""
    on_a_server()
    if connection.vendor == "mysql" and level == "SERIALIZABLE":
        level = "REPEATABLE READ"  # that one locks what it reads: nobody can append
    statement = f"SET TRANSACTION ISOLATION LEVEL {level}"
    with sessions(2) as (first, second):
        one = first.append(1).position
        first.begin()
        first.append(2)
        second.append(3)
        if connection.vendor == "mysql":
            with connection.cursor() as cursor:
                cursor.execute(statement)
        with transaction.atomic():
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute(statement)
            assert store.head() > one  # the snapshot is taken
            first.commit()
            second.append(4)
            # It sees 3, which came before the snapshot, but not 2, which comes before 3.
            assert numbers(store.read_all()) == [1]
            assert numbers(store.read_all(where(Added), limit=5)) == [1]
            assert numbers(store.read_all(after=one)) == []
            assert numbers(store.select(where(Added)).events) == [1, 3]
            assert numbers(store.read_all(where(Removed))) == []

    assert numbers(store.read_all()) == [1, 2, 3, 4]


@pytest.mark.long
def test_e15_9_positions_grow_along_cause(say):
    """Who has read an event and then appends gets a higher position. [E15.9]"""
    on_a_server()
    pairs = 10_000 if SOAKS else 60
    say(f"{pairs:,} pairs")
    chance = random.Random(7)
    failures = []

    def write(writer):
        try:
            for number in range(pairs // 4):
                with transaction.atomic():
                    if chance.random() < 0.5:
                        store.append(Added(0), stream=f"a-{writer}")
                    last = StoredEvent.objects.order_by("-recorded_at").first()
                    done = store.append([Added(number)] * 3, stream=f"b-{writer}")
                    if last is not None and last.position >= done.position - 2:
                        failures.append((last.position, done))
        except Exception as error:  # noqa: BLE001 - compared below
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=write, args=(each,)) for each in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(LIMIT)

    assert failures == []
    versions = defaultdict(list)
    for each in store.read_all():
        versions[each.stream].append(each.version)
    assert all(each == list(range(1, len(each) + 1)) for each in versions.values())


def test_e15_10_a_row_put_in_by_hand_is_settled_like_any_other():
    """An INSERT without a position, through the ORM or in SQL, holds followers back. [E15.10]"""
    only_on("postgresql")
    follower = Follower()

    def by_hand():
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_cqrs_events_storedevent (name, shape, payload, "
                "headers, event_id, correlation_id, recorded_at) VALUES ('shop.added', "
                "1, '{\"number\": 1}', '{}', gen_random_uuid(), gen_random_uuid(), now())"
            )

    def by_model():
        StoredEvent.objects.create(
            name="shop.added",
            payload={"number": 2},
            headers={},
            event_id=uuid4(),
            correlation_id=uuid4(),
            recorded_at="2026-11-30T10:00:00Z",
        )

    with sessions(3) as (first, second, third):
        first.begin()
        first.do(by_hand)
        second.begin()
        second.do(by_model)
        third.append(3)
        assert follower.poll() == []
        second.commit()
        assert follower.poll() == []
        first.commit()

    assert follower.poll() == [1, 2, 3]


def test_e15_11_tables_without_migrations_have_the_functions():
    """run_syncdb makes tables whose positions are settled, by post_migrate. [E15.11]"""
    only_on("postgresql")
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA bare")
        cursor.execute("SET search_path = bare")
    try:
        with pytest.MonkeyPatch.context() as patch:
            from django.conf import settings

            modules = {"django_cqrs_events": None}
            patch.setattr(settings, "MIGRATION_MODULES", modules, raising=False)
            call_command("migrate", run_syncdb=True, verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT column_default FROM information_schema.columns WHERE "
                "table_schema = 'bare' AND table_name = 'django_cqrs_events_storedevent' "
                "AND column_name = 'position'"
            )
            assert cursor.fetchone()[0] in (f"bare.{POSITION}()", f"{POSITION}()")
        done = store.append([Added(1), Added(2)], stream="a-b")
        assert (done.version, done.position) == (2, 2)
        assert store.settled() == 2
        complete(connection, StoredEvent._meta.db_table)  # once more
        assert store.append(Added(3), stream="a-b").position == 3
    finally:
        connection.close()
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA bare CASCADE")


def locks():
    """Return the number of advisory locks of the connection."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
            "AND pid = pg_backend_pid()"
        )
        return cursor.fetchone()[0]


@pytest.mark.long
@in_a_transaction
def test_e15_12_a_transaction_holds_one_floor(say):
    """Many appends in many savepoints hold one lock for the floor, and one gate. [E15.12]"""
    only_on("postgresql")
    appends, savepoints = (10_000, 1_000) if SOAKS else (400, 40)
    say(f"{appends:,} appends in {savepoints:,} savepoints")
    with transaction.atomic():
        store.append(Added(0))
        transaction.set_rollback(True)
    assert locks() == 0
    for number in range(savepoints):
        with transaction.atomic():
            for _ in range(appends // savepoints):
                store.append(Added(number))
            transaction.set_rollback(number % 3 == 1)
    assert locks() == 2


@pytest.mark.long
def test_e15_13_floors_are_cleaned_up(say):
    """Many appends without a follower leave fewer than 1,000 floors. [E15.13]"""
    only_on("mysql")
    appends = 100_000 if SOAKS else 1_300
    say(f"{appends:,} appends")
    with sessions() as other:
        other.begin()
        other.append(1)  # it is in flight meanwhile
        for start in range(0, appends, 100):
            with transaction.atomic():
                for number in range(start, start + 100):
                    store.append(Added(number))
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {FLOOR}")
            assert cursor.fetchone()[0] > appends // 2  # those above the one in flight
        other.commit()
    for start in range(0, 600, 100):
        store.append([Added(0)])
        with transaction.atomic():
            for number in range(start, start + 100):
                store.append(Added(number))

    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {FLOOR}")
        assert cursor.fetchone()[0] < 1_000


def test_e15_13_cleaning_waits_for_nobody():
    """Floors are deleted while others are in flight, above and below. [E15.13]"""
    only_on("mysql")
    for number in range(5):
        store.append(Added(number))
    with sessions(2) as (first, second):
        first.begin()
        first.append(5)
        store.append(Added(6))
        second.begin()
        second.append(7)
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
            clean_floors(connection)
            cursor.execute("SET SESSION innodb_lock_wait_timeout = DEFAULT")
            cursor.execute(f"SELECT COUNT(*) FROM {FLOOR}")
            assert cursor.fetchone()[0] == 1  # the one between those in flight
        first.rollback()
        second.commit()
    clean_floors(connection)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {FLOOR}")
        assert cursor.fetchone()[0] == 0


def test_e15_14_a_follower_that_dies_in_between_loses_nothing():
    """The floors are read, and deleted, before the page is; nothing is kept of that. [E15.14]"""
    on_a_server()
    follower = Follower()
    with sessions(2) as (first, second):
        first.begin()
        first.append(1)
        second.append(2)
        bound = settled(connections["default"])  # and then it dies
        if connection.vendor == "mysql":
            clean_floors(connections["default"])
        first.commit()
        assert bound < store.head()

    assert follower.poll() == [1, 2]


@in_a_transaction
def test_e15_15_own_events_are_settled_for_oneself():
    """In a transaction of a test one's own appends are settled, but not for others. [E15.15]"""
    store.append([Added(1), Added(2)])
    with transaction.atomic():
        store.append(Added(3))

    assert numbers(store.read_all()) == [1, 2, 3]
    assert Follower().poll() == [1, 2, 3]
    assert store.settled() == store.head()
    if connection.vendor != "sqlite":
        with sessions() as other:
            assert other.do(lambda: numbers(store.read_all())) == []
            assert other.do(store.settled) < store.head()


def test_e15_a_prepared_transaction_holds_followers_back():
    """A transaction that was prepared has no session, and holds its floor."""
    only_on("postgresql")
    with connection.cursor() as cursor:
        cursor.execute("SHOW max_prepared_transactions")
        if cursor.fetchone()[0] == "0":
            pytest.skip("The server has no prepared transactions.")
    follower = Follower()

    def prepare():
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            store.append(Added(1))
            cursor.execute("PREPARE TRANSACTION 'cqrs'")

    with sessions() as first:
        first.do(prepare)
        store.append(Added(2))
        assert follower.poll() == []
        assert [each.session for each in blockers(connection)] == [None]
        with connection.cursor() as cursor:
            cursor.execute("COMMIT PREPARED 'cqrs'")

    assert follower.poll() == [1, 2]


WRITERS = 8
SECONDS = 20 if SOAKS else 2


def write_until(end, writer, chance):
    """Append in transactions of any length; return what was committed, and deadlocks."""
    committed, deadlocks = [], 0
    number = writer * 10**6
    while time.monotonic() < end or number % 10**6 < 5:
        try:
            wanted, number = write_once(number, chance)
        except OperationalError as error:
            if not DEADLOCKS.includes(error):
                raise
            # InnoDB may choose one of two that begin the same stream: it is undone.
            deadlocks += 1
            number += 10
        else:
            committed += wanted
    return committed, deadlocks


def write_once(number, chance):
    """Append in one transaction; return what it committed, and the last number."""
    wanted = []
    with transaction.atomic():
        # In one order, so that writers do not wait for each other in a circle.
        for place in sorted(chance.sample(range(12), chance.randrange(1, 4))):
            number += 1
            name = f"shop.basket-{place}" if chance.random() < 0.8 else None
            is_undone = chance.random() < 0.3
            with transaction.atomic():
                store.append([Added(number), Added(0)], stream=name)
                transaction.set_rollback(is_undone)
            if not is_undone:
                wanted.append(number)
            if chance.random() < 0.1:
                time.sleep(0.6 if SOAKS else 0.1)
        is_lost = chance.random() < 0.15
        transaction.set_rollback(is_lost)
    return ([] if is_lost else wanted), number


@pytest.mark.long
def test_e15_2_a_follower_sees_what_was_committed(say):
    """Under long transactions, rollbacks and savepoints nothing is lost, doubled or made up. [E15.2]"""
    on_a_server()
    seed = random.SystemRandom().randrange(1, 10**6)
    committed, failures = {}, []
    end = time.monotonic() + SECONDS

    def write(writer):
        try:
            committed[writer] = write_until(end, writer, random.Random(seed + writer))
        except Exception as error:  # noqa: BLE001 - compared below
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(1, WRITERS + 1)]
    for each in threads:
        each.start()
    follower = Follower(limit=50)
    while any(each.is_alive() for each in threads):
        follower.poll()
    follower.poll()

    deadlocks = sum(count for _, count in committed.values())
    say(
        f"{WRITERS} writers, {SECONDS} s, {len(follower.seen):,} events, "
        f"{deadlocks} deadlocks, seed {seed}"
    )
    assert failures == []
    assert not deadlocks or connection.vendor == "mysql"
    seen = [each.event.number for each in follower.seen]
    firsts = [number for number in seen if number]
    wanted = [number for own, _ in committed.values() for number in own]
    assert sorted(firsts) == sorted(wanted)
    assert len(seen) == 2 * len(firsts)
    positions = [each.position for each in follower.seen]
    assert positions == sorted(set(positions))
    versions = defaultdict(list)
    for each in follower.seen:
        if each.stream is not None:
            versions[each.stream].append(each.version)
    assert all(each == list(range(1, len(each) + 1)) for each in versions.values())

"""Follow: yield events as they settle."""

import asyncio
import threading
import time
from datetime import timedelta

import pytest
from django.db import connection, connections
from django.http import StreamingHttpResponse

from django_cqrs.events import where
from django_cqrs.events.waking import NOTIFICATION
from django_cqrs.exceptions import InvalidOption
from tests.events.support import (
    Added,
    Removed,
    numbers,
    on_a_server,
    on_databases,
    only_on,
    sessions,
    store,
)
from tests.limits import LIMIT

pytestmark = on_databases


def listeners():
    """Return the number of sessions that listen."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s "
            "AND datname = current_database()",
            [f"%LISTEN {NOTIFICATION}%"],
        )
        return cursor.fetchone()[0]


def taken(events, count):
    return [next(events).event.number for _ in range(count)]


@pytest.mark.long
def test_e17_1_events_are_followed_while_others_append():
    """Each event comes once, in order of position, from four writers; then it ends. [E17.1]"""

    def write(writer):
        for number in range(10):
            store.append(Added(writer * 100 + number), stream=f"a-{writer}")
        connections.close_all()

    store.append(Added(-1))
    after, seen = store.settled(), []
    events = store.follow(where(Added), after=after, timeout=LIMIT)

    def read():
        for each in events:
            seen.append(each)
            if len(seen) == 40:
                break
        events.close()
        connections.close_all()

    threads = [threading.Thread(target=write, args=(each,)) for each in range(4)]
    threads.append(threading.Thread(target=read))
    for each in threads:
        each.start()
    for each in threads:
        each.join(LIMIT)

    positions = [each.position for each in seen]
    assert positions == sorted(set(positions))
    assert sorted(numbers(seen)) == [n * 100 + m for n in range(4) for m in range(10)]
    for writer in range(4):
        own = [number for number in numbers(seen) if number // 100 == writer]
        assert own == sorted(own)


def test_e17_1_it_ends_at_the_timeout():
    """What is settled comes even without time to wait; then it ends. [E17.1]"""
    store.append([Added(1), Removed(2), Added(3)])

    assert numbers(store.follow(after=0, timeout=0)) == [1, 2, 3]
    assert numbers(store.follow(where(Added), after=0, timeout=0.1)) == [1, 3]
    assert numbers(store.follow(timeout=timedelta(milliseconds=50))) == []
    with pytest.raises(InvalidOption):
        store.follow(timeout=-1)


def test_e17_1_what_is_in_flight_comes_when_it_settles():
    """An event behind one in flight is yielded after that, as soon as it ends. [E17.1]"""
    on_a_server()
    with sessions(2) as (first, second):
        first.begin()
        first.append(1)
        second.append(2)
        assert numbers(store.follow(after=0, timeout=0)) == []
        events = store.follow(after=0, timeout=LIMIT)
        first.start(time.sleep, 0.2)
        second.start(lambda: (first.result(), first.commit()))
        assert taken(events, 2) == [1, 2]
        second.result()
        events.close()


@pytest.mark.long
def test_e17_2_a_notification_wakes_it(say):
    """On PostgreSQL an idle follower is told of an event within 50 ms. [E17.2]"""
    only_on("postgresql")
    events = store.follow(after=0, timeout=LIMIT)
    store.append(Added(0))
    assert taken(events, 1) == [0]
    delays = []
    with sessions() as other:
        for number in range(1, 8):
            # The follower is asleep for a second, until it is woken.
            time.sleep(0.1)
            other.start(lambda n=number: (time.sleep(0.2), append_now(n))[1])
            assert taken(events, 1) == [number]
            seen = time.monotonic()
            delays.append(seen - other.result())
    events.close()
    say(f"{min(delays) * 1000:.1f} ms")
    # The quickest of them: on a busy machine others wait for a processor.
    assert min(delays) < 0.05


def append_now(number):
    store.append(Added(number))
    return time.monotonic()


async def _first(events, count):
    found = []
    async for each in events:
        found.append(each.event.number)
        if len(found) == count:
            return found
    return found


async def test_e17_3_events_are_followed_in_an_event_loop():
    """afollow yields the same, and other tasks go on meanwhile. [E17.3]"""
    await store.aappend([Added(1), Removed(2)])
    turns = 0

    async def tick():
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    ticking = asyncio.create_task(tick())
    assert await _first(store.afollow(after=0, timeout=0), 9) == [1, 2]
    assert await _first(store.afollow(where(Removed), after=0, timeout=0.3), 9) == [2]
    assert turns
    ticking.cancel()

    events = store.afollow(after=await store.asettled(), timeout=LIMIT)
    waiting = asyncio.create_task(_first(events, 1))
    await asyncio.sleep(0.2)
    await store.aappend(Added(3))
    assert await asyncio.wait_for(waiting, LIMIT) == [3]
    await events.aclose()


@pytest.mark.long
async def test_e17_3_a_cancelled_one_leaves_no_listener():
    """A task that is cancelled, at any moment, leaves no session that listens. [E17.3]"""
    if connection.vendor != "postgresql":
        pytest.skip("A case for PostgreSQL.")
    count = await asyncio.to_thread(in_own_session, listeners)
    for pause in (0, 0.001, 0.005, 0.02, 0.3):
        events = store.afollow(timeout=LIMIT)
        task = asyncio.create_task(_first(events, 1))
        await asyncio.sleep(pause)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await events.aclose()
    end = time.monotonic() + LIMIT
    while await asyncio.to_thread(in_own_session, listeners) > count:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def in_own_session(function):
    try:
        return function()
    finally:
        connections.close_all()


async def test_e17_4_server_sent_events_resume():
    """A stream of server-sent events goes on behind the id that the browser names. [E17.4]"""
    await store.aappend([Added(1), Added(2)], stream="shop.basket-1")

    async def stream(last_id):
        async for each in store.afollow(after=int(last_id or 0), timeout=0):
            yield f"id: {each.position}\ndata: {each.event.number}\n\n"

    async def read(last_id):
        response = StreamingHttpResponse(
            stream(last_id), content_type="text/event-stream"
        )
        return [part.decode() async for part in response]

    first = await read(None)
    assert [each.split("data: ")[1] for each in first] == ["1\n\n", "2\n\n"]
    last_id = first[-1].split()[1]
    await store.aappend(Added(3), stream="shop.basket-1")
    assert [each.split("data: ")[1] for each in await read(last_id)] == ["3\n\n"]

"""A request that is cancelled leaves no half append, and no lock."""

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connection, connections

from django_cqrs import event_handler
from django_cqrs.events import EventStore
from tests.events.support import (
    Added,
    Subscribed,
    numbers,
    on_databases,
    sessions,
    store,
)
from tests.limits import LIMIT
from tests.support import registry_of

pytestmark = on_databases

STREAM = "basket-1"


@asynccontextmanager
async def own_thread():
    """Give the database a thread of its own, as a request has."""
    async with ThreadSensitiveContext():
        yield
        await sync_to_async(connections.close_all)()


async def cancelled(task, *, release=None):
    """Cancel a task that is inside its append, and wait until its thread is done."""
    assert task.cancel()
    await asyncio.sleep(0)
    if release is not None:
        release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    return await sync_to_async(lambda: connection.in_atomic_block)()


def assert_free(version):
    """Another session appends to the same stream and tag at once, and followers see it."""
    with sessions(1) as other:
        appended = other.append(9, stream=STREAM, expected_version=version)
        assert appended.version == version + 1
        assert other.do(store.append, [Subscribed(1, [])]).position == other.do(
            store.settled
        )


def test_e38_3_a_cancelled_append_is_whole():
    """A thread cannot be stopped: both events are stored, and nothing is held afterwards. [E38.3]"""
    entered, release = threading.Event(), threading.Event()

    @event_handler
    def wait(event: Added) -> None:
        entered.set()
        release.wait(LIMIT)

    own = EventStore(registry=registry_of(wait, Added))

    async def main():
        async with own_thread():
            events = [Added(1), Added(2)]
            task = asyncio.create_task(own.aappend(events, stream=STREAM))
            await asyncio.to_thread(entered.wait, LIMIT)
            return await cancelled(task, release=release)

    assert asyncio.run(main()) is False
    assert numbers(own.read(STREAM)) == [1, 2]
    assert_free(2)


def test_e38_3_a_cancelled_handler_takes_its_append_with_it():
    """An async handler is cancelled where it awaits: the append and its tags are undone. [E38.3]"""
    store.append(Added(1), stream=STREAM)

    async def main():
        entered = asyncio.Event()
        loop = asyncio.get_running_loop()

        @event_handler
        async def wait(event: Subscribed) -> None:
            loop.call_soon_threadsafe(entered.set)
            await asyncio.sleep(2 * LIMIT)

        own = EventStore(registry=registry_of(wait, Added, Subscribed))
        async with own_thread():
            events = [Added(2), Subscribed(1, [])]
            task = asyncio.create_task(own.aappend(events, stream=STREAM))
            await asyncio.wait_for(entered.wait(), LIMIT)
            return await cancelled(task)

    assert asyncio.run(main()) is False
    assert numbers(store.read(STREAM)) == [1]
    assert_free(1)


def test_e38_3_a_cancelled_reader_leaves_no_transaction():
    """Between two pages nothing is open; the rest is not read. [E38.3]"""
    store.append([Added(number) for number in range(3)], stream=STREAM)
    seen = []

    async def main():
        entered = asyncio.Event()

        async def read():
            async for each in store.aread(STREAM):
                seen.append(each.event.number)
                entered.set()
                await asyncio.sleep(2 * LIMIT)

        async with own_thread():
            task = asyncio.create_task(read())
            await asyncio.wait_for(entered.wait(), LIMIT)
            return await cancelled(task)

    assert asyncio.run(main()) is False
    assert seen == [0]
    assert_free(3)

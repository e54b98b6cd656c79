"""Ordering keys: one at a time, in order of sending, whatever happens to one of them."""

import json
import random
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection, connections, transaction

from django_cqrs import (
    Header,
    Registry,
    Retry,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.exceptions import InvalidKey, MissingHeader
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State
from django_cqrs.outbox.store import Store, discard, replay
from django_cqrs.outbox.store.dialects import ADVISORY_LOCK
from django_cqrs.outbox.worker import names_of
from tests.limits import LIMIT
from tests.outbox.support import (
    letters,
    make_due,
    note,
    numbers,
    on_a_server,
    on_databases,
    on_postgresql,
    registry_of,
    rows,
    send,
    state_of,
    subscribers,
    work,
    worker_of,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases

LEASE = timedelta(seconds=30)
AGAIN = Retry(attempts=3, delay=60, jitter=False)
ONCE = Retry(attempts=1)


@message("order.moved")
@dataclass(frozen=True)
class Moved:
    """An event with a key that is no text."""

    account: int | None
    number: int


def failing(*bad):
    """Return a handler that fails for these numbers, and the list of them."""
    fails = set(bad)

    def handle(command: Work):
        if command.number in fails:
            raise ValueError(command.number)
        note(command)

    return handle, fails


def ordered(handler, **policies):
    return registry_of(handler, ordering_key="how", **policies)


def number_of(claimed):
    return json.loads(claimed.envelope.payload)["number"]


def claim(store, owner, limit=100):
    found = store.claim("outbox", limit=limit, owner=owner, lease=LEASE)
    return [number_of(each) for each in found]


# ------------------------------------------------------------------------------ the key


def test_a_key_is_an_attribute_a_header_or_what_a_callable_returns():
    """It is stored as text; None is no key; one too long is stored as its hash. [C07.1]"""
    registry = Registry()

    def by_attribute(event: Moved):
        """An attribute."""

    def by_header(event: Moved):
        """A header."""

    def by_callable(event: Moved):
        """A callable."""

    for handler, key in (
        (by_attribute, "account"),
        (by_header, Header("tenant")),
        (by_callable, lambda message: (message.payload.number, "a,b")),
    ):
        named = event_handler(name=handler.__name__, channel="outbox", ordering_key=key)
        registry.add(named(handler))
    for account, tenant in ((7, "x" * 300), (None, None), (-1, "ends in a space ")):
        registry.event_bus.publish(Moved(account, 1), headers={"tenant": tenant})

    assert [row.ordering_key for row in rows() if row.endpoint == "by_attribute"] == [
        "7",
        None,
        "-1",
    ]
    first, none, last = (
        row.ordering_key for row in rows() if row.endpoint == "by_header"
    )
    assert none is None
    assert first.startswith("sha256:")
    assert last.startswith("sha256:")
    assert first != last
    assert {row.ordering_key for row in rows() if row.endpoint == "by_callable"} == {
        "'1','a,b'"
    }


def test_a_message_without_its_key_is_not_sent():
    """A missing header, and what can be no key, raise at the send. [C07.1]"""
    by_header = registry_of(note, ordering_key=Header("tenant"))
    by_object = registry_of(note, ordering_key=lambda message: [1])
    by_field = registry_of(note, ordering_key=lambda message: message.payload.none)

    with pytest.raises(MissingHeader) as missing:
        send(by_header, 1)
    with pytest.raises(InvalidKey) as invalid:
        send(by_object, 1)
    with pytest.raises(AttributeError):
        send(by_field, 1)

    assert str(missing.value) == (
        "note has ordering_key=Header('tenant'), but the message has no such header. "
        "Give it with headers={'tenant': ...}; None means that the message has no "
        "key."
    )
    assert str(invalid.value) == (
        "The ordering_key of a message for note cannot be one: list is not a str, "
        "int, UUID, Decimal, date, datetime, an Enum of these, or a tuple of them."
    )
    assert rows() == []


def test_keys_that_differ_in_case_are_two():
    """On databases that compare text loosely, too. [C07.1]"""
    registry = ordered(note)
    send(registry, 1, how="a")
    send(registry, 2, how="A")
    store = Store("default")

    assert claim(store, "one", limit=1) == [1]
    assert claim(store, "two") == [2]


# ---------------------------------------------------------------------------- the order


def test_one_at_a_time_for_each_key_and_endpoint():
    """What somebody holds keeps the rest of its key; other keys and endpoints go on. [C07.1]"""
    registry = subscribers(note, _noted, ordering_key="how")
    for number, how in ((1, "a"), (2, "a"), (3, "b")):
        registry.event_bus.publish(Work(number, how))
    send_unordered(4)
    mine, theirs = Store("default"), Store("default")

    first = mine.claim("outbox", limit=1, owner="me", lease=LEASE)
    second = theirs.claim("outbox", limit=100, owner="they", lease=LEASE)

    (one,) = first
    assert (one.envelope.endpoint, one.ordering_key) == ("note", "a")
    assert [
        (each.envelope.endpoint, each.ordering_key, number_of(each)) for each in second
    ] == [
        ("_noted", "a", 1),
        ("_noted", "a", 2),
        ("note", "b", 3),
        ("_noted", "b", 3),
        ("note", None, 4),
    ]


def _noted(command: Work):
    """Another handler of the same event."""


def send_unordered(*what):
    send(registry_of(note), *what)


def test_a_claim_takes_the_run_of_a_key():
    """Several messages of one key are handled by one worker, one after the other. [C07.1]"""
    registry = ordered(note)
    for number in range(1, 5):
        send(registry, number, 10 * number, how=f"key {number}")

    assert claim(Store("default"), "me", limit=5) == [1, 10, 2, 20, 3]
    assert claim(Store("default"), "they") == [4, 40]


def test_in_order_of_sending_within_a_transaction():
    """Also where what was sent first is written last. [C07.1]"""
    registry = ordered(note)

    @registry.add
    @command_handler(name="run")
    def run(command: Moved):
        send(registry, 1, how="a")  # buffered to the end
        with transaction.atomic():
            send(registry, 2, how="a")  # written at once
        send(registry, 3, how="a")

    registry.command_bus.dispatch(Moved(1, 1))

    assert [row.sequence for row in OutboxMessage.objects.order_by("pk")] != [
        row.sequence for row in rows()
    ]
    work(registry)
    assert numbers() == [1, 2, 3]


def test_what_commits_late_is_not_handled_beside_another():
    """One that was sent before and committed after waits for the one at hand. [C07.1]"""
    on_a_server()
    registry = ordered(note)
    sent, handled = threading.Event(), threading.Event()

    def late():
        with transaction.atomic():
            send(registry, 1, how="a")
            sent.set()
            handled.wait(LIMIT)
        connections.close_all()

    thread = threading.Thread(target=late)
    thread.start()
    sent.wait(LIMIT)
    send(registry, 2, 3, how="a")
    mine = Store("default")
    assert claim(mine, "me") == [2, 3]
    handled.set()
    thread.join()

    assert claim(Store("default"), "they") == []
    assert state_of() == {1: "PARKED", 2: "CLAIMED", 3: "CLAIMED"}

    mine.give_back("me", [row.pk for row in rows()], State.READY)
    work(registry)
    assert numbers() == [1, 2, 3]


def test_with_workers_beside_one_another(say):
    """Each key in its order, each message once, with keys that come in turn. [C07.1]"""
    on_a_server()
    keys, each, workers = 20, 25, 4
    busy, clashes, seen = {}, [], {}
    lock = threading.Lock()

    def handle(command: Work):
        with lock:
            clashes.extend([command] if busy.get(command.how) else [])
            busy[command.how] = True
        time.sleep(random.uniform(0, 0.001))
        note(command)
        with lock:
            busy[command.how] = False
            seen.setdefault(command.how, []).append(command.number)

    registry = ordered(handle)
    for number in range(each):
        with transaction.atomic():
            for key in range(keys):
                send(registry, number, how=f"key {key}")
    errors = []

    def run():
        try:
            while OutboxMessage.objects.exists():
                worker_of(registry, batch=30).run()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(workers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert clashes == []
    assert rows() == []
    assert seen == {f"key {key}": list(range(each)) for key in range(keys)}
    assert Note.objects.count() == keys * each
    say(f"{keys * each} messages, {workers} workers: {time.monotonic() - began:.1f} s")


# ------------------------------------------------------------------ one that has failed


def test_one_in_back_off_holds_its_key():
    """What came after it is not handled before it; every other key is. [C07.2]"""
    handle, fails = failing(2)
    registry = ordered(handle, retry=AGAIN)
    send(registry, 1, 2, 3, how="a")
    send(registry, 4, how="b")

    work(registry)
    assert numbers() == [1, 4]
    assert state_of() == {2: "DELAYED", 3: "PARKED"}
    send(registry, 5, how="a")
    work(registry)
    assert numbers() == [1, 4]
    assert state_of() == {2: "DELAYED", 3: "PARKED", 5: "PARKED"}

    fails.clear()
    make_due()
    work(registry)
    assert numbers() == [1, 4, 2, 3, 5]
    assert rows() == []


def test_a_dead_one_parks_the_rest_of_its_key_and_replay_resumes_it():
    """In order; and what is sent meanwhile waits behind it as well. [C07.2]"""
    handle, fails = failing(2)
    registry = ordered(handle, retry=ONCE)
    send(registry, 1, 2, 3, 4, how="a")
    send(registry, 5, how="b")

    work(registry)
    send(registry, 6, how="a")
    send(registry, 7, how="b")
    work(registry)

    assert numbers() == [1, 5, 7]
    assert state_of() == {3: "PARKED", 4: "PARKED", 6: "PARKED"}
    (letter,) = letters()
    assert letter.ordering_key == "a"

    fails.clear()
    assert replay([letter], using="default") == 1
    work(registry)
    assert numbers() == [1, 5, 7, 2, 3, 4, 6]
    assert rows() == []


@pytest.mark.parametrize("way", ["command", "discard", "behind its back"])
def test_deleting_a_dead_one_lets_the_rest_go(way):
    """By the command at once; by plain SQL when a worker next sweeps. [C07.2]"""
    handle, _ = failing(1)
    registry = ordered(handle, retry=ONCE)
    send(registry, 1, 2, 3, how="a")
    work(registry)
    assert numbers() == []

    if way == "command":
        call_command("cqrs_failed", "delete", "--all", "--no-input", verbosity=0)
    elif way == "discard":
        assert discard(DeadLetter.objects.all(), using="default") == 1
    else:
        DeadLetter.objects.all().delete()

    work(registry)
    assert numbers() == [2, 3]
    assert rows() == []


def test_two_dead_ones_of_a_key():
    """Replayed alone, the second waits for the first. [C07.2]"""
    handle, fails = failing(1, 2)
    registry = ordered(handle, retry=ONCE)
    send(registry, 1, 2, 3, how="a")
    work(registry)
    (first,) = letters()
    first_as_it_was = dict(vars(first))
    discard(DeadLetter.objects.all(), using="default")
    work(registry)
    (second,) = letters()
    first_as_it_was.pop("_state")
    DeadLetter.objects.create(**first_as_it_was)

    fails.clear()
    replay([second], using="default")
    work(registry)
    assert numbers() == []
    assert state_of() == {2: "PARKED", 3: "PARKED"}
    replay(letters(), using="default")
    work(registry)
    assert numbers() == [1, 2, 3]


@pytest.mark.parametrize("count", [1, 2, 100])
def test_the_rest_of_a_batch_is_given_back(count):
    """Whether the failing one is the first, or not, of what was claimed together. [C07.2]"""
    handle, fails = failing(3)
    registry = ordered(handle, retry=AGAIN)
    send(registry, *range(1, 7), how="a")

    worker = worker_of(registry, batch=count)
    worker.run()

    assert numbers() == [1, 2]
    assert state_of() == {3: "DELAYED", **dict.fromkeys([4, 5, 6], "PARKED")}
    assert [row.owner for row in rows()] == [None] * 4
    fails.clear()
    make_due()
    work(registry)
    assert numbers() == [1, 2, 3, 4, 5, 6]


def test_dropped_ones_hold_nothing():
    """A message that is given up and forgotten lets its key go on. [C07.2]"""
    handle, _ = failing(1, 2)
    policy = Retry(attempts=1, final_failure="drop")
    registry = ordered(handle, retry=policy)
    send(registry, 1, 2, 3, how="a")

    tally = work(registry)

    assert (tally.handled, tally.failed) == (1, 2)
    assert numbers() == [3]
    assert rows() == []


def test_a_batch_that_is_rolled_back_keeps_the_order():
    """Taken one by one, what follows one that fails is set aside as well. [C07.2]"""
    handle, fails = failing()

    def breaks(command: Work):
        if command.number in fails:
            transaction.set_rollback(True)
            Note.objects.count()
        handle(command)

    fails.add(2)
    registry = ordered(breaks, retry=AGAIN)
    send(registry, 1, 2, 3, how="a")
    send(registry, 4, how="b")

    work(registry)

    assert numbers() == [1, 4]
    assert state_of() == {2: "DELAYED", 3: "PARKED"}


def test_handlers_without_a_transaction_keep_the_order():
    """They are called one by one; after one that fails no other of its key is. [C07.2]"""
    handle, fails = failing(2)
    registry = ordered(handle, retry=AGAIN, atomic=False)
    send(registry, 1, 2, 3, how="a")
    send(registry, 4, how="b")

    work(registry)
    assert numbers() == [1, 4]
    assert state_of() == {2: "DELAYED", 3: "PARKED"}

    fails.clear()
    make_due()
    work(registry)
    assert numbers() == [1, 4, 2, 3]


def test_what_a_dead_worker_held_is_taken_up_in_order():
    """One at a time, the first one first; others of the key wait for all of it. [C07.2]"""
    registry = ordered(note)
    send(registry, 1, 2, 3, how="a")
    assert claim(Store("default"), "dead", limit=2) == [1, 2]
    OutboxMessage.objects.filter(state=State.CLAIMED).update(
        lease_expires_at="2000-01-01T00:00:00Z"
    )
    Store("default").abandon_expired(["outbox"])
    assert state_of() == {1: "ABANDONED", 2: "ABANDONED", 3: "READY"}

    assert claim(Store("default"), "me") == []
    one = Store("default").claim_abandoned("outbox", owner="me", lease=LEASE)
    assert [each.attempts for each in one] == [1]
    assert Store("default").claim_abandoned("outbox", owner="they", lease=LEASE) == []
    assert state_of() == {1: "CLAIMED", 2: "PARKED", 3: "PARKED"}
    Store("default").give_back("me", [one[0].pk], State.ABANDONED)

    work(registry)
    assert numbers() == [1, 2, 3]


def test_a_late_finisher_leaves_its_key_to_whoever_has_it():
    """Where one message was taken over, no other of its key is handled here. [C07.2]"""
    registry = ordered(note)
    send(registry, 1, 2, how="a")
    send(registry, 3, how="b")
    first = rows()[0].pk

    worker = worker_of(registry)
    settle, held = worker.store.settle, worker.store.held

    # Another has taken it before the batch is settled: in its transaction, which is
    # rolled back with it, and again before what is still held is asked for.
    def take_over():
        OutboxMessage.objects.filter(pk=first).update(owner="another")

    worker.store.settle = lambda *given: (take_over(), settle(*given))
    worker.store.held = lambda *given: (take_over(), held(*given))[1]
    worker.run_once()

    assert numbers() == [3]
    assert state_of() == {1: "CLAIMED", 2: "READY"}


# ------------------------------------------------------------ delay, priority, expiry


def test_inside_a_key_priority_does_not_count():
    """Between keys it does. [C07.3]"""
    registry = ordered(note)
    send(registry, 1, how="a")
    send(registry, 2, how="a", priority=5)
    send(registry, 3, how="b", priority=1)
    send(registry, 4, how="a", priority=-5)
    send(registry, 5, how="c")

    work(registry)

    assert numbers() == [1, 2, 4, 3, 5]


def test_a_delayed_one_takes_its_place_when_it_falls_due():
    """It holds nobody while it waits; when it is due it comes before later ones. [C07.3]"""
    handle, fails = failing(3)
    registry = ordered(handle, retry=AGAIN)
    send(registry, 1, how="a", delay=60)
    send(registry, 2, 3, 4, how="a")

    work(registry)
    assert numbers() == [2]
    assert state_of() == {1: "DELAYED", 3: "DELAYED", 4: "PARKED"}

    fails.clear()
    make_due()
    work(registry)
    assert numbers() == [2, 1, 3, 4]


def test_an_expired_one_holds_nothing():
    """It is dropped in its turn. [C07.3]"""
    registry = ordered(note)
    send(registry, 1, how="a", expires=0)
    send(registry, 2, how="a")

    tally = work(registry)

    assert (tally.expired, numbers()) == (1, [2])
    assert rows() == []


# --------------------------------------------------------------------------- engines


def forward(store, limit=100):
    found = store.forward("outbox", limit=limit, owner="relay", lease=LEASE)
    return [pk for pk, _ in found]


def test_tasks_that_come_in_another_order_keep_that_of_the_key():
    """What comes too early is ready again, and is forwarded behind what comes first. [C08.4]"""
    registry = ordered(note)
    send(registry, 1, 2, 3, 4, how="a")
    store = Store("default")
    first, second = forward(store, 2), forward(store)
    assert second == []  # behind what is with the engine
    assert state_of() == dict.fromkeys([1, 2], "FORWARDED") | dict.fromkeys(
        [3, 4], "PARKED"
    )

    one, two = first
    assert worker_of(registry).handle_forwarded([two]).handled == 0
    assert state_of(2) == ["READY"]
    assert forward(store) == []
    assert worker_of(registry).handle_forwarded([one]).handled == 1
    again = forward(store)
    assert len(again) == 3
    assert worker_of(registry).handle_forwarded(again).handled == 3

    assert numbers() == [1, 2, 3, 4]


def test_one_that_fails_in_a_task_holds_its_key():
    """Every other key is handled. [C08.4]"""
    handle, fails = failing(1)
    registry = ordered(handle, retry=AGAIN)
    send(registry, 1, 2, how="a")
    send(registry, 3, how="b")

    worker_of(registry).handle_forwarded(forward(Store("default")))

    assert numbers() == [3]
    assert state_of() == {1: "DELAYED", 2: "PARKED"}
    fails.clear()
    make_due()
    Store("default").release_due(["outbox"])
    worker_of(registry).handle_forwarded(forward(Store("default")))
    assert numbers() == [3, 1, 2]


def test_what_a_dead_consumer_held_is_forwarded_in_order():
    """One at a time for each key. [C08.4]"""
    registry = ordered(note)
    send(registry, 1, 2, how="a")
    send(registry, 3, how="b")
    store = Store("default")
    store.claim_forwarded(forward(store), owner="dead", lease=-LEASE)
    store.abandon_expired(["outbox"])
    assert set(state_of().values()) == {"ABANDONED"}

    handled = []
    for _ in range(2):
        alone = store.forward_abandoned("outbox", limit=100, owner="relay", lease=LEASE)
        for pk in alone:
            worker_of(registry).handle_forwarded([pk])
        handled.append(len(alone))
        worker_of(registry).handle_forwarded(forward(store))

    assert numbers() == [1, 3, 2]
    assert handled == [2, 1]


# ------------------------------------------------------------------------- deployments


def test_a_renamed_endpoint_keeps_its_order():
    """Messages under the old name and the new one are of one key. [C07.1]"""
    old = ordered(note, name="old")
    send(old, 1, 2, how="a")
    new = ordered(note, name="new", aliases=["old"])
    send(new, 3, how="a")
    names = names_of(new)
    store = Store("default", names=names)

    assert claim(store, "me", limit=1) == [1]
    assert claim(Store("default", names=names), "they") == []
    store.give_back("me", [rows()[0].pk], State.READY)
    work(new)
    assert numbers() == [1, 2, 3]


# ------------------------------------------------------------------------------- costs


def test_messages_without_a_key_cost_nothing_more(django_assert_num_queries):
    """A claim of them is one that asks after no key, and parks nothing."""
    registry = registry_of(note)
    send(registry, 1, 2, 3)
    store = Store("default")
    claim(store, "nobody", limit=1)

    # A SELECT and an UPDATE, with BEGIN and COMMIT; PostgreSQL does all that in one.
    statements = 1 if connection.vendor == "postgresql" else 4
    with django_assert_num_queries(statements):
        assert claim(store, "me", limit=2) == [2, 3]


def test_messages_of_keys_are_claimed_in_one_statement(django_assert_num_queries):
    """On PostgreSQL, where nothing keeps any of them."""
    registry = ordered(note)
    send(registry, 1, 3, how="a")
    send(registry, 2, how="b")
    store = Store("default")
    claim(store, "nobody", limit=1)
    send(registry, 4, how="c")
    OutboxMessage.objects.filter(owner="nobody").delete()

    is_counted = connection.vendor == "postgresql"
    with django_assert_num_queries(1) if is_counted else nullcontext():
        assert claim(store, "me", limit=3) == [3, 2, 4]


@pytest.mark.parametrize("is_parked", [False, True])
def test_many_keys_are_asked_for_parked_messages_where_there_are_any(is_parked):
    """Elsewhere than on PostgreSQL a look at the channels says that there are none."""
    registry = ordered(_noted)
    for number in range(5):
        send(registry, number, how=f"key {number}")
    if is_parked:
        last = rows()[-1]
        OutboxMessage.objects.filter(pk=last.pk).update(state=State.PARKED)
    groups = [(row.endpoint, row.ordering_key) for row in rows()]
    said = []
    with connection.execute_wrapper(
        lambda execute, sql, *rest: (said.append(sql), execute(sql, *rest))[1]
    ):
        woken = Store("default").wake(groups)

    asked = [each for each in said if "ordering_key = p.k" in each]
    assert woken == is_parked
    assert len(asked) == (is_parked or connection.vendor == "postgresql")
    assert {row.state for row in rows()} == {State.READY}


@pytest.mark.parametrize("server_side_binding", [False, True])
def test_keys_are_kept_with_any_binding(server_side_binding):
    """Several statements in one need the parameters in their text. [C07.1]"""
    on_postgresql()
    there = connection.settings_dict["OPTIONS"]
    registry = ordered(note)
    try:
        connection.settings_dict["OPTIONS"] = {
            **there,
            "server_side_binding": server_side_binding,
        }
        connection.close()
        send(registry, 1, 2, how="a")
        send(registry, 3, how="b")
        work(registry)
    finally:
        connection.settings_dict["OPTIONS"] = there
        connection.close()

    assert sorted(numbers()) == [1, 2, 3]
    assert numbers().index(1) < numbers().index(2)


def test_a_claim_in_order_waits_for_another_but_not_for_long():
    """Somebody is at it: it is soon made again, and nothing is claimed meanwhile. [C07.2]"""
    on_postgresql()
    registry = ordered(note)
    send(registry, 1, how="a")
    store = Store("default")
    with holding_the_lock():
        assert claim(store, "me") == []
        assert store.was_contended
    assert claim(store, "me") == [1]
    assert not store.was_contended


@contextmanager
def holding_the_lock():
    """Hold what a claim in order holds, on another connection."""
    held, done = threading.Event(), threading.Event()

    def hold():
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
                held.set()
                done.wait(LIMIT)
        finally:
            connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(LIMIT)
    try:
        yield
    finally:
        done.set()
        thread.join(LIMIT)


def test_what_waits_for_its_key_is_looked_at_once():
    """A key with many messages behind a dead one does not slow others down."""
    handle, _ = failing(0)
    registry = ordered(handle, retry=ONCE)
    with transaction.atomic():
        send(registry, *range(700), how="a")
        send(registry, 1000, how="b")

    work(registry)

    assert numbers() == [1000]
    assert set(OutboxMessage.objects.values_list("state", flat=True)) == {State.PARKED}
    store = Store("default")
    assert claim(store, "me") == []
    assert not store.was_contended

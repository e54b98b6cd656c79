"""What callbacks of ``on_commit`` send: whose headers it has, and by whom it was caused."""

import functools
from dataclasses import dataclass

import pytest
from django.db import connections, transaction
from django.test import TestCase

from django_cqrs import (
    EventBus,
    Headers,
    Message,
    Registry,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.channels import channels
from tests.outbox.support import on_databases, work

pytestmark = on_databases


@message("on_commit.leave")
@dataclass(frozen=True)
class Leave:
    how: str = "plain"


@message("on_commit.left")
@dataclass(frozen=True)
class Left:
    pass


@message("on_commit.heard")
@dataclass(frozen=True)
class Heard:
    pass


def register(how, callback):
    """Leave a callback behind in one of the ways that there are."""
    if how == "robust":
        transaction.on_commit(callback, robust=True)
    elif how == "nested":
        transaction.on_commit(lambda: transaction.on_commit(callback))
    elif how == "in a block":
        with transaction.atomic():
            transaction.on_commit(callback)
    elif how == "in a savepoint of two":
        with transaction.atomic(), transaction.atomic():
            transaction.on_commit(callback)
    elif how == "on another database":
        with transaction.atomic(using="other"):
            transaction.on_commit(callback, using="other")
    elif how == "a partial":
        transaction.on_commit(functools.partial(callback))
    elif how == "by the connection":
        connections["default"].on_commit(callback)
    else:
        transaction.on_commit(callback)


HOWS = (
    *("plain", "robust", "nested", "in a block", "in a savepoint of two"),
    *("on another database", "a partial", "by the connection"),
)


class Office:
    """Handlers on one channel, which write down who they were and what they got."""

    def __init__(self, channel=None, **options):
        self.left, self.got = [], []
        self.registry = registry = Registry()

        @command_handler(name="leave", channel=channel, **options)
        def leave(command: Leave, own: Message, events: EventBus):
            def callback():
                events.publish(Left())
                registry.event_bus.publish(Heard())

            self.left.append(own)
            register(command.how, callback)

        @event_handler(name="at_once")
        def at_once(event: Left, own: Message, headers: Headers):
            self.got.append(("at once", headers["tenant"], own))

        @event_handler(name="later", channel="outbox")
        def later(event: Heard, own: Message, headers: Headers):
            self.got.append(("later", headers["tenant"], own))

        for each in (leave, at_once, later):
            registry.add(each)

    def dispatch(self, how, tenant):
        self.registry.command_bus.dispatch(Leave(how), headers={"tenant": tenant})

    def work(self):
        work(self.registry)

    def assert_inherited(self, *tenants):
        """Have every tenant's callback sent on what its own message had."""
        assert sorted((where, tenant) for where, tenant, _ in self.got) == sorted(
            (where, tenant) for where in ("at once", "later") for tenant in tenants
        )
        causes = {each.headers["tenant"]: each for each in self.left}
        for _, tenant, own in self.got:
            assert own.causation_id == causes[tenant].message_id
            assert own.correlation_id == causes[tenant].correlation_id


@pytest.mark.parametrize("how", HOWS)
def test_a_callback_sends_with_the_headers_of_its_message_where_it_is_handled_at_once(
    how,
):
    """What a command's handler leaves to ``on_commit`` is caused by that command."""
    office = Office()

    office.dispatch(how, "one")
    office.dispatch(how, "two")
    office.work()

    office.assert_inherited("one", "two")


@pytest.mark.parametrize("how", HOWS)
def test_a_callback_sends_with_the_headers_of_its_message_in_an_atomic_of_ones_own(how):
    """The commit comes after the last command, as with ATOMIC_REQUESTS."""
    office = Office()

    with transaction.atomic():
        office.dispatch(how, "one")
        with transaction.atomic():
            office.dispatch(how, "two")
    office.work()

    office.assert_inherited("one", "two")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "options",
    [{}, {"atomic": False}, {"using": "other"}],
    ids=["in the batch", "without a transaction", "on another database"],
)
def test_a_callback_sends_with_the_headers_of_its_message_in_a_worker(how, options):
    """A worker commits many messages at once: each callback is its own message's."""
    office = Office("outbox", **options)

    office.dispatch(how, "one")
    office.dispatch(how, "two")
    for alias in ("default", "other"):
        work(office.registry, using=alias)
    for alias in ("default", "other"):
        work(office.registry, using=alias)

    office.assert_inherited("one", "two")


@pytest.mark.parametrize("how", HOWS)
def test_a_callback_sends_with_the_headers_of_its_message_after_other_channels(
    how, settings
):
    """Of a message out of memory, and of one that is handled after the commit."""
    backends = ("InMemoryChannel", "OnCommitChannel")
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            **settings.DJANGO_CQRS["CHANNELS"],
            **{each: {"BACKEND": f"django_cqrs.channels.{each}"} for each in backends},
        }
    }
    for channel in backends:
        office = Office(channel)
        with transaction.atomic():
            office.dispatch(how, "one")
            office.dispatch(how, "two")
        if channel == "InMemoryChannel":
            with transaction.atomic():
                channels[channel].run()
        office.work()

        office.assert_inherited("one", "two")


def test_an_event_handlers_callback_is_caused_by_the_event():
    """A synchronous handler runs in the command's transaction, for its own message."""
    registry, heard, caught = Registry(), [], []

    @command_handler(name="begin")
    def begin(command: Leave, events: EventBus):
        events.publish(Left())

    @event_handler(name="middle")
    def middle(event: Left, own: Message):
        caught.append(own.message_id)
        transaction.on_commit(lambda: registry.event_bus.publish(Heard()))

    @event_handler(name="end")
    def end(event: Heard, own: Message):
        heard.append(own.causation_id)

    for each in (begin, middle, end):
        registry.add(each)
    with transaction.atomic():
        registry.command_bus.dispatch(Leave())

    assert heard == caught


def test_a_callback_outside_any_message_causes_a_first_message():
    """What nobody is handling belongs to no message, whoever is handled at commit."""
    office, first = Office(), []

    @event_handler(name="first")
    def note(event: Heard, own: Message):
        first.append((own.causation_id, dict(own.headers)["tenant"]))

    office.registry.add(note)
    with transaction.atomic():
        transaction.on_commit(
            lambda: office.registry.event_bus.publish(Heard(), headers={"tenant": "n"})
        )
        office.dispatch("plain", "one")

    assert first[0] == (None, "n")


def dropped(office):
    with transaction.atomic():
        office.dispatch("plain", "dropped")
        raise ZeroDivisionError


def test_a_callback_that_fails_in_a_savepoint_is_dropped_as_ever():
    """A rollback forgets what was registered in it."""
    office = Office()

    with transaction.atomic():
        office.dispatch("plain", "kept")
        with pytest.raises(ZeroDivisionError):
            dropped(office)
    office.work()

    assert {tenant for _, tenant, _ in office.got} == {"kept"}


def test_a_robust_callback_that_fails_is_logged_by_its_own_name(caplog):
    """Django's log names the function that was registered."""
    registry = Registry()

    def break_down():
        raise ZeroDivisionError

    @command_handler(name="leave")
    def leave(command: Leave):
        transaction.on_commit(break_down, robust=True)

    registry.add(leave)
    registry.command_bus.dispatch(Leave())

    [record] = caplog.records
    assert break_down.__qualname__ in record.getMessage()


def test_captured_callbacks_send_with_the_headers_of_their_message():
    """A test that runs the callbacks itself sees what production does."""
    office = Office()

    with transaction.atomic():
        with TestCase.captureOnCommitCallbacks(execute=True):
            office.dispatch("plain", "one")
        transaction.set_rollback(True)

    [(where, tenant, own)] = office.got
    assert (where, tenant) == ("at once", "one")
    assert own.causation_id == office.left[0].message_id


def test_a_callback_that_cannot_be_called_is_refused_as_ever():
    """Django's own words, at the call that registers it."""
    registry = Registry()

    @command_handler(name="leave")
    def leave(command: Leave):
        transaction.on_commit("no callable")

    registry.add(leave)
    with pytest.raises(TypeError, match=r"on_commit\(\)'s callback must be a callable"):
        registry.command_bus.dispatch(Leave())

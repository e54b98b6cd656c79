"""What becomes of a message that is given up: on_dead= and MessageGaveUp."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

import pytest
from django.db import IntegrityError, connection, transaction

from django_cqrs import (
    CommandBus,
    Header,
    Message,
    MessageGaveUp,
    Retry,
    Sensitive,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.channels import channels
from django_cqrs.checks import check_registry
from django_cqrs.documents import DocumentStore, document
from django_cqrs.interception import before, pointcut, pre_send
from django_cqrs.modelling import Saga, aggregate, saga
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, Reason
from django_cqrs.outbox.redaction import redact
from django_cqrs.outbox.store import replay
from django_cqrs.testing import Flow
from tests.outbox.support import (
    letters,
    on_databases,
    rows,
    work,
    worker_of,
)
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = on_databases

ONCE = Retry(attempts=1)


@pytest.fixture(autouse=True)
def _channels(settings):
    outbox = {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            "outbox": outbox,
            "other": outbox,
            "memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
            "commit": {"BACKEND": "django_cqrs.channels.OnCommitChannel"},
        }
    }


class Refused(Exception):
    """What a handler here raises on purpose."""


@message("given_up.charge")
@dataclass(frozen=True)
class Charge:
    order: int
    amount: Decimal = Decimal("1.50")
    card: Annotated[str, Sensitive()] = "4711-0815"


@message("given_up.charge_gave_up")
class ChargeGaveUp(MessageGaveUp):
    """The event of one handler."""


def charging(**policies):
    """Return a handler that fails on its channel."""

    @command_handler(name="charge", **{"channel": "outbox", "retry": ONCE, **policies})
    def charge(command: Charge) -> None:
        Note.objects.create(text="charged", number=command.order)
        raise Refused(f"no money on {command.card}")

    return charge


def hearing(seen, *, channel=None, name="hear", takes=MessageGaveUp, fails=False):
    """Return a handler of the event that writes to the database."""

    def hear(event, message: Message) -> None:
        Note.objects.create(text=name, number=event.dead_letter_id)
        seen.append((event, message))
        if fails:
            raise Refused(name)

    hear.__annotations__["event"] = takes
    return event_handler(name=name, channel=channel, retry=channel and ONCE)(hear)


def send(registry, *orders, **options):
    for order in orders:
        registry.command_bus.dispatch(Charge(order), **options)


def texts():
    return sorted(Note.objects.values_list("text", flat=True))


# ------------------------------------------------------------------------- the event


@pytest.mark.parametrize("channel", [None, "outbox"], ids=["at once", "channel"])
def test_the_event_says_what_was_given_up(channel):
    """At once and behind a channel it is equal, the payload an object again."""
    seen = []
    registry = registry_of(charging(), hearing(seen, channel=channel))
    send(registry, 7, headers={"user": "ada"})
    [row] = rows()

    work(registry)

    [letter] = letters()
    [(event, heard)] = seen
    assert event == MessageGaveUp(
        endpoint="charge",
        payload=Charge(7),
        name="given_up.charge",
        headers={"user": "ada"},
        exception=f"{__name__}.Refused",
        error="no money on ••••••",
        attempts=1,
        reason="failed",
        dead_letter_id=letter.pk,
        message_id=row.message_id,
        channel="outbox",
    )
    assert isinstance(event.payload.amount, Decimal)
    assert heard.causation_id == row.message_id
    assert heard.correlation_id == row.correlation_id
    assert heard.headers["user"] == "ada"
    assert texts() == ["hear"]
    assert rows() == []


def test_its_message_has_the_chain_of_those_given_up():
    """The header says whose messages were given up before, and is passed on."""
    seen = []
    registry = registry_of(charging(), hearing(seen))
    send(registry, 7)

    work(registry)

    assert seen[0][1].headers["django_cqrs.gave_up"] == "charge"


def test_nobody_is_told_while_attempts_are_left():
    """Nor of a message that is dropped: only a dead letter tells."""
    seen = []
    for policy in (Retry(attempts=2, delay=600), Retry(on=lambda error: "drop")):
        registry = registry_of(charging(retry=policy), hearing(seen))
        send(registry, 7)
        work(registry)

    assert (seen, letters()) == ([], [])


def broken(sent, reason):
    """Return the columns that make a stored message unreadable in one way."""
    return {
        Reason.UNDECODABLE: {"payload": b'{"order": "seven"}'},
        Reason.UNKNOWN_MESSAGE: {"name": "given_up.gone"},
        Reason.UNKNOWN_ENDPOINT: {"endpoint": "gone"},
        "text": {"payload": b"\xffnot JSON"},
    }[reason]


@pytest.mark.parametrize(
    ("reason", "payload"),
    [
        (Reason.UNDECODABLE, {"order": "seven"}),
        (
            Reason.UNKNOWN_MESSAGE,
            {"order": 7, "amount": "1.50", "card": "4711-0815"},
        ),
        (Reason.UNKNOWN_ENDPOINT, Charge(7)),
        ("text", "\\xffnot JSON"),
    ],
    ids=str,
)
@pytest.mark.parametrize("channel", [None, "outbox"], ids=["at once", "channel"])
def test_a_message_that_cannot_be_read_is_told_of_too(reason, payload, channel):
    """Its payload is what was stored, or the object where its class is known."""
    seen = []
    registry = registry_of(charging(), hearing(seen, channel=channel))
    send(registry, 7)
    OutboxMessage.objects.update(**broken(rows()[0], reason))

    work(registry)

    [(event, _)] = seen
    assert event.payload == payload
    assert event.reason == letters()[0].reason
    assert event.endpoint == letters()[0].endpoint
    assert event.attempts == 1


def test_a_value_sent_by_a_key_is_a_value_again():
    """Only its handler's annotation says that it is a decimal number."""
    seen = []

    @command_handler("pay", name="pay", channel="outbox", retry=ONCE)
    def pay(amount: Decimal) -> None:
        raise Refused

    registry = registry_of(
        pay, hearing(seen), hearing(seen, name="b", channel="outbox")
    )
    registry.command_bus.dispatch(Decimal("1.50"), route="pay")

    work(registry)

    assert [repr(event.payload) for event, _ in seen] == [repr(Decimal("1.50"))] * 2


# ------------------------------------------------------------------------- who is told


@pytest.mark.parametrize("kind", ["command", "event", "pattern"])
@pytest.mark.parametrize("channel", [None, "outbox"], ids=["at once", "channel"])
def test_on_dead_names_a_route(kind, channel):
    """A command, or an event by its name, gets the event beside its own handlers."""
    seen, all_seen = [], []
    decorate = command_handler if kind == "command" else event_handler
    key = "charge.*" if kind == "pattern" else "charge.failed"

    @decorate(key, name="refund", channel=channel)
    def refund(event: MessageGaveUp, message: Message) -> None:
        seen.append((event.payload, message.causation_id))

    registry = registry_of(charging(on_dead="charge.failed"), refund, hearing(all_seen))
    send(registry, 7)
    [row] = rows()

    work(registry)

    assert seen == [(Charge(7), row.message_id)]
    assert [event.payload for event, _ in all_seen] == [Charge(7)]


@pytest.mark.parametrize("channel", [None, "outbox"], ids=["at once", "channel"])
def test_on_dead_names_a_class(channel):
    """It is published in the event's place, so handlers of both classes get one."""
    seen, all_seen, others = [], [], []
    registry = registry_of(
        charging(on_dead=ChargeGaveUp),
        hearing(seen, name="own", takes=ChargeGaveUp, channel=channel),
        hearing(all_seen, name="all"),
        hearing(others, name="other", takes=Charge),
    )
    send(registry, 7)

    work(registry)

    assert [type(event) for event, _ in seen] == [ChargeGaveUp]
    assert [type(event) for event, _ in all_seen] == [ChargeGaveUp]
    assert others == []


def test_a_flow_sees_the_event_without_a_handler():
    """A test asks what would be told."""
    registry = registry_of(charging())
    with Flow(registry=registry) as flow:
        send(registry, 7)
        work(registry)

    [event] = flow.published
    assert (event.endpoint, event.payload) == ("charge", Charge(7))
    assert len(letters()) == 1


def test_interceptors_stand_around_those_who_are_told():
    """As around every handler of an event, before a channel as well."""
    seen = []

    @before(pointcut.message(MessageGaveUp))
    def check(event: MessageGaveUp) -> None:
        seen.append("before")

    @pre_send(pointcut.message(MessageGaveUp))
    def stamp(event: MessageGaveUp) -> None:
        seen.append("pre_send")

    registry = registry_of(
        charging(), hearing([]), hearing([], name="b", channel="outbox"), check, stamp
    )
    send(registry, 7)

    work(registry)

    assert sorted(seen) == ["before", "before", "pre_send"]


# ------------------------------------------------------------------- both or neither


def test_a_dead_letter_that_is_rolled_back_was_not_told_of(monkeypatch):
    """Its handlers' writes and messages are undone with it; then both are there once."""
    seen = []
    registry = registry_of(
        charging(), hearing(seen), hearing([], name="later", channel="other")
    )
    send(registry, 7)
    worker, fails = worker_of(registry), [True]
    handler = worker._handler
    settle = handler._settle

    def settle_and_fail(owner, batch):
        settle(owner, batch)
        if batch.failures and fails:
            fails.clear()
            raise IntegrityError

    monkeypatch.setattr(handler, "_settle", settle_and_fail)

    worker.run()

    assert len(seen) == 2  # the first in vain
    assert texts() == ["hear"]
    assert [letter.endpoint for letter in letters()] == ["charge"]
    assert [row.endpoint for row in rows()] == ["later"]


def test_a_crash_while_a_handler_is_told_leaves_neither():
    """Nothing of the burial is committed, and the message is tried again later."""
    seen = []

    class Crash(BaseException):
        pass

    @event_handler(name="crash")
    def crash(event: MessageGaveUp) -> None:
        Note.objects.create(text="crash", number=1)
        seen.append(event)
        raise Crash

    registry = registry_of(charging(), crash)
    send(registry, 7)
    with pytest.raises(Crash):
        work(registry)

    assert (letters(), texts()) == ([], [])
    assert [row.endpoint for row in rows()] == ["charge"]


def test_a_handler_that_always_kills_its_worker_does_so_only_so_often():
    """
    The message becomes poison; then its handlers at once are told by messages.

    Those have the protection of every message: in the end one is a dead letter itself.
    """

    class Crash(BaseException):
        pass

    @event_handler(name="crash")
    def crash(event: MessageGaveUp) -> None:
        raise Crash

    registry = registry_of(charging(retry=Retry(attempts=2, delay=0)), crash)
    send(registry, 7)
    crashes = 0
    while rows() and crashes < 20:
        with contextlib.suppress(Crash):
            work(registry)
            break
        crashes += 1

    assert [(letter.endpoint, letter.reason) for letter in letters()] == [
        ("charge", Reason.POISON),
        ("crash", Reason.POISON),
    ]
    assert rows() == []
    assert crashes < 20


# --------------------------------------------------------------------------- failures


@pytest.mark.parametrize("channel", [None, "outbox"], ids=["at once", "channel"])
def test_a_handler_that_fails_has_a_dead_letter_of_its_own(channel):
    """The burial stands, the others are told, the worker goes on, and that is all."""
    seen = []
    registry = registry_of(
        charging(),
        hearing(seen, name="a", channel=channel, fails=True),
        hearing(seen, name="b"),
    )
    send(registry, 7, 8)

    work(registry)

    assert sorted(letter.endpoint for letter in letters()) == [
        "a",
        "a",
        "charge",
        "charge",
    ]
    assert texts() == ["b", "b"]
    assert rows() == []
    own = next(letter for letter in letters() if letter.endpoint == "a")
    assert own.name == "django_cqrs.message_gave_up"
    assert own.error == "a"
    assert own.reason == Reason.FAILED
    assert own.channel == "outbox"
    assert json.loads(bytes(own.payload))["payload"]["order"] in (7, 8)


def test_a_dead_letter_of_a_handler_at_once_can_be_replayed():
    """It is then handled by the worker, from the channel of the first message."""
    fails, seen = [True], []

    @event_handler(name="hear")
    def hear(event: MessageGaveUp) -> None:
        seen.append(event.payload)
        if fails:
            raise Refused

    registry = registry_of(charging(), hear)
    send(registry, 7)
    work(registry)
    fails.clear()

    replay(DeadLetter.objects.filter(endpoint="hear"), using="default")
    work(registry)

    assert seen == [Charge(7)] * 2
    assert [letter.endpoint for letter in letters()] == ["charge"]


def ends_by_commit(event):
    Note.objects.create(text="committed", number=1)
    connection.cursor().execute("COMMIT")


def ends_by_rollback(event):
    connection.cursor().execute("ROLLBACK")


def ends_by_closing(event):
    connection.close()


def breaks_by_an_error(event):
    with contextlib.suppress(IntegrityError):
        for text in "ab":
            Note(pk=5, text=text, number=1).save(force_insert=True)


@pytest.mark.parametrize(
    "act", [ends_by_commit, ends_by_rollback, ends_by_closing, breaks_by_an_error]
)
def test_a_handler_that_ends_the_transaction_undoes_no_burial(act):
    """It gets a dead letter, the other handlers are told, and the worker goes on."""
    seen = []

    @event_handler(name="end", priority=1)
    def end(event: MessageGaveUp) -> None:
        act(event)

    registry = registry_of(charging(), end, hearing(seen))
    send(registry, 7, 8)

    work(registry)

    found = sorted(letter.endpoint for letter in letters())
    assert found == ["charge", "charge", "end", "end"]
    assert texts().count("hear") == 2
    assert rows() == []


def test_a_message_that_cannot_be_sent_to_a_channel_is_a_dead_letter():
    """A key that cannot be read concerns that handler alone."""

    def no_key(message):
        raise Refused("no key")

    @event_handler(name="ordered", channel="outbox", ordering_key=no_key)
    def ordered(event: MessageGaveUp) -> None: ...

    seen = []
    registry = registry_of(charging(), ordered, hearing(seen))
    send(registry, 7)

    work(registry)

    assert sorted(each.endpoint for each in letters()) == ["charge", "ordered"]
    assert len(seen) == 1


# ------------------------------------------------------------------------------ loops


def test_no_event_is_sent_about_the_event():
    """A dead handler of it does not call itself; its own on_dead= is told."""
    seen, told = [], []

    @event_handler(name="a", channel="outbox", retry=ONCE, on_dead="last.resort")
    def a(event: MessageGaveUp) -> None:
        seen.append(event.endpoint)
        raise Refused

    @command_handler("last.resort", name="last")
    def last(event: MessageGaveUp) -> None:
        told.append((event.endpoint, type(event.payload)))

    registry = registry_of(charging(), a, last)
    send(registry, 7)

    work(registry)

    assert seen == ["charge"]
    assert told == [("a", MessageGaveUp)]
    assert [letter.endpoint for letter in letters()] == ["charge", "a"]


@pytest.mark.parametrize("on_dead", [None, "again"], ids=["event", "on_dead"])
def test_a_handler_that_sends_what_fails_again_ends_too(on_dead):
    """Whose messages were given up in a chain, of those nobody is told again."""
    seen = []
    decorate = event_handler(name="again")
    if on_dead is not None:
        decorate = command_handler("again", name="again")

    @decorate
    def again(event: MessageGaveUp, commands: CommandBus) -> None:
        seen.append(event.payload.order)
        commands.dispatch(Charge(event.payload.order + 1))

    registry = registry_of(charging(on_dead=on_dead), again)
    send(registry, 7)

    work(registry)

    assert seen == [7]
    assert [json.loads(bytes(each.payload))["order"] for each in letters()] == [7, 8]


# ------------------------------------------------------------------------- operations


def test_a_bulk_of_messages_is_given_up_one_by_one():
    """Each with its own event; what was handled between them stays handled."""
    seen = []

    @command_handler("good", name="good", channel="outbox")
    def good(number: int) -> None:
        Note.objects.create(text="good", number=number)

    registry = registry_of(
        charging(),
        good,
        hearing(seen, name="odd"),
        hearing([], name="later", channel="other"),
    )
    with transaction.atomic():
        for number in range(30):
            send(registry, number)
            registry.command_bus.dispatch(number, route="good")

    tally = work(registry)

    assert (tally.handled, tally.failed, tally.dead) == (30, 30, 30)
    assert sorted(event.payload.order for event, _ in seen) == list(range(30))
    assert [event.dead_letter_id for event, _ in seen] == [
        letter.pk for letter in letters()
    ]
    assert texts() == ["good"] * 30 + ["odd"] * 30
    assert [row.endpoint for row in rows()] == ["later"] * 30


def test_the_rest_of_a_key_waits_behind_a_message_given_up():
    """As behind every dead letter."""
    seen = []
    registry = registry_of(charging(ordering_key="order"), hearing(seen))
    send(registry, 7, 7, 8)

    work(registry)

    assert [event.payload.order for event, _ in seen] == [7, 8]
    assert len(rows()) == 1


def test_operators_see_nothing_of_the_event_that_the_letter_would_hide():
    """Its payload and its headers are masked as a whole; the letter shows the rest."""
    registry = registry_of(
        charging(), hearing([], name="b", channel="outbox", fails=True)
    )
    send(registry, 7, headers={"card": "4711-0815"})

    worker = worker_of(registry, bounds={"until_empty": False, "messages": 1})
    worker.run()
    [row] = rows()
    shown = redact(row, registry)

    assert b"4711-0815" in bytes(row.payload)  # the handler needs it
    assert "4711" not in shown.text
    assert "4711" not in shown.headers_of(row)
    assert '"endpoint":"charge"' in shown.text

    work(registry)
    own = next(letter for letter in letters() if letter.endpoint == "b")
    assert "4711" not in redact(own, registry).text


def test_an_application_without_such_handlers_writes_letters_as_before(monkeypatch):
    """They are written with the batch, without a look at any handler."""
    registry = registry_of(charging())
    monkeypatch.setattr(
        "django_cqrs.outbox.worker.burials.gave_up", lambda *_: pytest.fail("told")
    )
    send(registry, 7, 8)

    tally = work(registry)

    assert (tally.dead, len(letters())) == (2, 2)


def test_a_handler_that_is_broken_has_a_dead_letter_of_its_own():
    """The others are told, and the letter can be replayed when it is sound."""
    seen = []

    @event_handler(name="broken", priority=1)
    def unfillable(event: MessageGaveUp, number: int) -> None: ...

    registry = registry_of(charging(), unfillable, hearing(seen))
    send(registry, 7)

    work(registry)

    assert sorted(each.endpoint for each in letters()) == ["broken", "charge"]
    assert len(seen) == 1


# -------------------------------------------------------------- sagas, other channels


@saga(identifier="order")
@document("given_up.rescue")
@dataclass(kw_only=True)
class Rescue(Saga):
    """It is told that its charge is given up."""

    order: int
    reason: str = ""

    @event_handler(identifier=lambda message: message.payload.payload.order)
    def fail(self, event: MessageGaveUp) -> None:
        self.reason = event.reason


@saga(identifier="order")
@document("given_up.later_rescue")
@dataclass(kw_only=True)
class LaterRescue(Saga):
    """The same, on a channel."""

    order: int
    reason: str = ""

    @event_handler(
        channel="outbox", identifier=lambda message: message.payload.payload.order
    )
    def fail(self, event: MessageGaveUp) -> None:
        self.reason = event.reason


@pytest.mark.parametrize("cls", [Rescue, LaterRescue], ids=["at once", "channel"])
def test_a_saga_takes_the_event(cls):
    """It is saved with the dead letter, or by its own message."""
    registry = registry_of(charging(), cls)
    DocumentStore(cls).upsert(7, cls(order=7))
    send(registry, 7)

    work(registry)

    found = DocumentStore(cls).get(7)
    assert (found.order, found.reason) == (7, "failed")
    assert [letter.endpoint for letter in letters()] == ["charge"]


@pytest.mark.parametrize("channel", [None, "memory"], ids=["at once", "channel"])
def test_the_channel_in_memory_tells_as_the_outbox_does(channel):
    """There is no dead letter that the event could name."""
    seen = []

    @command_handler(name="charge", channel="memory", retry=Retry(attempts=2, delay=0))
    def charge(command: Charge) -> None:
        raise Refused("no")

    @event_handler(name="hear", channel=channel)
    def hear(event: MessageGaveUp, message: Message) -> None:
        Note.objects.create(text="hear", number=event.payload.order)
        seen.append((event, message))

    registry = registry_of(charge, hear)
    with Flow(registry=registry) as flow:
        send(registry, 7)
        [envelope] = channels["memory"].waiting()
        for _ in range(2):
            with pytest.raises(Refused):
                channels["memory"].run()
        channels["memory"].run()

    [(event, heard)] = seen
    assert event == MessageGaveUp(
        endpoint="charge",
        payload=Charge(7),
        name="given_up.charge",
        exception=f"{__name__}.Refused",
        error="no",
        attempts=2,
        message_id=envelope.message_id,
        channel="memory",
    )
    assert heard.causation_id == envelope.message_id
    assert [each.payload for each in flow.published] == [Charge(7)]
    assert texts() == ["hear"]


def test_a_handler_that_fails_keeps_nothing_from_the_others_in_memory():
    """All are told, as by the outbox. The test then sees the first exception."""

    @event_handler(name="a")
    def fail(event: MessageGaveUp) -> None:
        Note.objects.create(text="undone", number=1)
        raise Refused("first")

    @event_handler(name="b")
    def hear(event: MessageGaveUp) -> None:
        Note.objects.create(text="heard", number=2)

    registry = registry_of(charging(channel="memory"), fail, hear)
    send(registry, 7)

    with pytest.raises(Refused, match=r"^first$"):
        channels["memory"].run()

    assert texts() == ["heard"]
    assert channels["memory"].run() == 0


def test_a_message_dropped_from_the_channel_in_memory_is_not_told_of():
    """As on the outbox, only one that would be a dead letter is."""
    seen = []
    for policy in (Retry(attempts=1, final_failure="drop"), Retry(on=lambda _: "drop")):

        @command_handler(name="charge", channel="memory", retry=policy)
        def charge(command: Charge) -> None:
            raise Refused

        registry = registry_of(charge, hearing(seen))
        send(registry, 7)
        with pytest.raises(Refused):
            channels["memory"].run()

    assert seen == []


# ----------------------------------------------------------------------------- checks


class Unrelated:
    """No event about a message."""


@message("given_up.demanding")
@dataclass(frozen=True, kw_only=True)
class Demanding(MessageGaveUp):
    """One that nobody can make."""

    more: int


class Nameless(MessageGaveUp):
    """One that no channel can store."""


@command_handler("takes.another", name="another")
def takes_another(command: Charge) -> None: ...


@aggregate
@document("given_up.bill")
@dataclass
class Bill:
    bill_id: str

    @command_handler("bill.note")
    def note(self, event: MessageGaveUp) -> None: ...

    @command_handler("bill.clear")
    def clear(self) -> None: ...

    @event_handler("bill.hear")
    def hear(self, event: MessageGaveUp) -> None: ...

    @command_handler("bill.field", identifier="message_id")
    def by_field(self, event: MessageGaveUp) -> None: ...

    @command_handler("bill.header", identifier={"bill_id": Header("bill")})
    def by_header(self, event: MessageGaveUp) -> None: ...

    @command_handler("bill.function", identifier=lambda message: "1")
    def by_function(self, event: MessageGaveUp) -> None: ...

    @command_handler("bill.open")
    @classmethod
    def open(cls, event: MessageGaveUp) -> Bill:
        return cls(event.error)


UNKNOWN = [
    (
        "takes.anothr",
        "'takes.anothr', and no handler of a command or an event takes it.",
        "Did you mean 'takes.another'?",
    ),
    (
        "takes.another",
        f"'takes.another', but {__name__}.takes_another does not take MessageGaveUp.",
        "Annotate its first parameter with MessageGaveUp.",
    ),
    (
        Unrelated,
        "Unrelated, which is not a subclass of MessageGaveUp.",
        "Derive it: class Unrelated(MessageGaveUp), or give a key.",
    ),
    (
        MessageGaveUp,
        "MessageGaveUp, which is sent for every message that is given up.",
        "Remove on_dead=, or derive a class of your own.",
    ),
    (
        ChargeGaveUp,
        "ChargeGaveUp, and no handler of a command or an event takes it.",
        "Write one, or fix it.",
    ),
    (
        Nameless,
        "Nameless, which has no stored name: it does not belong to an installed app.",
        "Name it with @message.",
    ),
]


@pytest.mark.parametrize(("on_dead", "said", "hint"), UNKNOWN, ids=str)
def test_E050_an_on_dead_that_names_nobody(on_dead, said, hint):
    """It is reported where it is written; nothing would be told."""
    [found] = check_registry(registry_of(charging(on_dead=on_dead), takes_another))

    assert found.id == "django_cqrs.E050"
    assert found.msg.endswith(f"has on_dead={said}")
    assert found.hint == hint


def test_E050_accepts_handlers_of_every_given_up_message():
    """A handler of MessageGaveUp is told of its subclasses too, so it takes them."""
    registry = registry_of(
        charging(on_dead=ChargeGaveUp),
        hearing([], takes=ChargeGaveUp, name="own"),
        hearing([], channel="other", name="all"),
    )

    assert check_registry(registry) == []


def test_E019_accepts_on_dead_where_tests_handle_messages_at_once(settings):
    """As with retry=: a suite that makes channels immediate keeps its handlers."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            "outbox": {"BACKEND": "django_cqrs.channels.ImmediateChannel"},
        }
    }
    seen = []
    registry = registry_of(
        charging(on_dead=ChargeGaveUp), hearing(seen, takes=ChargeGaveUp)
    )

    assert check_registry(registry) == []
    with pytest.raises(Refused):
        send(registry, 1)
    assert seen == []  # its sender has the exception: the message is not given up


@pytest.mark.parametrize("name", ["note", "clear", "hear"])
def test_E050_a_handler_of_an_object_that_cannot_be_identified(name):
    """A MessageGaveUp does not say whose it is, unless the handler does."""
    [found] = check_registry(registry_of(charging(on_dead=f"bill.{name}"), Bill))

    assert found.id == "django_cqrs.E050"
    assert found.msg.endswith(
        f"has on_dead='bill.{name}', but {__name__}.Bill.{name} cannot find its "
        "object: MessageGaveUp has no bill_id."
    )
    assert found.hint == "Give that handler an identifier=, such as a Header."


@pytest.mark.parametrize("name", ["field", "header", "function", "open"])
def test_E050_accepts_a_handler_that_can_identify_its_object(name):
    """Its identifier= may be in the message, and a factory needs none."""
    registry = registry_of(charging(on_dead=f"bill.{name}"), Bill)

    assert check_registry(registry) == []


def test_E050_a_class_that_cannot_be_made():
    """Its own fields need defaults."""
    registry = registry_of(
        charging(on_dead=Demanding), hearing([], takes=Demanding, name="d")
    )
    [found] = check_registry(registry)

    assert found.id == "django_cqrs.E050"
    assert "Demanding, which cannot be created" in found.msg


@pytest.mark.parametrize(
    ("policies", "number"),
    [
        ({"channel": None, "retry": None}, "E019"),
        ({"channel": "commit", "retry": None}, "E019"),
        ({"on_dead": 5}, "E024"),
        ({"on_dead": ""}, "E024"),
    ],
    ids=str,
)
def test_on_dead_where_nothing_dies_and_values_that_are_none(policies, number):
    """Each is one check; the handler is named."""

    @command_handler(
        name="charge", **{"channel": "outbox", "on_dead": "a.key", **policies}
    )
    def charge(command: Charge) -> None: ...

    @command_handler("a.key", name="key")
    def key(event: MessageGaveUp) -> None: ...

    [found] = check_registry(registry_of(charge, key))

    assert found.id == f"django_cqrs.{number}"
    assert "on_dead=" in found.msg


@pytest.mark.parametrize("length", [1, 3])
def test_E051_a_cycle_of_dead_handlers(length):
    """Each of them is reported, with the way back; other handlers are not."""
    registry = registry_of()
    for number in range(length):

        def handle(event: MessageGaveUp) -> None: ...

        handle.__qualname__ = f"handle_{number}"
        registry.add(
            command_handler(
                f"dead.{number}",
                name=f"dead.{number}",
                channel="outbox",
                on_dead=f"dead.{(number + 1) % length}",
            )(handle)
        )
    registry.add(charging(on_dead="dead.0"))

    found = check_registry(registry)

    assert [each.id for each in found] == ["django_cqrs.E051"] * length
    way = " to ".join(
        f"{__name__}.handle_{number % length}" for number in range(length + 1)
    )
    assert found[0].msg == (
        f"The on_dead= of {__name__}.handle_0 leads back to it: {way}."
    )
    assert found[0].hint == "Let one of them name a handler without on_dead=."

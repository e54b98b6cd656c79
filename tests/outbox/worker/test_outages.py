"""Outages: what would fail every message of a channel is held against none of them."""

from __future__ import annotations

import errno
import logging
import sqlite3
import traceback
from dataclasses import dataclass
from typing import Annotated

import pytest
from django.db import (
    DatabaseError,
    InterfaceError,
    InternalError,
    OperationalError,
    connection,
    connections,
    transaction,
)

from django_cqrs import Registry, Retry, Sensitive, command_handler, message
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.worker.outages import (
    ALIKE,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    OWN,
    Outages,
    is_outage,
)
from tests.outbox.support import (
    letters,
    make_due,
    numbers,
    on_a_server,
    on_databases,
    on_postgresql,
    rows,
    send,
    work,
)
from tests.outbox.work import OtherWork, Work
from tests.testapp.models import Note

pytestmark = on_databases

AT_ONCE = Retry(attempts=2, delay=0, jitter=False)


class ServerError(Exception):
    def __init__(self, sqlstate):
        super().__init__()
        self.sqlstate = sqlstate


def caused(error, cause):
    error.__cause__ = cause
    return error


def of_sqlite(name):
    cause = sqlite3.OperationalError()
    cause.sqlite_errorname = name
    return caused(OperationalError("of SQLite"), cause)


def wrapped(error):
    """Return what a handler makes of an error that it does not know what to do with."""
    return caused(ValueError("the payment failed"), error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *(
            (caused(OperationalError(), ServerError(state)), True)
            for state in ("53000", "53100", "53200", "53300", "58000", "58030")
        ),
        (caused(InternalError(), ServerError("25006")), True),
        *(
            (OperationalError(code, "of MySQL"), True)
            for code in (3, 1021, 1040, 1041, 1114, 1203, 1792, 1836)
        ),
        (InternalError(1021, "Disk full"), True),
        (OperationalError(1290, "running with the --read-only option"), True),
        (OperationalError(1290, "the --secure-file-priv option"), False),
        (OperationalError(1030, 'Got error 28 "No space left on device"'), True),
        (OperationalError(1030, "Got error 1 from storage engine"), False),
        *(
            (of_sqlite(name), True)
            for name in ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_READONLY_DBMOVED")
        ),
        *(
            (of_sqlite(name), True)
            for name in ("SQLITE_IOERR_WRITE", "SQLITE_CANTOPEN")
        ),
        *((of_sqlite(name), False) for name in ("SQLITE_BUSY", "SQLITE_ERROR")),
        *(
            (OSError(number, "of the system"), True)
            for number in (errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ENFILE)
        ),
        (OSError(errno.ENOENT, "no such file"), False),
        (wrapped(OSError(errno.ENOSPC, "no space")), True),
        (ExceptionGroup("two", [OSError(errno.ENOSPC, "no space")]), True),
        (caused(OperationalError(), ServerError("40P01")), False),
        (DatabaseError(1021, "Disk full"), True),
        (InterfaceError("closed"), False),
        (ValueError(1021), False),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), False),
    ],
)
def test_an_outage_is_told_by_the_code_of_the_error(error, expected):
    """A full disk, a read-only database, no connections left; of any server or disk."""
    assert is_outage(error) is expected


class Scene:
    """Two handlers on one channel, of which any may fail; and what they did."""

    def __init__(self, retry=AT_ONCE):
        self.errors = {}
        self.tried = []
        self.registry = Registry()
        self.now = 1_000.0
        self.outages = Outages(clock=lambda: self.now)
        for name, kind in (("do", Work), ("other", OtherWork)):
            self._add(name, kind, retry)

    def _add(self, name, kind, retry):
        def handle(command):
            self.tried.append((name, command.number))
            error = self.errors.get(name) or self.errors.get((name, command.number))
            if error is not None:
                raise error
            Note.objects.create(text=name, number=command.number)

        handle.__annotations__ = {"command": kind}
        self.registry.add(
            command_handler(
                name=name,
                channel="outbox",
                retry=retry,
                ordering_key=lambda message: (
                    "key" if getattr(message.payload, "how", "") == "keyed" else None
                ),
            )(handle)
        )

    def send(self, *numbers, kind=Work):
        for number in numbers:
            self.registry.command_bus.dispatch(kind(number))

    def work(self):
        return work(self.registry, outages=self.outages)

    def pass_time(self):
        """Have the pause be over, and what waits for that be due."""
        self.now += LONGEST_PAUSE
        make_due()


def full():
    return OSError(errno.ENOSPC, "No space left on device")


def test_an_outage_pauses_the_channel_and_counts_no_attempt(caplog):
    """However long it lasts: one message a pause is tried, and none is a dead letter."""
    scene = Scene()
    scene.errors = {"do": full(), "other": full()}
    scene.send(*range(20))
    scene.send(*range(20), kind=OtherWork)

    for _ in range(6):
        scene.work()
        scene.pass_time()

    assert len(scene.tried) == 6
    assert letters() == []
    assert [row.attempts for row in rows()] == [0] * 40
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.messages == [
        (
            "Channel 'outbox' pauses: do failed with OSError: [Errno 28] No space left on "
            "device. Other messages would fail in the same way, so their attempts are not counted; "
            "one is retried in 1.0 s, then less and less often"
        )
    ]
    assert caplog.records[0].exc_info is None


def test_the_end_of_an_outage_is_one_line_and_everything_is_handled(caplog):
    """All that waited, in one go, with all attempts left."""
    scene = Scene()
    scene.errors = {"do": full()}
    scene.send(*range(5))
    scene.work()
    scene.pass_time()
    scene.work()
    scene.errors = {}
    scene.pass_time()

    tally = scene.work()

    assert sorted(numbers()) == [0, 1, 2, 3, 4]
    assert (tally.handled, tally.failed) == (5, 0)
    assert rows() == []
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert caplog.messages[1] == ("Channel 'outbox' resumes: do works again after 60 s")
    assert scene.outages.now == {}


def test_the_pause_between_two_tries_grows_up_to_a_bound():
    """It is doubled after every try that fails."""
    scene = Scene()
    scene.errors = {"do": full()}
    scene.send(*range(3))
    pauses = []

    for _ in range(8):
        scene.work()
        pauses.append(scene.outages.now["outbox"].pause)
        scene.pass_time()

    assert pauses == [FIRST_PAUSE * 2**n for n in range(5)] + [LONGEST_PAUSE] * 3


def test_a_handler_that_an_outage_does_not_reach_goes_on():
    """Of the handlers that failed, messages are set aside and not even tried."""
    scene = Scene()
    scene.errors = {"do": full()}
    scene.send(*range(10))
    scene.send(*range(10), kind=OtherWork)
    OutboxMessage.objects.filter(endpoint="other").update(priority=-1)

    scene.work()
    OutboxMessage.objects.filter(endpoint="other").update(priority=1)
    scene.now += LONGEST_PAUSE  # the try finds one that works
    tally = scene.work()

    assert sorted(numbers()) == list(range(10))
    assert [name for name, _ in scene.tried].count("do") == 2
    assert (tally.failed, tally.dead) == (1, 0)
    assert {row.attempts for row in rows()} == {0}
    assert {row.last_error for row in rows()} == {
        "OSError: [Errno 28] No space left on device"
    }


def test_a_message_that_fails_alone_uses_up_its_attempts():
    """Where others of its handler go well in between, the failure is its own."""
    scene = Scene()
    scene.errors = {("do", 0): full()}
    scene.send(0)

    for number in range(1, OWN + 3):
        scene.work()
        scene.send(number)
        scene.now += LONGEST_PAUSE
        scene.work()
        scene.pass_time()
    scene.work()

    assert sorted(numbers()) == list(range(1, OWN + 3))
    assert [letter.attempts for letter in letters()] == [2]


def test_messages_of_several_handlers_that_fail_alike_in_a_row_are_an_outage():
    """A server of which no code says that it is away; before that, attempts count."""
    scene = Scene(Retry(attempts=2, delay=3600))
    gone = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    scene.errors = {"do": gone, "other": gone}
    for number in range(ALIKE):
        scene.send(number, kind=(Work, OtherWork)[number % 2])
    scene.send(8, 9)

    scene.work()
    scene.pass_time()
    scene.work()

    assert [row.attempts for row in rows()] == [1] * (ALIKE - 1) + [0] * 3
    assert letters() == []


@pytest.mark.parametrize(
    ("errors", "kinds"),
    [
        ({"do": ConnectionRefusedError("no")}, (Work,)),
        ({"do": ValueError("no"), "other": ValueError("no")}, (Work, OtherWork)),
        (
            {"do": ConnectionRefusedError("no"), "other": TimeoutError("no")},
            (Work, OtherWork),
        ),
    ],
    ids=["one handler", "a mistake", "of two kinds"],
)
def test_failures_that_say_nothing_of_others_use_up_attempts(errors, kinds):
    """Those of one handler, of a mistake in the code, or of different kinds."""
    scene = Scene()
    scene.errors = errors
    for number in range(2 * ALIKE):
        scene.send(number, kind=kinds[number % len(kinds)])

    for _ in range(3):
        scene.work()

    assert len(letters()) == 2 * ALIKE
    assert scene.outages.now == {}


def test_an_outage_keeps_the_order_of_a_key():
    """What it has hit stays before what was sent after it."""
    scene = Scene()
    scene.errors = {"do": full()}
    for number in range(3):
        scene.registry.command_bus.dispatch(Work(number, "keyed"))
    scene.work()
    scene.errors = {}
    scene.outages.now.clear()

    scene.work()
    assert numbers() == []
    make_due()
    scene.work()

    assert numbers() == [0, 1, 2]


def test_a_read_only_database_pauses_the_channel():
    """By the error of the server itself."""
    on_postgresql()
    registry = Registry()
    tried = []

    @registry.add
    @command_handler(name="do", channel="outbox", retry=AT_ONCE)
    def do(command: Work):
        tried.append(command.number)
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
        Note.objects.create(text="refused")

    send(registry, 1, 2, 3)
    work(registry)

    assert tried == [1]
    assert [(row.state, row.attempts) for row in rows()] == [
        (State.DELAYED, 0),
        (State.READY, 0),
        (State.READY, 0),
    ]


def test_a_handlers_database_that_is_away_pauses_the_channel(monkeypatch):
    """It is asked whether there is a connection; a lost one alone is no outage."""
    on_a_server()
    registry = Registry()
    other = connections["other"]

    @registry.add
    @command_handler(name="do", channel="outbox", retry=AT_ONCE, using="other")
    def do(command: Work):
        Note.objects.using("other").create(text="there", number=command.number)

    send(registry, 1, 2, using="default")
    other.close()
    with monkeypatch.context() as patch:
        patch.setitem(other.settings_dict, "HOST", "127.0.0.1")
        patch.setitem(other.settings_dict, "PORT", "1")
        tally = work(registry, using="default")

    assert (tally.failed, tally.dead) == (1, 0)
    assert [row.attempts for row in rows()] == [0, 0]
    make_due()
    work(registry)
    assert numbers("other") == [1, 2]


def test_an_outage_that_is_over_is_not_blamed_for_a_later_rollback():
    """Django keeps the error of an earlier transaction; this handler's is its own."""
    registry = Registry()

    @registry.add
    @command_handler(name="do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        transaction.set_rollback(True)

    def be_full(*args):
        raise caused(OperationalError("disk full"), ServerError("53100"))

    with (
        pytest.raises(OperationalError),
        transaction.atomic(),
        connection.execute_wrapper(be_full),
    ):
        Note.objects.create(text="no room")
    send(registry, 1)

    tally = work(registry)

    assert (tally.failed, tally.dead) == (1, 1)


# -------------------------------------------------------- what is said of a failure


@message("outages.Pay")
@dataclass(frozen=True)
class Pay:
    card: Annotated[str, Sensitive()]


CARD = "4111-1111-1111-1111"


def test_the_last_error_stays_on_the_row_of_a_message_that_waits():
    """With its class and its first line, and without what is sensitive."""
    registry = Registry()

    @registry.add
    @command_handler(name="pay", channel="outbox", retry=Retry(attempts=3))
    def pay(command: Pay):
        msg = f"the card {command.card} is refused\nat length"
        raise ValueError(msg)

    registry.command_bus.dispatch(Pay(CARD))
    assert [row.last_error for row in rows()] == [None]
    work(registry)

    assert [row.last_error for row in rows()] == [
        "ValueError: the card •••••• is refused"
    ]


def test_a_dead_letter_is_logged_with_its_exception_and_a_template_of_its_own(caplog):
    """So a tracker of errors has one issue for each handler and exception."""
    registry = Registry()

    @registry.add
    @command_handler(name="100%.do", channel="outbox", retry=Retry(attempts=1))
    def do(command: Work):
        raise KeyError(command.number)

    send(registry, 1)
    work(registry)

    (record,) = caplog.records
    assert (
        record.msg == "Message %s for 100%%.do failed at attempt %d with KeyError%s; %s"
    )
    assert record.getMessage().endswith(
        " for 100%.do failed at attempt 1 with KeyError: 1; it is now a dead letter "
        "(failed)"
    )
    assert record.exc_info[0] is KeyError
    assert traceback.extract_tb(record.exc_info[2])[-1].name == "do"


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (0, "at once"),
        (2.5, "in 2.5 s"),
        (40, "in 40 s"),
        (600, "in 10 min"),
    ],
)
def test_the_log_says_when_a_message_is_tried_again(caplog, delay, expected):
    """As a time to wait; the exception's text is there as well."""
    registry = Registry()
    retry = Retry(attempts=2, delay=delay, jitter=False)

    @registry.add
    @command_handler(name="do", channel="outbox", retry=retry)
    def do(command: Work):
        msg = "the disk is slow"
        raise ValueError(msg)

    send(registry, 1)
    work(registry, bounds={"messages": 1})

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert record.getMessage().endswith(
        f"failed at attempt 1 with ValueError: the disk is slow; it is retried "
        f"{expected}"
    )


def test_no_log_of_a_failure_holds_a_sensitive_value(caplog):
    """Neither its text nor a variable of any frame, nor that of what caused it."""
    registry = Registry()

    @registry.add
    @command_handler(name="pay", channel="outbox", retry=Retry(attempts=1))
    def pay(command: Pay):
        card = command.card
        try:
            raise KeyError(card)
        except KeyError as error:
            msg = f"the card {card} is refused"
            raise ValueError(msg) from error

    registry.command_bus.dispatch(Pay(CARD))
    work(registry)

    (record,) = caplog.records
    error = record.exc_info[1]
    assert CARD not in caplog.text
    assert (type(error).__name__, str(error)) == (
        "ValueError",
        "the card •••••• is refused",
    )
    assert (type(error.__cause__).__name__, str(error.__cause__)) == (
        "KeyError",
        "'••••••'",
    )
    frames = [
        frame
        for each in (error, error.__cause__)
        for frame, _ in traceback.walk_tb(each.__traceback__)
    ]
    assert frames
    assert all(CARD not in repr((f.f_locals, f.f_globals)) for f in frames)
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert (last.name, last.line) == ("pay", "raise ValueError(msg) from error")

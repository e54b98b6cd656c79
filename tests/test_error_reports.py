"""Reports of errors: Django's page and mails show no payload in a frame of ours."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import pytest
from asgiref.sync import async_to_sync
from django.test import RequestFactory
from django.views.debug import ExceptionReporter

import django_cqrs
from django_cqrs import (
    Message,
    Registry,
    Sensitive,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.buses import CommandBus
from django_cqrs.channels import channels
from django_cqrs.interception import Proceed, around, before, pointcut
from django_cqrs.modelling import (
    Repository,
    aggregate,
    business_interface,
    business_method,
    implement,
)
from django_cqrs.retries import DEADLOCKS, InstantRetry
from django_cqrs.views import (
    AsyncCommandView,
    AsyncQueryView,
    CommandView,
    QueryView,
)

pytestmark = pytest.mark.django_db

SECRET = "4111-1111-1111"
OURS = str(Path(django_cqrs.__file__).parent)


@message("reports.pay")
@dataclass(frozen=True)
class Pay:
    card: Annotated[str, Sensitive()]
    number: int = 1


@message("reports.later")
@dataclass(frozen=True)
class PayLater(Pay):
    pass


@message("reports.on_commit")
@dataclass(frozen=True)
class PayOnCommit(Pay):
    pass


@dataclass(frozen=True)
class Find(Pay):
    pass


@dataclass(frozen=True)
class Paid(Pay):
    pass


@dataclass(frozen=True)
class Settled(Pay):
    pass


@dataclass(frozen=True)
class Settle(Pay):
    number: int = 7


@dataclass(frozen=True)
class Once(Pay):
    pass


@dataclass(frozen=True)
class Unhandled(Pay):
    pass


class Refused(Exception):
    """What a handler here raises on purpose: it quotes nothing."""


def refuse() -> None:
    raise Refused


@command_handler
def pay(command: Pay) -> None:
    refuse()


@command_handler("pay.text", name="pay_text")
def pay_text(card: Annotated[str, Sensitive()]) -> None:
    refuse()


@command_handler(idempotency_key="card", name="once")
def once(command: Once) -> None:
    refuse()


@command_handler(channel="memory", name="later")
def later(command: PayLater) -> None:
    refuse()


@query_handler
def find(query: Find) -> None:
    refuse()


@event_handler(name="paid")
def paid(event: Paid) -> None:
    refuse()


@event_handler(name="settled_first")
def settled_first(event: Settled) -> None:
    pass


@event_handler(name="settled_next")
def settled_next(event: Settled, own: Message) -> None:
    refuse()


@business_interface
class Cards(Protocol):
    @business_method("pay.text")
    def pay(self, card: str) -> None: ...


class Account:
    """An object in no table: what its repository gives."""

    number = 7

    @command_handler(name="settle")
    def settle(self, command: Settle) -> None:
        refuse()


class Accounts(Repository[Account]):
    def find(self, identifier: Any) -> Account:
        return Account()

    def save(self, instance: Account) -> None:
        pass


aggregate(identifier="number", repository=Accounts)(Account)


@around(pointcut.message(Pay), precedence=-10)
def pass_on(proceed: Proceed, command: Pay) -> Any:
    return proceed()


@before(pointcut.message(Pay))
def look(command: Pay) -> None:
    pass


PLAIN = Registry()
WOVEN = Registry()
for each in (pay, pay_text, once, later, find, paid, settled_first, settled_next):
    PLAIN.add(each)
    WOVEN.add(each)
for registry in (PLAIN, WOVEN):
    registry.add(Account)
    for cls in (PayLater,):
        registry.add(cls)
WOVEN.add(pass_on)
WOVEN.add(look)

TEXT = json.dumps({"card": SECRET, "number": 1})
WRONG = {"card": [SECRET], "number": 1}


def _memory(registry: Registry) -> None:
    registry.command_bus.dispatch(PayLater(SECRET))
    channels["memory"].run()


def _outbox_fails(registry: Registry) -> None:
    """The database is refused while the message is stored."""
    registry.command_bus.dispatch(PayLater(SECRET), headers={"when": object()})


def _view(view: Any, registry: Registry, kind: str, *, is_async: bool) -> None:
    bus = registry.command_bus if kind == "post" else registry.query_bus
    cls = Pay if kind == "post" else Find
    shown = view.as_view(message=cls, bus=bus)
    if kind == "post":
        request = RequestFactory().post("/", TEXT, content_type="application/json")
    else:
        request = RequestFactory().get("/", {"card": SECRET})
    if is_async:
        async_to_sync(shown)(request)
    else:
        shown(request)


WAYS: dict[str, Callable[[Registry], object]] = {
    "a command": lambda r: r.command_bus.dispatch(Pay(SECRET)),
    "a command with headers": lambda r: r.command_bus.dispatch(
        Pay(SECRET), headers={"card": SECRET}
    ),
    "a command by its key": lambda r: r.command_bus.dispatch(SECRET, route="pay.text"),
    "a command with a key": lambda r: r.command_bus.dispatch(Once(SECRET)),
    "a command of JSON": lambda r: r.command_bus.dispatch(
        json.dumps(SECRET), route="pay.text", content_type="application/json"
    ),
    "a command that is awaited": lambda r: async_to_sync(r.command_bus.adispatch)(
        Pay(SECRET)
    ),
    "a command that nothing handles": lambda r: r.command_bus.dispatch(
        Unhandled(SECRET)
    ),
    "a command that is wrong": lambda r: r.command_bus.dispatch(
        WRONG, route="reports.pay"
    ),
    "a command to an aggregate": lambda r: r.command_bus.dispatch(Settle(SECRET)),
    "a command by an interface": lambda r: implement(Cards, registry=r).pay(SECRET),
    "a command of a bus that tries again": lambda r: CommandBus(
        idempotency_key="card",
        instant_retry=InstantRetry(3, on=DEADLOCKS),
        registry=r,
    ).dispatch(Pay(SECRET)),
    "a command out of a channel": _memory,
    "a command with a header that cannot go": _outbox_fails,
    "a query": lambda r: r.query_bus.ask(Find(SECRET)),
    "a query that is awaited": lambda r: async_to_sync(r.query_bus.aask)(Find(SECRET)),
    "a query with headers": lambda r: r.query_bus.ask(
        Find(SECRET), headers={"card": SECRET}
    ),
    "an event": lambda r: r.event_bus.publish(Paid(SECRET)),
    "an event of two handlers": lambda r: r.event_bus.publish(Settled(SECRET)),
    "an event that is awaited": lambda r: async_to_sync(r.event_bus.apublish)(
        Settled(SECRET)
    ),
    "an event with headers": lambda r: r.event_bus.publish(
        Settled(SECRET), headers={"card": SECRET}
    ),
    "a view of a command": lambda r: _view(CommandView, r, "post", is_async=False),
    "a view of a query": lambda r: _view(QueryView, r, "get", is_async=False),
    "an async view of a command": lambda r: _view(
        AsyncCommandView, r, "post", is_async=True
    ),
    "an async view of a query": lambda r: _view(
        AsyncQueryView, r, "get", is_async=True
    ),
}


def telling(error: BaseException) -> list[str]:
    """Return the variables of our frames whose text tells the secret."""
    reporter = ExceptionReporter(None, type(error), error, error.__traceback__)
    return [
        f"{Path(frame['filename']).name}:{frame['function']} {name}"
        for frame in reporter.get_traceback_frames()
        if frame["filename"].startswith(OURS)
        for name, value in frame["vars"]
        if SECRET in repr(value)
    ]


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("registry", [PLAIN, WOVEN], ids=["plain", "with interceptors"])
@pytest.mark.parametrize("way", WAYS)
def test_no_frame_of_ours_shows_what_a_message_carries(way, registry, debug, settings):
    """Neither on Django's technical page nor in its mail to the admins."""
    settings.DEBUG = debug

    with pytest.raises(Exception) as caught:  # noqa: PT011 - each way has its own
        WAYS[way](registry)

    assert telling(caught.value) == []
    assert SECRET not in "".join(traceback.format_exception(caught.value))

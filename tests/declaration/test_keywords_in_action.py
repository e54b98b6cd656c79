"""
Every keyword on every kind of handler and every way: it works, or a check refuses it.

What is to be expected is read from the table of the reference. There is no third outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import TestCase

from django_cqrs import (
    MessageGaveUp,
    Registry,
    Retry,
    clock,
    command_handler,
    event_handler,
    message,
    query_handler,
    service,
)
from django_cqrs.channels import InMemoryChannel, channels
from django_cqrs.checks import check_registry
from django_cqrs.declaration.declarations import Kind
from django_cqrs.documents import DocumentStore, document
from django_cqrs.documents.models import Document
from django_cqrs.modelling import Saga, aggregate, saga
from django_cqrs.outbox.models import DeadLetter, InboxEntry, OutboxMessage
from django_cqrs.signals import message_handled
from tests.declaration.test_keywords import rows_of_reference
from tests.tenancy.support import with_tenancy

CHANNELS = {
    "outbox": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"},
    "engine": {"BACKEND": "django_cqrs.engines.tasks.TasksChannel"},
    "memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"},
    "commit": {"BACKEND": "django_cqrs.channels.OnCommitChannel"},
}
WAYS = (None, *CHANNELS)
NOT_ON_COMMIT = {"delay", "expires", "priority", "retry", "ordering_key", "on_dead"}
DECORATORS: dict[Kind, Any] = {
    Kind.COMMAND: command_handler,
    Kind.EVENT: event_handler,
    Kind.QUERY: query_handler,
}
REFERENCE = rows_of_reference()


@message("keywords.go")
@dataclass(frozen=True)
class Go:
    """What is sent: for the object `ref`, or by another attribute for `key`."""

    ref: str = "r"
    key: str = "k"


@message("keywords.other")
@dataclass(frozen=True)
class Other:
    """What another handler on the same channel takes."""

    ref: str = "r"


@dataclass(frozen=True)
class Case:
    """One kind of handler, on one way."""

    kind: Kind
    shape: str
    way: str | None
    side: str = ""
    """Of a pair: which of the two has the keyword."""
    is_there: bool = False
    """Whether the object is there that the message is for."""

    @property
    def is_object(self) -> bool:
        return self.shape not in ("function", "service")

    @property
    def acts(self) -> bool:
        """Whether the handler that is to run is one of an object that is there."""
        return self.shape.endswith(("action", "step", "object")) or self.is_there

    def may_have(self, keyword: str) -> bool:
        """Tell what the reference says."""
        cell = REFERENCE[keyword][list(DECORATORS).index(self.kind)]
        is_pair, is_saga = "pair" in self.shape, "saga" in self.shape
        acts = self.shape.endswith(("action", "step", "object"))
        return {
            "yes": True,
            "no": False,
            "on a channel": self.way is not None,
            "on a channel, or of an object": self.way is not None or self.is_object,
            "of an action or a pair": acts or is_pair,
            "of a factory": self.shape in ("factory", "saga start"),
            "of an object": self.is_object,
            "of an action, or of a saga's pair": acts or (is_pair and is_saga),
        }[cell] and not (self.way == "commit" and keyword in NOT_ON_COMMIT)


@dataclass
class Called:
    """One call of a handler."""

    name: str
    ref: str
    transactions: list[str]


class Bench:
    """A registry with the handler of a case, what it has done, and how to send to it."""

    def __init__(self, case: Case, **keywords: Any) -> None:
        self.case = case
        self.calls: list[Called] = []
        self.sent_on: list[Any] = []
        self.fails = False
        self.using = keywords.get("using", "default")
        self.owner: Any = None
        self.registry = Registry()
        self.registry.add(self._output())
        self.registry.add(self._dead())
        way = {} if case.way is None else {"channel": case.way}
        self.registry.add(self._target({**way, **keywords}))
        self.names: list[str] = []

    def _output(self) -> Any:
        @command_handler("keywords.out")
        def out(sent: object) -> None:
            self.sent_on.append(sent)

        return out

    def _dead(self) -> Any:
        @command_handler("keywords.dead")
        def dead(sent: MessageGaveUp) -> None:
            self.sent_on.append(sent.payload)

        return dead

    def do(self, name: str, ref: str) -> None:
        """Be the body of the handler."""
        open_now = [
            alias
            for alias in ("default", "other")
            if len(connections[alias].atomic_blocks) > self.blocks[alias]
        ]
        self.calls.append(Called(name, ref, open_now))
        if self.fails:
            raise ArithmeticError

    def _target(self, keywords: dict[str, Any]) -> Any:
        bench, decorator = self, DECORATORS[self.case.kind]
        shape = self.case.shape
        if shape == "function":

            def act(sent: Go) -> str:
                bench.do("act", sent.ref)
                return "done"

            return decorator(**keywords)(act)
        if shape == "service":

            @service
            class Desk:
                @decorator(**keywords)
                def act(self, sent: Go) -> str:
                    bench.do("act", sent.ref)
                    return "done"

            return Desk
        return self._object(keywords)

    def _object(self, keywords: dict[str, Any]) -> Any:
        bench, shape, side = self, self.case.shape, self.case.side
        decorator = DECORATORS[self.case.kind]
        mark = saga if "saga" in shape else aggregate
        base = Saga if "saga" in shape else object
        way = {} if self.case.way is None else {"channel": self.case.way}
        plain = {"channel": way["channel"]} if way and "channel" not in side else {}
        if side:
            plain = {}  # whatever one has counts for both
        on_begin = plain if side == "action" else keywords
        on_act = plain if side == "factory" else keywords

        class Thing(base):  # type: ignore[misc,valid-type]
            ref: str
            n: int = 0

            if shape in ("factory", "pair", "saga start", "saga pair"):

                @decorator(**on_begin)
                @classmethod
                def begin(cls, sent: Go) -> Any:
                    bench.do("begin", sent.ref)
                    return cls(ref=sent.ref)

            if shape not in ("factory", "saga start"):

                @decorator(**on_act)
                def act(self, sent: Go) -> str:
                    self.n += 1
                    bench.do("act", self.ref)
                    return "done"

        Thing.__annotations__ = {"ref": str, "n": int}
        fields = dataclass(kw_only=True)(Thing)
        self.owner = mark(identifier="ref")(document("keywords.thing")(fields))
        return self.owner

    # ------------------------------------------------------------- what is done with it

    @property
    def blocks(self) -> dict[str, int]:
        return self._blocks

    def prepare(self, *refs: str) -> None:
        """Have objects there."""
        self._blocks = {
            a: len(connections[a].atomic_blocks) for a in ("default", "other")
        }
        for ref in refs:
            for alias in ("default", "other"):
                DocumentStore(self.owner, using=alias).upsert(ref, self.owner(ref=ref))

    def send(self, sent: Any = None, **options: Any) -> Any:
        """Send a message; behind OnCommitChannel, it is handled at once then."""
        sent = Go() if sent is None else sent
        bus: Any = self.registry.bus_of(self.case.kind)
        method = {
            Kind.COMMAND: "dispatch",
            Kind.QUERY: "ask",
            Kind.EVENT: "publish",
        }[self.case.kind]
        if self.case.way != "commit":
            return getattr(bus, method)(sent, **options)
        with ExitStack() as stack:
            for alias in ("default", "other"):
                capture = TestCase.captureOnCommitCallbacks(using=alias, execute=True)
                stack.enter_context(capture)
            return getattr(bus, method)(sent, **options)

    def run(self) -> None:
        """Handle what waits, failures included."""
        if self.case.way in (None, "commit"):
            return
        channel: Any = channels[str(self.case.way)]
        for _ in range(4):
            try:
                if isinstance(channel, InMemoryChannel):
                    channel.run()
                else:
                    channel.run(registry=self.registry, using=self.using)
            except ArithmeticError:
                self.advance(60)
            else:
                break

    def advance(self, seconds: float) -> None:
        """Let time pass for what waits."""
        channel: Any = channels[str(self.case.way)]
        if isinstance(channel, InMemoryChannel):
            channel.advance(timedelta(seconds=seconds))
        else:
            channel.advance(timedelta(seconds=seconds), using=self.using)

    @property
    def running(self) -> str:
        """The method that is to run."""
        if self.case.is_object and not self.case.acts:
            return "begin"
        return "act"

    def was_called(self, times: int) -> bool:
        return [each.name for each in self.calls] == [self.running] * times


# -------------------------------------------------------- what shows that it works


def _name(bench: Bench) -> None:
    told: list[str] = []

    def receive(endpoint: str, **_kwargs: Any) -> None:
        told.append(endpoint)

    message_handled.connect(receive)
    try:
        bench.send()
        bench.run()
    finally:
        message_handled.disconnect(receive)
    side = {"factory": "begin", "action": "act"}.get(bench.case.side, bench.running)
    assert ("keywords.named" in told) is (side == bench.running)
    assert bench.was_called(1)


def _aliases(bench: Bench) -> None:
    found = bench.registry.routes.endpoint_named("keywords.former")
    side = {"factory": "begin", "action": "act"}.get(bench.case.side, bench.running)
    assert found.function.__name__ == side
    bench.send()
    bench.run()
    assert bench.was_called(1)


def _using(bench: Bench) -> None:
    bench.send()
    bench.run()
    assert bench.was_called(1)
    assert bench.calls[0].transactions == ["other"]


def _atomic(bench: Bench) -> None:
    bench.send()
    bench.run()
    assert bench.was_called(1)
    assert bench.calls[0].transactions == []


def _priority(bench: Bench) -> None:
    order: list[str] = []
    channel = {} if bench.case.way is None else {"channel": bench.case.way}
    takes = Go if bench.case.kind is Kind.EVENT else Other

    def other(sent: Any) -> None:
        order.extend(["ours"] * len(bench.calls))
        order.append("other")

    other.__annotations__["sent"] = takes
    bench.registry.add(DECORATORS[bench.case.kind](**channel)(other))
    if takes is Other:
        bench.send(Other())
    bench.send()
    bench.run()
    assert order == ["ours", "other"]
    assert bench.was_called(1)


def _channel(bench: Bench) -> None:
    bench.send()
    if bench.case.way not in (None, "commit"):
        assert bench.was_called(0)
    bench.run()
    assert bench.was_called(1)


def _delay(bench: Bench) -> None:
    bench.send()
    bench.run()
    assert bench.was_called(0)
    bench.advance(3600)
    bench.run()
    assert bench.was_called(1)


def _expires(bench: Bench) -> None:
    bench.send()
    bench.advance(3600)
    bench.run()
    assert bench.was_called(0)


def _retry(bench: Bench) -> None:
    bench.fails = True
    bench.send()
    bench.run()
    assert bench.was_called(2)


def _identifier(bench: Bench) -> None:
    bench.send(Go(ref="another"))
    bench.run()
    assert bench.calls[0].ref == ("another" if bench.running == "begin" else "k")
    assert bench.was_called(1)


def _on_missing(bench: Bench) -> None:
    if "pair" in bench.case.shape:
        for alias in ("default", "other"):
            over = bench.owner(ref="r")
            over.complete()
            DocumentStore(bench.owner, using=alias).upsert("r", over)
    else:
        for alias in ("default", "other"):
            DocumentStore(bench.owner, using=alias).delete("r")
    bench.send()
    bench.run()
    assert bench.calls == []


def _on_existing(bench: Bench) -> None:
    for alias in ("default", "other"):
        DocumentStore(bench.owner, using=alias).upsert("r", bench.owner(ref="r", n=3))
    bench.send()
    bench.run()
    assert bench.was_called(1)
    assert DocumentStore(bench.owner).get("r").n == 3
    assert not DeadLetter.objects.exists()


def _output(bench: Bench) -> None:
    bench.send()
    bench.run()
    assert bench.was_called(1)
    assert bench.sent_on == ["r" if bench.running == "begin" else "done"]


def _ordering_key(bench: Bench) -> None:
    refs = ["r", "r2"]
    bench.send(Go("r"))
    bench.send(Go("r2"), priority=5)
    bench.run()
    assert [each.ref for each in bench.calls] == refs


def _idempotency_key(bench: Bench) -> None:
    bench.send(Go("r"))
    bench.send(Go("r2"))
    bench.run()
    assert bench.was_called(1)


def _on_dead(bench: Bench) -> None:
    bench.fails = True
    bench.send()
    bench.run()
    assert bench.was_called(1)
    assert bench.sent_on == [Go()]


def _tenant(bench: Bench) -> None:
    with with_tenancy(also={"CHANNELS": CHANNELS}):
        bench.send()
        bench.run()
        assert bench.was_called(1)


PROOFS: dict[str, tuple[Any, Callable[[Bench], None]]] = {
    "name": ("keywords.named", _name),
    "aliases": (["keywords.former"], _aliases),
    "using": ("other", _using),
    "atomic": (False, _atomic),
    "priority": (5, _priority),
    "channel": (None, _channel),
    "delay": (3600, _delay),
    "expires": (3600, _expires),
    "retry": (Retry(attempts=2, delay=0, jitter=False), _retry),
    "identifier": ("key", _identifier),
    "on_missing": ("ignore", _on_missing),
    "on_existing": ("ignore", _on_existing),
    "output": ("keywords.out", _output),
    "ordering_key": ("key", _ordering_key),
    "idempotency_key": ("key", _idempotency_key),
    "on_dead": ("keywords.dead", _on_dead),
    "tenant": (False, _tenant),
}

# The same keyword with another kind of value.
KINDS_OF_VALUES: dict[str, Any] = {
    "delay of a message": lambda message: timedelta(seconds=3600),
    "delay until": lambda message: clock.now() + timedelta(seconds=3600),
    "expires of a message": lambda message: timedelta(seconds=3600),
}

SHAPES = {
    Kind.COMMAND: (
        *("function", "service", "factory", "action", "pair"),
        *("saga start", "saga step", "saga pair"),
    ),
    Kind.QUERY: ("function", "service", "object"),
}
SHAPES[Kind.EVENT] = SHAPES[Kind.COMMAND]


def cases(kind: Kind, shape: str, way: str | None) -> Iterator[Case]:
    """Yield a case; of a pair for each side, and for each of the two that may run."""
    if "pair" not in shape:
        yield Case(kind, shape, way)
        return
    for side in ("factory", "action"):
        for is_there in (False, True):
            yield Case(kind, shape, way, side, is_there)


@contextmanager
def prepared(case: Case, keyword: str, value: Any) -> Iterator[Bench]:
    """Have the handler of a case, with a keyword, and what it needs."""
    if keyword == "channel":
        value = False if case.way is None else case.way
    for model in (Document, OutboxMessage, DeadLetter, InboxEntry):
        for alias in ("default", "other"):
            model.objects.using(alias).all().delete()
    bench = Bench(case, **{keyword: value})
    bench.prepare(*(["r", "r2", "k"] if case.is_object and case.acts else []))
    for alias in CHANNELS:
        if isinstance(channels[alias], InMemoryChannel):
            channels[alias].clear()
    yield bench


def test_every_keyword_has_a_proof():
    """What the reference names is tried here."""
    assert set(PROOFS) == set(REFERENCE)


def table() -> Iterator[tuple[str, Kind, str, str | None]]:
    """Yield what is tried; what is run by the same code as another, on fewer ways."""
    for keyword in (*PROOFS, *KINDS_OF_VALUES):
        for kind, shapes in SHAPES.items():
            if keyword in KINDS_OF_VALUES and kind is Kind.QUERY:
                continue
            for shape in shapes:
                is_alike = shape in ("service", "saga start", "saga step")
                is_alike = is_alike or keyword in KINDS_OF_VALUES
                for way in (None, "outbox") if is_alike else WAYS:
                    if kind is not Kind.QUERY or way is None or keyword == "channel":
                        yield keyword, kind, shape, way


@pytest.mark.long
@pytest.mark.django_db(databases=["default", "other"])
@pytest.mark.parametrize(("keyword", "kind", "shape", "way"), list(table()), ids=str)
def test_a_keyword_does_what_the_reference_says_or_is_refused(
    settings, keyword, kind, shape, way
):
    """On each kind of handler, at once and behind every channel."""
    settings.DJANGO_CQRS = {"CHANNELS": CHANNELS}
    if keyword == "on_dead":
        settings.DJANGO_CQRS = {"CHANNELS": CHANNELS, "RETRY": {"attempts": 1}}
    kind_of_value, keyword = keyword, keyword.partition(" ")[0]
    value, prove = PROOFS[keyword]
    value = KINDS_OF_VALUES.get(kind_of_value, value)
    for case in cases(kind, shape, way):
        if (
            kind is Kind.QUERY
            and REFERENCE[keyword][2] == "no"
            and keyword != "channel"
        ):
            with pytest.raises(TypeError, match="unexpected keyword argument"):
                query_handler(**{keyword: value})
            continue
        with prepared(case, keyword, value) as bench:
            found = [each.id for each in check_registry(bench.registry)]
            if case.may_have(keyword) or (keyword == "channel" and way is None):
                assert found == [], (case, keyword)
                prove(bench)
            else:
                assert len(found) == 1, (case, keyword)
                assert found[0] in {
                    "django_cqrs.E017",
                    "django_cqrs.E019",
                    "django_cqrs.E034",
                }

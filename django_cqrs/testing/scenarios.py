"""
Scenarios: given messages, another one, and its expected effects.

A scenario of the project sends its messages through the real buses and channels. One of
an aggregate or a saga has its objects alone, and needs no database.
"""

from __future__ import annotations

import dataclasses
import inspect
import unittest
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final, Protocol, Self

from django.db import DEFAULT_DB_ALIAS

from django_cqrs.annotations import is_value_type, name_of_type
from django_cqrs.buses.bus import GivenHeaders
from django_cqrs.buses.registries import Registry
from django_cqrs.declaration.declarations import Kind, role_of
from django_cqrs.exceptions import InvalidOption, NoHandlerFound
from django_cqrs.modelling.aggregates import ModelRole
from django_cqrs.sends import Send, send_on
from django_cqrs.testing.alone import ObjectWorld
from django_cqrs.testing.comparison import ANYTHING, Mismatch, first_difference
from django_cqrs.testing.flow import Flow
from django_cqrs.testing.trees import Tree, TreeHandling, TreeMessage


def scenario(
    cls: type | None = None,
    /,
    *,
    registry: Registry | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> Scenario:
    """
    Begin a scenario.

    ::

        scenario().given(OrderPlaced(1)).when(PayOrder(1)).then(OrderPaid(1))
        scenario(Basket).when(AddItem(1, "tea")).then(ItemAdded(1, "tea"))

    Args:
        cls: an aggregate or a saga, whose objects are then alone, without a database;
            by default the whole project, on real rows.
        registry: for the whole project, the registry with its handlers.
        using: likewise, the alias of the database that channels store messages in.

    In a ``TestCase``, an exception that no ``raises()`` has named fails it at its end.

    Raises:
        InvalidOption: the class is neither an aggregate nor a saga.

    """
    world: World = ProjectWorld(registry, using) if cls is None else AloneWorld(cls)
    begun = Scenario(world)
    case = _test_case_around()
    if case is not None:
        case.addCleanup(begun.close)
    return begun


def _test_case_around() -> unittest.TestCase | None:
    """Return the test case whose method runs, None if it is not one of unittest."""
    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, unittest.TestCase):
            return found
        frame = frame.f_back
    return None


@dataclasses.dataclass(slots=True, eq=False)
class Fact:
    """A message that was sent, or that is planned for later."""

    node: TreeMessage
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The options of a command, as far as they are known."""
    is_planned: bool = False
    """Whether it is delayed: once it is due, there is another fact."""
    is_named: bool = False
    """Whether the test has named it."""

    def mismatch(self, expected: Any) -> Mismatch | None:
        """Return the first difference from an expected message, None without one."""
        if not isinstance(expected, Send):
            return first_difference(expected, self.node.payload)
        found = first_difference(expected.command, self.node.payload)
        for name, value in self.options.items():
            wanted = _seconds(getattr(expected, name))
            if found is None and wanted is not None:
                found = first_difference(wanted, _seconds(value))
                found = found and found.inside(name)
        return found


def _seconds(value: Any) -> Any:
    """Return a span of time in seconds, any other value as it is."""
    return value.total_seconds() if isinstance(value, timedelta) else value


OPTIONS: Final = (
    *("route", "aggregate_id", "headers"),
    *("delay", "expires", "priority"),
)
"""The options of a `Send`."""


class World(Protocol):
    """The place where the messages of a scenario are handled."""

    is_whole: bool
    """Whether it is the whole project, in which much else may happen."""

    def give(self, given: Any, headers: Mapping[str, Any] | None) -> None:
        """Send a message, or keep an object or an event of it."""
        ...

    def send(self, sent: Any, headers: Mapping[str, Any] | None) -> Any:
        """Send a message; return the result."""
        ...

    def settle(self, failures: list[Exception]) -> None:
        """Handle what is due now."""
        ...

    def pass_time(self, span: timedelta, failures: list[Exception]) -> None:
        """Let time pass, and handle what falls due."""
        ...

    def mark(self) -> tuple[int, int]:
        """Return the present ends of the messages and of the facts."""
        ...

    def facts(self, start: int) -> list[Fact]:
        """Return the facts from a place on, without those that were rolled back."""
        ...

    def tree(self, start: int) -> Tree:
        """Return the tree of the messages from a place on."""
        ...

    def check(self, check: Callable[..., Any]) -> Any:
        """Call a check of the state."""
        ...


class ProjectWorld:
    """The whole project: its buses, its channels and its rows."""

    is_whole = True

    def __init__(self, registry: Registry | None, using: str) -> None:
        """Take the registry, by default the project's, and the database."""
        self._flow = Flow(registry=registry, using=using)
        self._recorder = self._flow._recorder
        self._registry = self._flow.registry

    def give(self, given: Any, headers: Mapping[str, Any] | None) -> None:
        """Send a message through its bus."""
        self.send(given, headers)

    def send(self, sent: Any, headers: Mapping[str, Any] | None) -> Any:
        """Send a message through its bus."""
        send = sent if isinstance(sent, Send) else None
        payload = sent if send is None else send.command
        if isinstance(role_of(type(payload)), ModelRole):
            msg = (
                "A scenario of the project takes messages, not objects: save the "
                f"{name_of_type(type(payload))} before the scenario."
            )
            raise InvalidOption(msg)
        start = len(self._recorder.messages)
        with self._flow:
            try:
                return self._send(payload, send, headers)
            finally:
                for node in self._recorder.messages[start : start + 1]:
                    node.is_given = True

    def _send(
        self, payload: Any, send: Send | None, headers: Mapping[str, Any] | None
    ) -> Any:
        registry = self._registry
        if send is not None:
            both = {**(send.headers or {}), **(headers or {})}
            return send_on(
                registry.command_bus, dataclasses.replace(send, headers=both or None)
            )
        options: dict[str, Any] = {"headers": headers} if headers else {}
        if self._has_handler(Kind.COMMAND, payload):
            return registry.command_bus.dispatch(payload, **options)
        if self._has_handler(Kind.QUERY, payload):
            return registry.query_bus.ask(payload, **options)
        if payload is None or is_value_type(type(payload)):
            msg = (
                f"{payload!r} is not a message. Give an object of a message class, or "
                'Send(value, route="...") for a command with a routing key.'
            )
            raise InvalidOption(msg)
        registry.event_bus.publish(payload, **options)
        return None

    def _has_handler(self, kind: Kind, payload: Any) -> bool:
        try:
            self._registry.routes.handler_of(kind, payload)
        except NoHandlerFound:
            return False
        return True

    def settle(self, failures: list[Exception]) -> None:
        """Run every channel."""
        with self._flow:
            failures += self._flow._settle(timedelta())

    def pass_time(self, span: timedelta, failures: list[Exception]) -> None:
        """Run every channel, while time passes for delayed messages."""
        with self._flow:
            failures += self._flow._settle(span, whole=True)

    def mark(self) -> tuple[int, int]:
        """Return the present ends of the record."""
        return len(self._recorder.messages), len(self._recorder.facts)

    def facts(self, start: int) -> list[Fact]:
        """Return the commands and the events, delayed commands when they are due."""
        found = []
        for each in self._recorder.facts[start:]:
            if isinstance(each, TreeHandling):
                fact = Fact(each.message)
                is_other = fact.node.kind is not Kind.COMMAND
            else:
                fact = _sent(each)
                is_other = fact.node.kind is Kind.QUERY or each.is_given
            if not (is_other or fact.node.is_undone):
                found.append(fact)
        return found

    def tree(self, start: int) -> Tree:
        """Return the tree of the record."""
        return self._recorder.since(start)

    def check(self, check: Callable[..., Any]) -> Any:
        """Call it without arguments."""
        return check()


def _sent(node: TreeMessage) -> Fact:
    if node.kind is not Kind.COMMAND:
        return Fact(node)
    delay = next((each.delay for each in node.handlings if each.delay), None)
    return Fact(node, {"delay": delay}, is_planned=delay is not None)


class AloneWorld:
    """The objects of one class, without a database."""

    is_whole = False

    def __init__(self, cls: type) -> None:
        """Take the class."""
        self._world = ObjectWorld(cls)

    def give(self, given: Any, headers: Mapping[str, Any] | None) -> None:
        """Keep an object or an event of it, or send a message."""
        if isinstance(role_of(type(given)), ModelRole):
            self._world.keep(given)
        elif not self._world.give(given):
            self._world.send(given, headers)

    def send(self, sent: Any, headers: Mapping[str, Any] | None) -> Any:
        """Send a message."""
        return self._world.send(sent, headers)

    def settle(self, failures: list[Exception]) -> None:
        """Handle what the objects have sent each other."""
        self._world.settle(failures)

    def pass_time(self, span: timedelta, failures: list[Exception]) -> None:
        """Let time pass for the messages of the objects."""
        self._world.pass_time(span, failures)

    def mark(self) -> tuple[int, int]:
        """Return the present ends of the record."""
        return len(self._world.messages), len(self._world.facts)

    def facts(self, start: int) -> list[Fact]:
        """Return the messages of the objects."""
        return [
            Fact(node, _options_of(send), is_planned=is_planned)
            for node, send, is_planned in self._world.facts[start:]
            if not node.is_undone
        ]

    def tree(self, start: int) -> Tree:
        """Return the tree of the record."""
        return self._world.tree(start)

    def check(self, check: Callable[..., Any]) -> Any:
        """Call it with the object of the last message."""
        found = self._world.last_object
        if found is None:
            name = name_of_type(self._world.cls)
            msg = f"There is no {name} whose state could be seen."
            raise AssertionError(msg)
        return check(found)


def _options_of(send: Send | None) -> Mapping[str, Any]:
    return {} if send is None else {name: getattr(send, name) for name in OPTIONS}


class Scenario:
    """
    A test in the form of given, when and then. Each verb returns the scenario.

    Make one with :func:`scenario`, or the pytest fixture of that name.
    """

    result: Any = None
    """The result of the last message in :meth:`when`."""

    def __init__(self, world: World) -> None:
        """Take the place where its messages are handled."""
        self._world = world
        self._failures: list[Exception] = []
        self._facts: list[Fact] = []
        self._mark = world.mark()
        self._verb = ""

    # What is done -----------------------------------------------------------------

    def given(self, *messages: Any, headers: GivenHeaders | None = None) -> Self:
        """
        Let messages be handled before; their effects do not count.

        Args:
            *messages: events, commands, or a `Send` for a command with options. In a
                scenario of a class, also its objects.
            headers: their headers.

        Raises:
            InvalidOption: one of them is not a message that the class handles.
            AssertionError: the handler of one of them failed.

        """
        __tracebackhide__ = True
        self._ensure_sound()
        for each in messages:
            self._begin(f"given({_said(each)})")
            self._give(self._world.give, each, headers)
            self._ensure_sound()
        self._begin(self._verb)
        return self

    def when(self, message: Any, *, headers: GivenHeaders | None = None) -> Self:
        """
        Send a message, and handle everything that is due then.

        Args:
            message: an event, a command, or a `Send` for a command with options.
            headers: its headers.

        Raises:
            InvalidOption: it is not a message that the class handles.

        """
        __tracebackhide__ = True
        self._ensure_sound()
        self._begin(f"when({_said(message)})")
        self.result = self._give(self._world.send, message, headers)
        return self

    def after(self, **span: float) -> Self:
        """
        Let time pass: timers and delayed messages fall due, each in its turn.

        Args:
            span: the arguments of a timedelta, such as ``days=14``.

        """
        __tracebackhide__ = True
        self._ensure_sound()
        said = ", ".join(f"{name}={value!r}" for name, value in span.items())
        self._begin(f"after({said})")
        self._world.pass_time(timedelta(**span), self._failures)
        return self

    def _give(
        self,
        give: Callable[[Any, GivenHeaders | None], Any],
        message: Any,
        headers: GivenHeaders | None,
    ) -> Any:
        result = None
        try:
            result = give(message, headers)
        except InvalidOption:
            raise
        except Exception as error:  # noqa: BLE001 - raises() names it
            self._failures.append(error)
        self._world.settle(self._failures)
        return result

    def _begin(self, verb: str) -> None:
        self._verb = verb
        self._mark = self._world.mark()
        self._facts = []

    # What is expected -------------------------------------------------------------

    def then(self, *expected: Any) -> Self:
        """
        Expect messages, events and commands each in this order.

        In a scenario of the project other messages may come between them. That of a
        class names all of its messages. A delayed command counts when it is due; a
        `Send` with its ``delay=`` names its sending.

        Args:
            *expected: the messages, of which parts may be ``ANYTHING``, or made by
                ``like()``.

        Raises:
            AssertionError: one of them was not sent, or in another order; or one more
                was sent. Its text has the first difference, and what happened.

        """
        __tracebackhide__ = True
        self._ensure_sound()
        self._refresh()
        for each in expected:
            self._name(each)
        if not self._world.is_whole:
            self._ensure_all_named("then() names all messages of the class.")
        return self

    def nothing(self) -> Self:
        """
        Expect no other message than those that ``then()`` has named.

        Raises:
            AssertionError: there is one.

        """
        __tracebackhide__ = True
        self._ensure_sound()
        self._refresh()
        self._ensure_all_named("nothing() expects no other message.")
        return self

    def raises(
        self,
        error: type[BaseException] | tuple[type[BaseException], ...],
        text: str = "",
    ) -> Self:
        """
        Expect that the last message, or one that it caused, failed with an exception.

        Args:
            error: its class, or several of which it may have one.
            text: a part of its text.

        Raises:
            AssertionError: nothing failed, or with another exception.

        """
        __tracebackhide__ = True
        said = _named(error)
        if not self._failures:
            self._fail(f"{self._verb} raised nothing, but raises({said}) expects it.")
        for place, failure in enumerate(self._failures):
            if isinstance(failure, error) and text in str(failure):
                del self._failures[place]
                return self
        failure = self._failures.pop(0)
        wanted = f"raises({said})" if not text else f"raises({said}, {text!r})"
        self._fail(
            f"{self._verb} failed with {failure!r}, but {wanted} expects it to fail.",
            failure,
        )
        return self

    def state(self, check: Callable[..., Any]) -> Self:
        """
        Look at the state.

        Args:
            check: called with the object of the last message, in a scenario of the
                project without arguments. It may have assertions of its own; False
                fails the test.

        Raises:
            AssertionError: it returned False, or there is no object.

        """
        __tracebackhide__ = True
        self._ensure_sound()
        answer = self._world.check(check)
        if answer is False:
            name = getattr(check, "__qualname__", repr(check))
            self._fail(f"The check of the state, {name}, returned False.")
        return self

    # How it fails -----------------------------------------------------------------

    def _refresh(self) -> None:
        """Take the facts that are new since the last verb, and keep what is named."""
        known = {(each.node, each.is_planned): each for each in self._facts}
        self._facts = [
            known.get((each.node, each.is_planned), each)
            for each in self._world.facts(self._mark[1])
        ]

    def _name(self, expected: Any) -> None:
        __tracebackhide__ = True
        open_facts = [each for each in self._facts if self._is_open(each, expected)]
        for fact in open_facts:
            if not fact.is_named and fact.mismatch(expected) is None:
                if self._is_overtaken(fact):
                    continue
                fact.is_named = True
                return
        said = _said(expected)
        early = next(
            (f for f in open_facts if not f.is_named and f.mismatch(expected) is None),
            None,
        )
        if early is not None:
            self._fail(
                f"then({said}): it was sent before a message of its kind that is "
                "expected earlier.",
                marks={early.node: "too early"},
            )
        nearest = self._nearest(expected, open_facts)
        if nearest is None:
            self._fail(f"then({said}): no such message was sent.")
        else:
            mismatch, fact = nearest
            self._fail(
                f"then({said}): no such message was sent.\n"
                f"First difference: {mismatch}.",
                marks={fact.node: str(mismatch)},
            )

    def _is_open(self, fact: Fact, expected: Any) -> bool:
        """Return whether a message may be the expected one: planned ones as a Send."""
        if not fact.is_planned:
            return True
        return isinstance(expected, Send) and expected.delay is not None

    def _is_overtaken(self, fact: Fact) -> bool:
        """Return whether a later message of its kind was named before."""
        later = self._facts[self._facts.index(fact) + 1 :]
        return any(each.is_named and each.node.kind is fact.node.kind for each in later)

    def _nearest(
        self, expected: Any, facts: list[Fact]
    ) -> tuple[Mismatch, Fact] | None:
        """Return a message of the same class, else the first, and its difference."""
        if expected is ANYTHING:
            return None
        found = None
        for fact in facts:
            mismatch = fact.mismatch(expected)
            if fact.is_named or mismatch is None:
                continue
            if mismatch.path:  # it is of the same class
                return mismatch, fact
            if found is None and not self._world.is_whole:
                found = mismatch, fact
        return found

    def _ensure_all_named(self, rule: str) -> None:
        __tracebackhide__ = True
        others = [f for f in self._facts if not (f.is_named or f.is_planned)]
        if others:
            first = others[0].node
            self._fail(
                f"{first.text} was sent as well. {rule}",
                marks=dict.fromkeys((each.node for each in others), "not expected"),
            )

    def _ensure_sound(self) -> None:
        __tracebackhide__ = True
        if self._failures:
            failure = self._failures.pop(0)
            self._failures.clear()
            self._fail(
                f"{self._verb} failed with {failure!r}, and no raises() expects it.",
                failure,
            )

    def _fail(
        self,
        text: str,
        cause: BaseException | None = None,
        marks: Mapping[TreeMessage, str] | None = None,
    ) -> None:
        __tracebackhide__ = True
        tree = self._world.tree(self._mark[0]).render(marks)
        msg = f"{text}\n\nThis is what happened:\n{tree}"
        raise AssertionError(msg) from cause

    def close(self) -> None:
        """
        End the scenario: the fixture does it after the test.

        Raises:
            AssertionError: an exception was raised that ``raises()`` has not named.

        """
        __tracebackhide__ = True
        self._ensure_sound()

    def __del__(self) -> None:
        """Warn of an exception that nobody has looked at."""
        failures = getattr(self, "_failures", None)
        if failures:
            text = f"{self._verb} failed with {failures[0]!r}, and nobody looked at it."
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _said(message: Any) -> str:
    text = repr(message)
    if isinstance(message, Send):
        options = {name: getattr(message, name) for name in OPTIONS}
        said = [f"{name}={value!r}" for name, value in options.items() if value]
        text = f"Send({', '.join([repr(message.command), *said])})"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


_LONGEST = 300


def _named(error: Any) -> str:
    errors = error if isinstance(error, tuple) else (error,)
    return " | ".join(each.__name__ for each in errors)

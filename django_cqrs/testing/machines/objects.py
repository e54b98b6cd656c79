"""
Machines of Hypothesis: messages to one aggregate or saga, in any order and state.

A machine draws messages from their annotations, and disturbs their delivery: they come
twice, late, at the same time, or again after the process has ended.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

from django.db.transaction import atomic, set_rollback
from django.test import SimpleTestCase, TestCase
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import SearchStrategy

from django_cqrs.annotations import field_names, name_of_type, sole_type
from django_cqrs.declaration.declarations import Kind
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    ConcurrencyError,
    InvalidIdentifier,
    InvalidOption,
)
from django_cqrs.messages import Message
from django_cqrs.modelling.aggregates import attributes_named
from django_cqrs.modelling.identifiers import Values, identification, marked_fields
from django_cqrs.sends import Send
from django_cqrs.testing.alone import LaterMessage, ObjectWorld
from django_cqrs.testing.comparison import first_difference
from django_cqrs.testing.faults import SimulatedCrash
from django_cqrs.testing.machines.strategies import EVERY_CHECK, messages_of

FAULTS: Final = frozenset({"duplicates", "timeouts", "crashes", "races"})
"""The disturbances of a delivery, by name."""

STEPS: Final = 12
"""The number of steps in one run of a machine."""


class DeliveredMessage(typing.NamedTuple):
    """A message that a machine has delivered, and may deliver again."""

    payload: Any
    message_id: UUID

    def __repr__(self) -> str:
        """Return the payload alone: the id says nothing to a reader."""
        return repr(self.payload)


class TimedMessage(typing.NamedTuple):
    """A message that waits for its time, or was cancelled by the end of its object."""

    later: LaterMessage

    def __repr__(self) -> str:
        """Return the payload."""
        return repr(self.later.message.payload)


class ObjectMachine(RuleBasedStateMachine):
    """The shared parts of the machines: a world, its messages, and the test case."""

    messages: ClassVar[Sequence[Any]] = ()
    """The classes of the messages, or strategies; by default all that it handles."""
    identifiers: ClassVar[Sequence[Any]] = ()
    """The identifiers of the objects; by default one, which fits the messages."""
    refusals: ClassVar[tuple[type[Exception], ...]] = ()
    """The exceptions by which handlers refuse a message; any other one is a fault."""
    rows: ClassVar[bool] = False
    """Whether the objects are kept as the project keeps them: in the database."""

    def __init__(self) -> None:
        """Start without objects."""
        super().__init__()
        self._stack = ExitStack()
        if self.rows:
            self._stack.enter_context(_rolled_back(self._home_alias()))
        self.world = ObjectWorld(self._owner(), rows=self.rows)

    @classmethod
    def _owner(cls) -> type:
        """Return the class of the objects."""
        raise NotImplementedError

    @classmethod
    def _home_alias(cls) -> str:
        return ObjectWorld(cls._owner(), rows=cls.rows).home.alias

    @classmethod
    @functools.lru_cache
    def strategy(cls) -> SearchStrategy[Any]:
        """Return the strategy of the messages; override it to draw others."""
        world = ObjectWorld(cls._owner(), rows=cls.rows)
        wanted = cls.messages or list(_classes_of(world))
        if not wanted:
            msg = f"{name_of_type(cls)} has no messages to draw: give it messages."
            raise InvalidOption(msg)
        return st.one_of(
            *(
                each
                if isinstance(each, SearchStrategy)
                else messages_of(each, **cls._identity_of(each, world))
                for each in wanted
            )
        )

    @classmethod
    def _identity_of(cls, message: type, world: ObjectWorld) -> dict[str, Any]:
        """Return the strategies of the fields that identify an object."""
        found: dict[str, Any] = {}
        for name in _identifying(message, world):
            hints = typing.get_type_hints(message)
            given = list(cls.identifiers) or _usual_identifiers(hints.get(name))
            found[name] = st.sampled_from(given)
        return found

    # What the objects did ---------------------------------------------------------

    @property
    def objects(self) -> list[Any]:
        """The objects as they are now."""
        return self.world.objects()

    @property
    def sent(self) -> list[Any]:
        """The commands that the objects have sent, without those rolled back."""
        return self._facts(Kind.COMMAND)

    @property
    def published(self) -> list[Any]:
        """The events that the objects have published, without those rolled back."""
        return self._facts(Kind.EVENT)

    def _facts(self, kind: Kind) -> list[Any]:
        return [
            node.payload
            for node, _, is_planned in self.world.facts
            if node.kind is kind and not (is_planned or node.is_undone)
        ]

    def count(self, cls: type, /, **fields: Any) -> int:
        """
        Return the number of messages of a class that the objects have sent.

        Args:
            cls: the class.
            **fields: the values of some attributes.

        """
        found = [*self.sent, *self.published]
        return sum(
            isinstance(each, cls)
            and all(getattr(each, name) == value for name, value in fields.items())
            for each in found
        )

    def teardown(self) -> None:
        """End the run: show what happened, and roll the database back."""
        try:
            note(f"This is what happened:\n{self.world.tree()}")
        finally:
            self._stack.close()

    # Identifiers ------------------------------------------------------------------

    def _values_in(self, payload: Any) -> Values | None:
        """Return the identifier in a message, None if it has none."""
        send = payload if isinstance(payload, Send) else Send(payload)
        for endpoint in self.world.endpoints_of(send)[1]:
            subject: Any = endpoint.subject
            if subject is None:
                continue
            find = identification(
                subject.storage.parts,
                endpoint.policies.identifier,
                type(send.command),
            )
            message = Message(send.command)
            if send.aggregate_id is not None:
                message._aggregate_id = send.aggregate_id
            with suppress(InvalidIdentifier):
                return find(message)
        return None

    def _found(self, values: Values) -> Any:
        """Return the object of an identifier as it is now, None without one."""
        home = self.world.home
        with home.in_use_by(self.world):
            storage = home.subject_of(self._owner()).storage
            return storage.find(values, using=home.alias, lock=False)

    def _exists(self, values: Values) -> bool:
        return self._found(values) is not None

    # As a test --------------------------------------------------------------------

    @classmethod
    @functools.lru_cache
    def _to_test_case(cls) -> Any:
        base: Any = TestCase if cls.rows else SimpleTestCase

        class StateMachineTestCase(base):  # type: ignore[misc]
            settings = settings(
                deadline=None,
                suppress_health_check=EVERY_CHECK,
                stateful_step_count=STEPS,
            )

            def runTest(self) -> None:  # noqa: N802 - as unittest names it
                run_state_machine_as_test(cls, settings=self.settings)

            vars(runTest)["is_hypothesis_test"] = True
            vars(runTest)["_hypothesis_state_machine_class"] = cls

        name = f"{cls.__name__}.TestCase"
        StateMachineTestCase.__name__ = name
        StateMachineTestCase.__qualname__ = f"{cls.__qualname__}.TestCase"
        StateMachineTestCase.__module__ = cls.__module__
        return StateMachineTestCase


def _rolled_back(alias: str) -> Any:
    """Return a block that leaves nothing in the database."""
    stack = ExitStack()
    stack.enter_context(atomic(alias))
    stack.callback(set_rollback, True, using=alias)
    return stack


_machine = st.runner()


def _drawn(machine: Any) -> SearchStrategy[Any]:
    return machine.strategy()  # type: ignore[no-any-return]


drawn_by_machine: Final = _machine.flatmap(_drawn)
"""The strategy of the messages of the machine that runs."""


class SagaMachine(ObjectMachine):
    """
    Looks for an order of messages, and for disturbances, after which a saga is wrong.

    ::

        class Fulfilment(SagaMachine):
            saga = orders.Fulfilment
            messages = [OrderPlaced, PaymentCaptured, PaymentDue]

            @invariant()
            def shipped_once(self):
                assert self.count(ShipOrder) <= 1

        TestFulfilment = Fulfilment.TestCase

    Messages come in any order, twice, late, at the same time as another one, and again
    after the process has ended. Each handler is all or nothing, as in the project.
    """

    saga: ClassVar[type]
    """The saga."""
    faults: ClassVar[Collection[str]] = FAULTS
    """Some of ``"duplicates"``, ``"timeouts"``, ``"crashes"`` and ``"races"``."""

    def __init__(self) -> None:
        """Start without sagas."""
        super().__init__()
        unknown = sorted(set(self.faults) - FAULTS)
        if unknown:
            msg = (
                f"{name_of_type(type(self))}.faults names {unknown[0]!r}, which is not "
                f"one of {', '.join(sorted(FAULTS))}."
            )
            raise InvalidOption(msg)
        self.handled: list[Any] = []
        """The messages that were handled, without those refused."""
        self._delivered: list[DeliveredMessage] = []
        self._refused: list[DeliveredMessage] = []
        self._is_settling = type(self).settled is not SagaMachine.settled

    @classmethod
    def _owner(cls) -> type:
        return cls.saga

    @rule(message=drawn_by_machine)
    def deliver(self, message: Any) -> None:
        """Deliver a new message."""
        self._deliver(self._new(message))

    @precondition(lambda self: "duplicates" in self.faults and self._delivered)
    @rule(message=_machine.flatmap(lambda self: st.sampled_from(self._delivered)))
    def deliver_again(self, message: DeliveredMessage) -> None:
        """Deliver an earlier message once more."""
        self._deliver(message)

    @precondition(lambda self: self._refused)
    @rule(message=_machine.flatmap(lambda self: st.sampled_from(self._refused)))
    def retry(self, message: DeliveredMessage) -> None:
        """Deliver a message again that was refused."""
        self._refused.remove(message)
        self._deliver(message)

    @precondition(lambda self: self._timers())
    @rule(timer=_machine.flatmap(lambda self: st.sampled_from(self._timers())))
    def timeout(self, timer: TimedMessage) -> None:
        """Let a timer fall due, or one come that was cancelled too late."""
        self._time_out(timer.later)

    @precondition(lambda self: "crashes" in self.faults)
    @rule(message=drawn_by_machine)
    def crash(self, message: Any) -> None:
        """Let the process end between a handler and its commit; deliver again."""
        new = self._new(message)
        try:
            self.world.send(new.payload, crash=True, message_id=new.message_id)
        except SimulatedCrash:
            pass
        except self._refusals:
            pass
        self._deliver(new)

    @precondition(lambda self: "races" in self.faults)
    @rule(first=drawn_by_machine, second=drawn_by_machine)
    def race(self, first: Any, second: Any) -> None:
        """Deliver two messages at once: the second looks before the first commits."""
        values = self._values_in(second)
        is_start = values is not None and not self._exists(values)
        self._deliver(self._new(first))
        if is_start and values is not None:
            self.world.stale = {self.world.key_of(values)}
        self._deliver(self._new(second))

    def settled(self) -> None:
        """
        Check the end of a run; by default nothing.

        Override it. It is called after refused messages were delivered again, and
        after every timer has fallen due.
        """

    def teardown(self) -> None:
        """Bring the run to its end."""
        try:
            if self._is_settling:
                self._settle()
                self.settled()
        finally:
            super().teardown()

    def _settle(self) -> None:
        for _ in range(len(self._refused)):
            for message in list(self._refused):
                self._refused.remove(message)
                self._deliver(message)
        while self.world.waiting:
            self._time_out(min(self.world.waiting, key=lambda each: each.due))

    # Deliveries -------------------------------------------------------------------

    @property
    def _refusals(self) -> tuple[type[Exception], ...]:
        usual = (AggregateNotFound, AggregateAlreadyExists, ConcurrencyError)
        return (*usual, *self.refusals)

    def _new(self, message: Any) -> DeliveredMessage:
        new = DeliveredMessage(message, uuid4())
        self._delivered.append(new)
        return new

    def _deliver(self, message: DeliveredMessage) -> None:
        try:
            self.world.send(message.payload, message_id=message.message_id)
        except self._refusals:
            self._refused.append(message)
        else:
            self.handled.append(message.payload)
        self._run_due()

    def _run_due(self) -> None:
        """Handle what the saga has sent itself without a delay."""
        failures: list[Exception] = []
        self.world.settle(failures)
        for each in failures:
            if not isinstance(each, self._refusals):
                raise each

    def _timers(self) -> list[TimedMessage]:
        """Return the timers that wait, and those that are cancelled too late."""
        found = list(self.world.waiting)
        if "timeouts" in self.faults:
            found += self.world.cancelled
        return [TimedMessage(each) for each in found]

    def _time_out(self, later: LaterMessage) -> None:
        world = self.world
        for some in (world.waiting, world.cancelled):
            if later in some:
                some.remove(later)
        world.time = max(world.time, later.due)
        try:
            world.deliver(later)
        except self._refusals:
            pass
        else:
            self.handled.append(later.message.payload)
        self._run_due()


class AggregateMachine(ObjectMachine):
    """
    Compares an aggregate with a plain model of it, whatever messages come.

    ::

        class Accounts(AggregateMachine):
            aggregate = Account
            messages = [Open, Deposit, Withdraw]
            refusals = (Overdrawn,)

            def expect(self, balance, message):
                match message:
                    case Open():
                        return 0, [Opened(message.account_id)]
                    case Deposit():
                        return balance + message.amount, []
                    case Withdraw() if message.amount > balance:
                        raise Overdrawn
                    case Withdraw():
                        return balance - message.amount, []

            def agree(self, balance, account):
                assert account.balance == balance

        TestAccounts = Accounts.TestCase
    """

    aggregate: ClassVar[type]
    """The aggregate."""

    def __init__(self) -> None:
        """Start without objects, and without models of them."""
        super().__init__()
        self._models: dict[Any, Any] = {}

    @classmethod
    def _owner(cls) -> type:
        return cls.aggregate

    def expect(self, model: Any, message: Any) -> tuple[Any, list[Any]]:
        """
        Return the model after a message, and the messages that the object sends.

        Args:
            model: the model of the object, None if there is no object.
            message: the message.

        Raises:
            Exception: one of the same class as that of the aggregate, which refuses
                the message.

        """
        raise NotImplementedError

    def agree(self, model: Any, instance: Any) -> None:
        """
        Fail if an object differs from its model.

        Args:
            model: the model, as :meth:`expect` has returned it.
            instance: the object.

        """
        raise NotImplementedError

    @rule(message=drawn_by_machine)
    def deliver(self, message: Any) -> None:
        """Deliver a message to the aggregate and to its model."""
        values = self._values_in(message)
        model = None if values is None else self._models.get(values)
        refusal: Exception | None = None
        wanted: list[Any] = []
        try:
            model, wanted = self.expect(model, message)
        except NotImplementedError:
            raise
        except Exception as error:  # noqa: BLE001 - it is compared
            refusal = error
        start = len(self.world.facts)
        found, result = self._sent(message)
        if type(found) is not type(refusal):
            msg = f"{message!r}: the model says {refusal!r}, the aggregate {found!r}."
            raise AssertionError(msg) from found
        if refusal is not None:
            return
        if values is None:  # the key was made by the memory, or the database
            values = result if isinstance(result, tuple) else (result,)
        self._models[values] = model
        self._compare(message, wanted, self._new_facts(start))
        self._agree(message, values)

    def _sent(self, message: Any) -> tuple[Exception | None, Any]:
        """Deliver a message; return the exception and the result."""
        try:
            result = self.world.send(message)
            failures: list[Exception] = []
            self.world.settle(failures)
            if failures:
                raise failures[0]
        except Exception as error:  # noqa: BLE001 - it is compared
            return error, None
        return None, result

    def _new_facts(self, start: int) -> list[Any]:
        return [
            node.payload
            for node, _, _ in self.world.facts[start:]
            if not node.is_undone
        ]

    def _compare(self, message: Any, wanted: list[Any], sent: list[Any]) -> None:
        mismatch = first_difference(list(wanted), sent)
        if mismatch is not None:
            msg = (
                f"{message!r}: the model expects {wanted!r}, the aggregate has sent "
                f"{sent!r}: {mismatch}."
            )
            raise AssertionError(msg)

    def _agree(self, message: Any, values: Values) -> None:
        model, instance = self._models[values], self._found(values)
        if (model is None) is not (instance is None):
            msg = f"{message!r}: the model is {model!r}, the object {instance!r}."
            raise AssertionError(msg)
        if instance is not None:
            self.agree(model, instance)


# ---------------------------------------------------------------------- identifiers


def _classes_of(world: ObjectWorld) -> Iterator[type]:
    """Yield the classes of the messages that an object's handlers take."""
    for endpoint in world.home.routes.endpoints:
        if endpoint.kind is not Kind.QUERY:
            payload = endpoint.plan.payload
            for each in payload.members if payload else ():
                if isinstance(each, type) and field_names(each) is not None:
                    yield each


def _identifying(message: type, world: ObjectWorld) -> list[str]:
    """
    Return the fields of a message that identify its object.

    A field is one of them if it has the name of one in another message: a factory's
    message is not asked which object it is for.
    """
    fields = field_names(message) or ()
    marked = marked_fields(message)
    names: list[str] = []
    for endpoint in world.home.routes.endpoints:
        subject: Any = endpoint.subject
        if subject is None:
            continue
        names += attributes_named(endpoint.policies.identifier)
        for part in subject.storage.parts:
            names += [marked[name] for name in marked if name and part.is_called(name)]
            names += part.aliases
    return [name for name in fields if name in names]


def _usual_identifiers(annotation: Any) -> list[Any]:
    """Return the identifiers that are used if none are given: one of the type."""
    kind = sole_type(annotation)
    if kind is UUID:
        return [UUID(int=1)]
    return ["1"] if kind is str else [1]

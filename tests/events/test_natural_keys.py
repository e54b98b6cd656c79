"""Natural keys: one object has a value, and no other of its category."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
from django.db import connection, connections, transaction

from django_cqrs import Command, command_handler, message, query_handler
from django_cqrs.checks import check_registry
from django_cqrs.events import EventStore, applies, event_stream
from django_cqrs.events.models import NaturalKey, StoredEvent
from django_cqrs.exceptions import (
    AggregateAlreadyExists,
    AggregateNotFound,
    InvalidIdentifier,
    InvalidOption,
)
from django_cqrs.modelling import Repository, aggregate
from tests.modelling.test_concurrency import at_once
from tests.support import registry_of

pytestmark = [pytest.mark.django_db, pytest.mark.database]


@dataclass(frozen=True)
class Register(Command[int]):
    user_id: int
    email: str | None


@dataclass(frozen=True)
class Enrol(Command[int]):
    user_id: int
    email: str


@dataclass(frozen=True)
class ChangeEmail:
    user_id: int
    new: str | None


@dataclass(frozen=True)
class Greet:
    email: str | None


@dataclass(frozen=True)
class Wave:
    email: str


@dataclass(frozen=True)
class Visit:
    email: str


@dataclass(frozen=True)
class Name:
    email: str


@message("users.registered")
@dataclass(frozen=True)
class Registered:
    user_id: int
    email: str | None


@message("users.email_changed")
@dataclass(frozen=True)
class EmailChanged:
    email: str | None


@aggregate(identifier="user_id")
@event_stream("users.user", natural_key="email")
@dataclass
class User:
    user_id: int = 0
    email: str | None = None

    @command_handler
    @classmethod
    def register(cls, command: Register) -> Registered:
        return Registered(command.user_id, command.email)

    @command_handler(on_existing="ignore")
    @classmethod
    def enrol(cls, command: Enrol) -> Registered:
        return Registered(command.user_id, command.email)

    @command_handler
    def change(self, command: ChangeEmail) -> EmailChanged:
        return EmailChanged(command.new)

    @command_handler
    def greet(self, command: Greet) -> str:
        return f"hello {self.user_id}"

    @command_handler(on_missing="ignore")
    def wave(self, command: Wave) -> str:
        return f"waved to {self.user_id}"

    @command_handler
    @classmethod
    def visit_first(cls, command: Visit) -> Registered:
        return Registered(17, command.email)

    @command_handler
    def visit(self, command: Visit) -> str:
        return f"again {self.user_id}"

    @query_handler
    def name(self, query: Name) -> int:
        return self.user_id

    @applies
    def registered(self, event: Registered) -> None:
        self.user_id, self.email = event.user_id, event.email

    @applies
    def changed(self, event: EmailChanged) -> None:
        self.email = event.email


@pytest.fixture
def registry():
    return registry_of(User)


@pytest.fixture
def dispatch(registry):
    return registry.command_bus.dispatch


def keys():
    return sorted(NaturalKey.objects.values_list("value", flat=True))


def test_no_check_complains(registry):
    """A message may name the natural key alone."""
    assert check_registry(registry) == []


class TestUniqueness:
    def test_e09_1_a_second_one(self, dispatch):
        """It raises, changes nothing, and the transaction can continue. [E09.1]"""
        dispatch(Register(1, "ada@x"))
        with transaction.atomic():
            with pytest.raises(AggregateAlreadyExists) as raised:
                dispatch(Register(2, "ada@x"))
            dispatch(Register(3, "bob@x"))

        assert str(raised.value) == "User with email=ada@x exists already."
        assert keys() == ["ada@x", "bob@x"]
        assert StoredEvent.objects.count() == 2
        with pytest.raises(AggregateNotFound):
            dispatch(ChangeEmail(2, "eve@x"))

    def test_e09_1_a_handler_that_goes_on(self, registry, dispatch):
        """A save by hand that is refused leaves nothing behind. [E09.1]"""
        seen = []

        @command_handler("users.by_hand")
        def by_hand(number: int, users: Repository[User]) -> None:
            storage = users._subject.storage
            user, _ = storage.made_of(Registered(number, "ada@x"))
            with pytest.raises(AggregateAlreadyExists):
                users.save(user)
            seen.append(StoredEvent.objects.count())

        registry.add(by_hand)
        dispatch(Register(1, "ada@x"))
        dispatch(2, route="users.by_hand")

        assert seen == [1]
        assert StoredEvent.objects.count() == 1

    def test_e09_2_a_changed_key(self, dispatch):
        """The old one is free, the new one taken. [E09.2]"""
        dispatch(Register(1, "ada@x"))
        dispatch(Register(2, "bob@x"))
        dispatch(ChangeEmail(1, "lovelace@x"))
        assert keys() == ["bob@x", "lovelace@x"]

        with pytest.raises(AggregateAlreadyExists):
            dispatch(ChangeEmail(2, "lovelace@x"))
        assert keys() == ["bob@x", "lovelace@x"]
        assert StoredEvent.objects.count() == 3
        dispatch(ChangeEmail(2, "ada@x"))
        with transaction.atomic():
            dispatch(ChangeEmail(1, "other@x"))
            transaction.set_rollback(True)

        assert keys() == ["ada@x", "lovelace@x"]

    def test_e09_2_a_key_that_stays(self, dispatch):
        """An event that does not change it writes no key. [E09.2]"""
        dispatch(Register(1, "ada@x"))
        before = NaturalKey.objects.get().pk
        dispatch(ChangeEmail(1, "ada@x"))

        assert NaturalKey.objects.get().pk == before

    def test_e09_4_an_archived_stream(self, registry, dispatch):
        """Its key is free. [E09.4]"""

        @command_handler("users.delete")
        def delete(number: int, users: Repository[User]) -> None:
            users.delete(users.get(number))

        registry.add(delete)
        dispatch(Register(1, "ada@x"))
        dispatch(1, route="users.delete")
        assert keys() == []

        dispatch(Register(2, "ada@x"))
        assert dispatch(Greet("ada@x")) == "hello 2"

    def test_e09_5_none_has_no_key(self, dispatch):
        """Several objects may have no value. [E09.5]"""
        dispatch(Register(1, None))
        dispatch(Register(2, None))
        dispatch(ChangeEmail(1, "ada@x"))
        assert keys() == ["ada@x"]
        dispatch(ChangeEmail(1, None))
        assert keys() == []

    def test_e09_6_byte_by_byte(self, dispatch):
        """Case, accents and spaces at the end differ. [E09.6]"""
        values = ["ada", "Ada", "ada ", "\u00e4da", "a\u0308da", " ada", "ada\t", ""]
        for number, value in enumerate(values, 1):
            dispatch(Register(number, value))

        assert [dispatch(Greet(value)) for value in values] == [
            f"hello {number}" for number in range(1, 9)
        ]
        with pytest.raises(AggregateAlreadyExists):
            dispatch(Register(9, "ada "))

    @pytest.mark.parametrize("value", ["x" * 256, "a\0b"], ids=["long", "nul"])
    def test_values_that_cannot_be_keys(self, dispatch, value):
        """They are refused, and nothing is appended."""
        with pytest.raises(ValueError, match=r"255|NUL"):
            dispatch(Register(1, value))
        assert not StoredEvent.objects.exists()


class TestFinding:
    def test_e09_1_by_key(self, registry, dispatch):
        """A repository finds by key, and so does a message's attribute. [E09.1]"""
        seen = []

        @command_handler("users.find")
        def find(number: int, users: Repository[User]) -> None:
            found = users.find_by_key("bob@x")
            seen.append(found and found.user_id)
            seen.append(users.find_by_key("eve@x"))
            with pytest.raises(InvalidIdentifier):
                users.find_by_key(["bob@x"])

        registry.add(find)
        dispatch(Register(1, "ada@x"))
        dispatch(Register(2, "bob@x"))
        dispatch(1, route="users.find")

        assert seen == [2, None]
        assert dispatch(Greet("ada@x")) == "hello 1"
        assert registry.query_bus.ask(Name("bob@x")) == 2

    def test_the_identifier_comes_first(self, dispatch):
        """The key is looked up where there is no identifier."""
        dispatch(Register(1, "ada@x"))
        dispatch(Register(2, "bob@x"))

        assert dispatch(Greet("ada@x"), aggregate_id=2) == "hello 2"

    def test_nobody_has_it(self, dispatch):
        """The error names the value; a message without one says how to give it."""
        with pytest.raises(AggregateNotFound) as raised:
            dispatch(Greet("eve@x"))
        assert str(raised.value) == (
            "User.greet was not called: there is no User with email=eve@x."
        )
        assert raised.value.at_entrance
        with pytest.raises(AggregateNotFound, match="the message has no identifier"):
            dispatch(Greet(None))

    def test_on_existing(self, dispatch):
        """``on_existing="ignore"`` returns the identifier of the one that has it."""
        assert dispatch(Enrol(1, "ada@x")) == 1
        assert dispatch(Enrol(2, "ada@x")) == 1
        assert StoredEvent.objects.count() == 1

    def test_messages_for_nobody_are_dropped(self, dispatch):
        """``on_missing=`` is for a key that nobody has, too."""
        assert dispatch(Wave("eve@x")) is None

    def test_a_factory_or_an_action(self, dispatch):
        """A message that names a new key creates, the next one acts."""
        assert dispatch(Visit("eve@x")) == 17
        assert dispatch(Visit("eve@x")) == "again 17"

    def test_classes_without_keys(self, registry):
        """``find_by_key`` says what is missing."""

        @aggregate(identifier="user_id")
        @event_stream("users.keyless")
        @dataclass
        class Keyless:
            user_id: int = 0

            @applies
            def registered(self, event: Registered) -> None: ...

        @command_handler("users.keyless")
        def find(number: int, users: Repository[Keyless]) -> None:
            users.find_by_key("x")

        with pytest.raises(InvalidOption, match="Keyless has no natural key"):
            registry_of(find).command_bus.dispatch(1, route="users.keyless")


@pytest.mark.django_db(transaction=True)
def test_e09_3_two_takers(registry):
    """Of two that take one key at once, one wins. [E09.3]"""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time.")
    start = threading.Barrier(2)

    def register(number):
        try:
            with transaction.atomic():
                start.wait(timeout=60)
                registry.command_bus.dispatch(Register(number + 1, "ada@x"))
        except AggregateAlreadyExists as error:
            return str(error)
        finally:
            connections.close_all()
        return number + 1

    results = at_once(register, 2)

    (winner,) = [each for each in results if isinstance(each, int)]
    assert "User with email=ada@x exists already." in results
    assert keys() == ["ada@x"]
    assert StoredEvent.objects.count() == 1
    store = EventStore(registry=registry)
    assert store.load(User, winner).email == "ada@x"

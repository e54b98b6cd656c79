"""Mistakes in aggregates and sagas: each is a check, and its route raises."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Self
from uuid import UUID

import pytest
from django.db import connection, models
from django.test.utils import CaptureQueriesContext, modify_settings

from django_cqrs import (
    Command,
    Fetch,
    Header,
    Registry,
    Version,
    command_handler,
    event_handler,
    message,
    query_handler,
)
from django_cqrs.checks import check_registry
from django_cqrs.exceptions import (
    AggregateNotFound,
    DuplicateHandler,
    InvalidHandler,
)
from django_cqrs.modelling import Repository, aggregate, saga
from tests.modelling.messages import TicketDeleted
from tests.modelling.models import Ticket
from tests.testapp.models import Note

pytestmark = pytest.mark.database


@dataclass(frozen=True)
class Do(Command[str]):
    thing_id: int


@dataclass(frozen=True)
class Done:
    thing_id: int


@dataclass(frozen=True)
class DoVersion:
    thing_id: int
    seen: Annotated[int, Version()]


class Things(Repository["Thing"]):
    """Keeps things in a dictionary."""

    kept: dict[object, Thing] = {}

    def find(self, identifier):
        return self.kept.get(identifier)

    def save(self, instance):
        self.kept[instance.thing_id] = instance


@pytest.fixture(autouse=True)
def _forget():
    Things.kept = {}


class Thing:
    def __init__(self, thing_id: int, name: str = "") -> None:
        self.thing_id = thing_id
        self.name = name


def problems_of(*targets):
    registry = Registry()
    for target in targets:
        registry.add(target)
    return registry, [
        (each.id.removeprefix("django_cqrs."), each.msg, each.hint)
        for each in check_registry(registry)
    ]


def test_E030_no_identifier():
    """An identifier that no field, or no unique one, is. [M01.4]"""

    @aggregate(identifier="nummer")
    class One(Ticket):
        class Meta:
            proxy = True
            app_label = "modelling"

        @command_handler("one")
        def act(self) -> None: ...

    _, found = problems_of(One)
    assert ("E030", "One has no field named 'nummer'.") in [each[:2] for each in found]


def test_an_identifier_that_is_not_unique():
    """A field that several rows may share identifies nothing. [M01.4]"""

    @aggregate(identifier="title")
    class Two(Ticket):
        class Meta:
            proxy = True
            app_label = "modelling"

        @command_handler("two")
        def act(self) -> None: ...

    registry, found = problems_of(Two)
    assert (
        "E030",
        "Two is identified by title, which is not unique.",
        "Give the field unique=True, or the fields a UniqueConstraint.",
    ) in found
    with pytest.raises(InvalidHandler, match="which is not unique"):
        registry.command_bus.dispatch(route="two", aggregate_id="x")


def test_E038_constructor_handler():
    """``__init__`` decorated: a constructor is no handler. [M01.4]"""

    @aggregate(repository=Things)
    class Three:
        @command_handler
        def __init__(self, command: Done) -> None: ...

    _, found = problems_of(Three)
    assert found == [
        (
            "E038",
            (
                f"{__name__}.test_E038_constructor_handler.<locals>.Three.__init__ is "
                f"decorated, but a constructor cannot be a handler."
            ),
            "Decorate a class method that creates and returns an object.",
        )
    ]


def test_E039_unknown_events():
    """A misspelt method would publish nothing, and nobody would know."""

    @aggregate(repository=Things, events="take_event")
    class Teller:
        @command_handler
        def act(self, command: Done) -> None: ...

        def take_events(self):
            return []

    registry, found = problems_of(Teller)
    assert found == [
        (
            "E039",
            "Teller has events='take_event', which is not one of its methods.",
            (
                "Name the method that returns and clears the recorded events, or "
                "derive the class from RecordsEvents."
            ),
        )
    ]
    with pytest.raises(InvalidHandler, match="not one of its methods"):
        registry.command_bus.dispatch(Done(1))


def test_E032_an_abstract_model():
    """No table holds objects of it."""

    @aggregate
    class Abstract(models.Model):
        class Meta:
            abstract = True
            app_label = "modelling"

        @command_handler("abstract")
        def act(self) -> None: ...

    registry, found = problems_of(Abstract)
    assert found == [
        (
            "E032",
            "Abstract is an abstract model: it has no table for its objects.",
            "Decorate the models that derive from it; they inherit its handlers.",
        )
    ]
    with pytest.raises(InvalidHandler, match="abstract model"):
        registry.command_bus.dispatch(route="abstract", aggregate_id=1)


def test_E001_a_handler_that_two_classes_inherit():
    """The text tells the heir; written again without a decorator it is no handler."""

    @aggregate(repository=Things)
    class Base:
        @command_handler
        def act(self, command: Done) -> None: ...

    @aggregate(repository=Things)
    class Heir(Base):
        pass

    @aggregate(repository=Things)
    class Silent(Base):
        def act(self, command: Done) -> None: ...

        @command_handler("own")
        def own(self) -> None: ...

    _, ((rule, text, hint),) = problems_of(Base, Heir)
    assert rule == "E001"
    assert "Base.act (" in text
    assert "Base.act of Heir (" in text
    assert hint.endswith(
        "A class inherits the handlers of its bases: mark only one of these classes, "
        "or override the method without a decorator in the others."
    )
    assert problems_of(Base, Silent)[1] == []


def test_E031_crowded_factory():
    """One factory with two actions for one message. [M03.2]"""

    @saga(repository=Things)
    class Four:
        @event_handler
        @classmethod
        def start(cls, event: Done) -> Four: ...

        @event_handler
        def one(self, event: Done) -> None: ...

        @event_handler
        def two(self, event: Done) -> None: ...

    registry, found = problems_of(Four)
    assert [each[0] for each in found] == ["E031"]
    assert found[0][1].startswith(
        "Done leads to more than one factory and one action of Four: "
    )
    with pytest.raises(InvalidHandler, match="more than one factory"):
        registry.event_bus.publish(Done(1))


def test_two_actions_for_one_command():
    """Without a factory a command has one action, as it has one handler. [M03.2]"""

    @aggregate(repository=Things)
    class Five:
        @command_handler
        def one(self, command: Done) -> None: ...

        @command_handler
        def two(self, command: Done) -> None: ...

    registry, found = problems_of(Five)
    assert [each[0] for each in found] == ["E001"]
    with pytest.raises(DuplicateHandler):
        registry.command_bus.dispatch(Done(1))


def test_E032_no_storage():
    """A class that is no model, without the app and without a repository. [M09.1]"""

    @aggregate
    class Six:
        def __init__(self) -> None:
            self.anything = 1

        @command_handler("six")
        def act(self) -> None: ...

    with modify_settings(INSTALLED_APPS={"remove": "django_cqrs.documents"}):
        _, found = problems_of(Six)
    assert found == [
        (
            "E032",
            (
                "Six has no storage: it is not a model, it has no repository=, and "
                "no installed app stores such objects."
            ),
            (
                "Make it a Django model, give it a repository=, or add an app to "
                "INSTALLED_APPS: 'django_cqrs.events' if it has @applies methods, else "
                "'django_cqrs.documents'."
            ),
        )
    ]


def test_E032_no_storage_for_what_a_factory_makes():
    """A factory's result needs a storage to be known: the check still says it."""

    @aggregate
    class Seven:
        @command_handler
        @classmethod
        def make(cls, command: Done) -> Self:
            return cls()

    with modify_settings(INSTALLED_APPS={"remove": "django_cqrs.documents"}):
        _, found = problems_of(Seven)
    assert [each[0] for each in found] == ["E032"]


def test_E033_bad_identifier():
    """``identifier=`` names an attribute that the message does not have."""

    @aggregate(repository=Things)
    class Seven:
        @command_handler(identifier="number")
        def act(self, command: Done) -> None: ...

    _, found = problems_of(Seven)
    assert [each[0] for each in found] == ["E033"]
    assert found[0][1].endswith(
        "Seven.act has identifier='number', but Done has no attribute 'number'."
    )


def test_E034_misplaced_policy():
    """``identifier=`` and ``on_missing=`` are for handlers of objects."""

    @event_handler(identifier="thing_id", on_missing="ignore")
    def plain(event: Done) -> None: ...

    @aggregate(repository=Things)
    class Eight:
        @event_handler(on_missing="skip")
        def act(self, event: Done) -> None: ...

    _, found = problems_of(plain, Eight)
    assert [each[0] for each in found] == ["E034", "E034", "E034"]


def test_E035_unknown_output():
    """``output=`` names a command that nothing handles."""

    @event_handler(output="thing.done")
    def plain(event: Done) -> int: ...

    @command_handler("thing.do")
    def act(number: int) -> None: ...

    _, found = problems_of(plain, act)
    assert found == [
        (
            "E035",
            (
                f"{__name__}.test_E035_unknown_output.<locals>.plain has output='thing.done', "
                f"and no command handler has this routing key."
            ),
            "Did you mean 'thing.do'?",
        )
    ]


def test_E036_bad_version():
    """A ``Version()`` on a command of an aggregate that has none, and a wrong field."""

    @aggregate(repository=Things)
    class Nine:
        @command_handler
        def act(self, command: DoVersion) -> None: ...

    @aggregate(version="title")
    class Ten(Ticket):
        class Meta:
            proxy = True
            app_label = "modelling"

        @command_handler("ten")
        def act(self) -> None: ...

    _, found = problems_of(Nine)
    assert [each[0] for each in found] == ["E036"]
    _, found = problems_of(Ten)
    assert "E036" in [each[0] for each in found]


def test_E037_bad_fetch():
    """What is fetched is an aggregate or a model. [M10.3]"""

    @command_handler
    def act(command: Done, thing: Annotated[int, Fetch("thing_id")]) -> None: ...

    _, found = problems_of(act)
    assert [each[0] for each in found] == ["E037"]
    assert "int is neither an aggregate nor a model" in found[0][1]


def test_the_identifiers_type_is_compared():
    """``Command[R]`` of a factory: R is the type of the identifier. [B03.4]"""

    @aggregate
    class Eleven(Ticket):
        class Meta:
            proxy = True
            app_label = "modelling"

        @command_handler
        @classmethod
        def make(cls, command: Do) -> Eleven: ...

    _, found = problems_of(Eleven)
    assert (
        "E014",
        (
            "Do promises a result of type str, but "
            f"{__name__}.test_the_identifiers_type_is_compared.<locals>.Eleven.make "
            "makes an object identified by a UUID."
        ),
    ) in [each[:2] for each in found]


class TestRepositories:
    def test_a_registered_one_by_class(self, db):
        """Objects of any class are found and kept by the repository named. [M09.1]"""

        @aggregate(repository=Things, identifier="thing_id")
        class Box(Thing):
            @command_handler
            @classmethod
            def make(cls, command: Do) -> Box:
                return cls(command.thing_id)

            @command_handler
            def finish(self, command: Done) -> None:
                self.name = "done"

            @query_handler("box.name")
            def get_name(self) -> str:
                return self.name

        registry = Registry()
        registry.add(Box)
        assert registry.command_bus.dispatch(Do(7)) == 7
        registry.command_bus.dispatch(Done(7))
        assert registry.query_bus.ask(route="box.name", aggregate_id=7) == "done"

    def test_models_by_default(self, db):
        """A plain model needs no decorator to be found and kept by hand. [M09.1]"""

        @command_handler("note.write")
        def write(text: str, notes: Repository[Note]) -> int:
            note = Note(text=text)
            notes.save(note)
            return note.pk

        registry = Registry()
        registry.add(write)
        pk = registry.command_bus.dispatch("hello", route="note.write")

        assert Note.objects.get(pk=pk).text == "hello"

    def test_get_find_save(self, db):
        """``get`` raises, ``find`` gives None, ``save`` publishes what was recorded. [M09.2]"""
        heard = []

        @command_handler("ticket.shout")
        def shout(number: UUID, tickets: Repository[Ticket]) -> None:
            assert tickets.find(UUID(int=2)) is None
            with pytest.raises(AggregateNotFound) as raised:
                tickets.get(UUID(int=2))
            assert str(raised.value) == (
                "Repository[Ticket] has no object with the identifier "
                "UUID('00000000-0000-0000-0000-000000000002')."
            )
            ticket = tickets.get(number)
            ticket.title = ticket.title.upper()
            ticket.record(TicketDeleted(number))
            tickets.save(ticket)
            assert heard == [TicketDeleted(number)]

        @event_handler
        def listen(event: TicketDeleted) -> None:
            heard.append(event)
            assert Ticket.objects.get().title == "LAMP"

        Ticket.objects.create(ticket_id=UUID(int=1), title="lamp")
        registry = Registry()
        for each in (shout, listen):
            registry.add(each)
        registry.command_bus.dispatch(UUID(int=1), route="ticket.shout")

        assert heard == [TicketDeleted(UUID(int=1))]


@dataclass(frozen=True)
class Compare:
    one: UUID
    other: UUID | None = None


class TestFetch:
    @pytest.fixture(autouse=True)
    def _tickets(self, db):
        for number in (1, 2):
            Ticket.objects.create(ticket_id=UUID(int=number), title=f"t{number}")

    def run(self, handler, *args, **kwargs):
        registry = Registry()
        registry.add(handler)
        return registry.command_bus.dispatch(*args, **kwargs)

    def test_found(self):
        """The object that the message names is the argument. [M10.1]"""

        @command_handler
        def title(command: Compare, ticket: Annotated[Ticket, Fetch("one")]) -> str:
            return ticket.title

        assert self.run(title, Compare(UUID(int=1))) == "t1"

    def test_absent_raises(self):
        """An object that must be there, and one that is not named, raise. [M10.1]"""

        @command_handler
        def title(command: Compare, ticket: Annotated[Ticket, Fetch("other")]) -> str:
            return ticket.title

        with pytest.raises(AggregateNotFound) as raised:
            self.run(title, Compare(UUID(int=1), UUID(int=9)))
        assert str(raised.value) == (
            f"There is no Ticket with ticket_id={UUID(int=9)}. Annotate Ticket | None "
            "if that is allowed."
        )
        with pytest.raises(AggregateNotFound, match="does not identify the Ticket"):
            self.run(title, Compare(UUID(int=1)))

    def test_or_gives_none(self):
        """``Ticket | None`` allows none. [M10.1]"""

        @command_handler
        def title(
            command: Compare, ticket: Annotated[Ticket | None, Fetch("other")]
        ) -> object:
            return ticket

        assert self.run(title, Compare(UUID(int=1), UUID(int=9))) is None
        assert self.run(title, Compare(UUID(int=1))) is None

    def test_by_attribute_header_callable(self):
        """Several in one handler, each by its own way. [M10.2]"""

        @command_handler
        def titles(
            command: Compare,
            one: Annotated[Ticket, Fetch("one")],
            two: Annotated[Ticket, Fetch(Header("number"))],
            three: Annotated[Ticket, Fetch(lambda message: message.payload.one)],
        ) -> list[str]:
            return [one.title, two.title, three.title]

        headers = {"number": str(UUID(int=2))}
        assert self.run(titles, Compare(UUID(int=1)), headers=headers) == [
            "t1",
            "t2",
            "t1",
        ]

    def test_not_saved_by_itself(self):
        """What a handler changes on it stays in memory. [M10.3]"""

        @command_handler
        def change(command: Compare, ticket: Annotated[Ticket, Fetch("one")]) -> None:
            ticket.title = "changed"

        self.run(change, Compare(UUID(int=1)))
        assert Ticket.objects.get(pk=UUID(int=1)).title == "t1"

    def test_locked_inside_a_command(self):
        """Its row is locked as an action's is; a query only reads it."""
        locking = connection.features.has_select_for_update

        @command_handler
        def act(command: Compare, ticket: Annotated[Ticket, Fetch("one")]) -> None: ...

        @query_handler
        def ask(query: Compare, ticket: Annotated[Ticket, Fetch("one")]) -> str:
            return ticket.title

        with CaptureQueriesContext(connection) as captured:
            self.run(act, Compare(UUID(int=1)))
        (select,) = [q["sql"] for q in captured if q["sql"].startswith("SELECT")]
        assert (" FOR " in select) == locking

        registry = Registry()
        registry.add(ask)
        with CaptureQueriesContext(connection) as captured:
            registry.query_bus.ask(Compare(UUID(int=1)))
        assert " FOR " not in captured[0]["sql"]


def payload_of(message):
    return message.payload


def id_of(keywords):
    """Return a name for a case, the same in every process."""
    return ", ".join(
        f"{word}={getattr(value, '__name__', value)}"
        for word, value in keywords.items()
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"channel": "outbox"}, {"channel": "memory"}),
        ({"channel": False}, {"channel": "memory"}),
        ({"priority": 1}, {"priority": 2}),
        ({"atomic": True}, {"atomic": False}),
        ({"identifier": "thing_id"}, {"identifier": payload_of}),
        ({"channel": "memory", "delay": 1}, {"delay": 2}),
        ({"output": "thing.one"}, {"output": "thing.two"}),
    ],
    ids=id_of,
)
def test_E026_unequal_pair(one, other):
    """A factory and an action for one message say nothing that is not equal."""

    @command_handler("thing.one")
    @command_handler("thing.two")
    def take(thing: object) -> None: ...

    @aggregate(repository=Things)
    class Nine:
        @event_handler(**one)
        @classmethod
        def begin(cls, event: Done) -> Nine: ...

        @event_handler(**other)
        def act(self, event: Done) -> None: ...

    registry, found = problems_of(Nine, take)
    name = next(each for each in one if each in other)
    place = f"{__name__}.test_E026_unequal_pair.<locals>.Nine"

    assert found == [
        (
            "E026",
            (
                f"{place}.begin has {name}={one[name]!r} and {place}.act has "
                f"{name}={other[name]!r}: they are the factory and the action for one "
                "message, so their keywords must be equal."
            ),
            f"Give {name}= on only one of them, or the same value on both.",
        )
    ]
    with pytest.raises(InvalidHandler, match=r"their keywords must be equal"):
        registry.event_bus.publish(Done(1))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"channel": True}, {"channel": "default"}),
        ({"channel": "memory", "delay": 60}, {"delay": timedelta(minutes=1)}),
        ({"name": "begin", "aliases": ["start"]}, {"name": "act"}),
        ({"identifier": Header("thing")}, {"identifier": Header("thing")}),
    ],
    ids=str,
)
def test_E026_is_silent_where_a_pair_says_the_same(settings, one, other):
    """However it is written; names are of one alone."""
    memory = {"BACKEND": "django_cqrs.channels.InMemoryChannel"}
    settings.DJANGO_CQRS = {"CHANNELS": {"default": memory, "memory": memory}}

    @aggregate(repository=Things)
    class Ten:
        @event_handler(**one)
        @classmethod
        def begin(cls, event: Done) -> Ten: ...

        @event_handler(**other)
        def act(self, event: Done) -> None: ...

    assert problems_of(Ten)[1] == []


def test_a_pair_is_one_by_every_way_that_leads_to_both():
    """By the class, a subclass, its name, a pattern and a key; others are no pair."""

    @message("thing.base")
    @dataclass(frozen=True)
    class Base:
        thing_id: int

    @message("thing.derived")
    @dataclass(frozen=True)
    class Derived(Base): ...

    def partners(route, other, kind=event_handler):
        @aggregate(repository=Things)
        class Eleven:
            def begin(cls, event): ...

            def act(self, event): ...

        def declare(function, by):
            is_key = isinstance(by, str)
            function.__annotations__["event"] = object if is_key else by
            return kind(by)(function) if is_key else kind(function)

        Eleven.begin = classmethod(declare(vars(Eleven)["begin"], route))
        declare(vars(Eleven)["act"], other)
        registry = Registry()
        for each in (Base, Derived, Eleven):
            registry.add(each)
        return all(each.partners for each in registry.routes.endpoints)

    assert partners(Base, Base)
    assert partners(Base, Derived)
    assert partners(Base, "thing.base")
    assert partners(Derived, "thing.*")
    assert partners("*.derived", "thing.*")
    assert partners("a.key", "a.key")
    assert partners(Base, Base, command_handler)
    assert partners(Base, "thing.base", command_handler)
    assert not partners(Base, Derived, command_handler)
    assert not partners("a.key", "another.key", command_handler)
    assert not partners(Derived, "thing.base")


def test_E034_a_keyword_that_a_factory_or_a_pair_has_no_use_for():
    """A factory finds no object, and in a pair none is missing."""

    @aggregate(repository=Things)
    class Twelve:
        @event_handler(identifier="thing_id", on_missing="ignore")
        @classmethod
        def begin(cls, event: Done) -> Twelve: ...

    @aggregate(repository=Things)
    class Thirteen:
        @event_handler
        @classmethod
        def begin(cls, event: Done) -> Thirteen: ...

        @event_handler(on_missing="ignore")
        def act(self, event: Done) -> None: ...

    place = f"{__name__}.test_E034_a_keyword_that_a_factory_or_a_pair_has_no_use_for"
    assert problems_of(Twelve, Thirteen)[1] == [
        (
            "E034",
            (
                f"{place}.<locals>.Twelve.begin has identifier=, but makes a new object, "
                f"which no message names."
            ),
            "Remove identifier=.",
        ),
        (
            "E034",
            (
                f"{place}.<locals>.Twelve.begin has on_missing=, but makes a new object, "
                f"which no message names."
            ),
            "Remove on_missing=.",
        ),
        (
            "E034",
            (
                f"{place}.<locals>.Thirteen.act has on_missing=, but has a factory beside "
                f"it, which makes the object that is missing."
            ),
            "Remove on_missing=.",
        ),
    ]


def test_E032_a_model_needs_no_other_app():
    """A project with this app alone can store its models."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == ("[]\n", "")


ALONE = """
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django_cqrs"])
django.setup()
from django.db import models
from django_cqrs import Registry, command_handler
from django_cqrs.checks import check_registry
from django_cqrs.modelling import aggregate
@aggregate
class Alone(models.Model):
    @command_handler("alone")
    def act(self) -> None: ...
    class Meta:
        app_label = "alone"
registry = Registry()
registry.add(Alone)
print(check_registry(registry))
"""

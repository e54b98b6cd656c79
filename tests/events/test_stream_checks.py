"""Mistakes in the declarations of streams and appliers are checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import pytest
from django.test.utils import isolate_apps

from django_cqrs import (
    CommandBus,
    Depends,
    Header,
    Headers,
    Message,
    Send,
    command_handler,
    message,
)
from django_cqrs.checks import check_registry
from django_cqrs.events import Recorded, applies, event_stream
from django_cqrs.events.rules import StreamRule
from django_cqrs.exceptions import InvalidHandler, InvalidOption
from django_cqrs.modelling import aggregate
from django_cqrs.models import RecordsEvents
from tests.events import test_store_faults
from tests.modelling.models import Ticket
from tests.support import registry_of

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.django_db, pytest.mark.database]


@message("checked.opened")
@dataclass(frozen=True)
class Opened:
    thing_id: int


@message("checked.closed")
@dataclass(frozen=True)
class Closed:
    thing_id: int


@dataclass(frozen=True)
class Report:
    text: str


class Handlers:
    @command_handler("thing.open")
    @classmethod
    def open(cls, thing_id: int) -> Opened:
        return Opened(thing_id)


class Applied(Handlers):
    @applies
    def opened(self: Any, event: Opened) -> None:
        self.thing_id = event.thing_id


def faults_in(cls):
    """Return the id, text and hint of each problem of a class."""
    return [(each.id, each.msg, each.hint) for each in check_registry(registry_of(cls))]


def only(cls):
    (found,) = faults_in(cls)
    return found


def stream(category, **options):
    """Return a decorator of an aggregate with streams."""

    def decorate(cls):
        return aggregate(identifier="thing_id")(
            event_stream(category, **options)(dataclass(cls))
        )

    return decorate


def test_every_rule_of_streams_has_a_test_of_its_name():
    """Each id of a check stands in the name of a test here, and in the reference."""
    own = {**globals(), **vars(test_store_faults)}
    names = "".join(each for each in own if each.startswith("test_"))
    page = (ROOT / "docs" / "reference" / "checks.md").read_text()

    # That of stores in databases is tried in test_store_faults.
    declared = [rule for rule in StreamRule if rule is not StreamRule.BAD_STORE]
    numbers = [rule.id.partition(".")[2] for rule in declared]
    assert [each for each in numbers if f"_{each}_" not in names] == []
    assert [rule.id for rule in StreamRule if f"`{rule.id}`" not in page] == []


# Streams -----------------------------------------------------------------------------


def test_E002_a_category_with_a_hyphen():
    """A hyphen ends the category in the name of a stream."""

    @stream("checked-thing")
    class Thing(Applied):
        thing_id: int = 0

    assert only(Thing) == (
        "django_cqrs_events.E002",
        (
            "Thing has no streams: its category 'checked-thing' has a hyphen, which ends a "
            "category."
        ),
        'Give it a category of its own with @event_stream("app.name").',
    )


def test_e13_6_E002_a_category_that_is_too_long_or_taken():
    """Two classes with one category would read each other's events. [E13.6]"""

    @stream("c" * 101)
    class Long(Applied):
        thing_id: int = 0

    @stream("checked.twice")
    class First(Applied):
        thing_id: int = 0

    @stream("checked.twice")
    class Second(Applied):
        thing_id: int = 0

    assert "its category has more than 100 characters" in only(Long)[1]
    assert faults_in(First) == []
    assert "has the category 'checked.twice' as well" in only(Second)[1]


def test_E002_a_class_that_no_app_names():
    """Without @event_stream the category is that of an app's class."""

    @aggregate(identifier="thing_id")
    @dataclass
    class Thing(Applied):
        thing_id: int = 0

    assert "it does not belong to an installed app" in only(Thing)[1]


def test_E002_a_natural_key_that_is_not_an_attribute():
    """The attribute of a natural key must be there."""

    @stream("checked.natural", natural_key="number")
    class Thing(Applied):
        thing_id: int = 0

    assert only(Thing)[:2] == (
        "django_cqrs_events.E002",
        "Thing has natural_key='number', which is not one of its attributes.",
    )


@isolate_apps("tests.modelling")
def test_E002_options_that_a_model_does_not_have():
    """A model's row is its state, and its fields can be unique."""

    @aggregate
    @event_stream("checked.model", natural_key="title", snapshot_every=10)
    class Streamed(Ticket):
        class Meta:
            app_label = "modelling"
            proxy = True

        @command_handler("streamed.rename")
        def rename(self, title: str) -> None: ...

    found = faults_in(Streamed)

    assert [each[0] for each in found] == ["django_cqrs_events.E002"] * 2
    assert "snapshot_every= is for classes that are their events" in found[0][1]


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((None,), {}, TypeError),
        (("",), {}, TypeError),
        (("a.b",), {"natural_key": 3}, TypeError),
        (("a.b",), {"snapshot_every": 0}, InvalidOption),
        (("a.b",), {"snapshot_every": True}, InvalidOption),
        (("a.b",), {"snapshot_version": "2"}, InvalidOption),
    ],
)
def test_options_of_the_wrong_type_raise_where_they_are_written(
    arguments, options, error
):
    """A number, a name and a text are what they are declared to be."""
    with pytest.raises(error):
        event_stream(*arguments, **options)


# Returned events ---------------------------------------------------------------------


def test_e03_6_E003_a_returned_event_without_an_applier():
    """An event that nothing applies would not be stored. [E03.6]"""

    @stream("checked.unapplied")
    class Thing(Applied):
        thing_id: int = 0

        @command_handler("thing.close")
        def close(self) -> Closed:
            return Closed(self.thing_id)

    assert only(Thing) == (
        "django_cqrs_events.E003",
        (
            "tests.events.test_stream_checks."
            "test_e03_6_E003_a_returned_event_without_an_applier.<locals>.Thing.close "
            "returns Closed, which no applier of Thing takes."
        ),
        "Write an applier for it, marked with @applies, even if it changes nothing.",
    )


@pytest.mark.parametrize(
    "annotation",
    [
        Opened | Report,
        list[Opened | Report],
        tuple[Opened, Report],
        list[Opened] | Report,
    ],
    ids=str,
)
def test_E003_an_event_beside_another_object(annotation):
    """A value beside an event counts as one."""

    @stream("checked.beside")
    class Thing(Applied):
        thing_id: int = 0

        @command_handler("thing.tell")
        def tell(self) -> annotation: ...

    assert only(Thing)[0] == "django_cqrs_events.E003"


@pytest.mark.parametrize(
    "annotation",
    [Report, str, list[str], Opened | None, list[Opened], Opened | Send, None, Any],
    ids=str,
)
def test_results_of_actions_are_no_events(annotation):
    """An action may return what it likes: what is no event is its result."""

    @stream("checked.results")
    class Thing(Applied):
        thing_id: int = 0

        @command_handler("thing.tell")
        def tell(self) -> annotation: ...

    assert faults_in(Thing) == []


# Appliers ----------------------------------------------------------------------------


class Mailer:
    pass


@pytest.mark.parametrize(
    "annotation",
    [
        CommandBus,
        Mailer,
        Message,
        Annotated[int, Depends(Mailer)],
        int,
    ],
    ids=str,
)
def test_e03_5_E004_an_applier_that_asks_for_more(annotation):
    """A service, a bus or Depends in an applier would run at every load. [E03.5]"""

    @stream("checked.asks")
    class Thing(Handlers):
        thing_id: int = 0

        @applies
        def opened(self, event: Opened, more: annotation) -> None: ...

    found = only(Thing)
    assert found[0] == "django_cqrs_events.E004"
    assert "asks for 'more'" in found[1]


def test_what_appliers_may_take():
    """Headers, the event as it is stored, and what has a default, are allowed."""

    @stream("checked.takes")
    class Thing(Handlers):
        thing_id: int = 0

        @applies
        def opened(
            self,
            event: Opened,
            by: Annotated[int, Header("executor_id")],
            headers: Headers,
            recorded: Recorded,
            more: int = 3,
        ) -> None: ...

    assert faults_in(Thing) == []


def test_e38_2_E004_an_applier_that_is_no_plain_method():
    """Async appliers and generators would do nothing. [E38.2]"""

    @stream("checked.async")
    class Async(Handlers):
        thing_id: int = 0

        @applies
        async def opened(self, event: Opened) -> None: ...

    @stream("checked.generator")
    class Generator(Handlers):
        thing_id: int = 0

        @applies
        def opened(self, event: Opened):
            yield

    assert "is async" in only(Async)[1]
    assert "is a generator" in only(Generator)[1]


@pytest.mark.parametrize(
    "annotation", [list[Opened], Annotated[int, Header("x")], "Nothing"], ids=str
)
def test_E004_an_applier_without_an_event(annotation):
    """The first parameter is the event, of a class."""

    @stream("checked.without")
    class Thing(Handlers):
        thing_id: int = 0

        @applies
        def opened(self, event: annotation) -> None: ...

    assert only(Thing)[0] == "django_cqrs_events.E004"


def test_a_broken_applier_raises_the_text_of_its_check():
    """Nothing is appended by a class that could not be loaded."""

    @stream("checked.broken")
    class Thing(Handlers):
        thing_id: int = 0

        @applies
        def opened(self, event: Opened, commands: CommandBus) -> None: ...

    with pytest.raises(InvalidHandler, match="asks for 'commands'"):
        registry_of(Thing).command_bus.dispatch(3, route="thing.open")


def test_only_methods_are_appliers():
    """A class-method has no object to change."""
    with pytest.raises(TypeError, match="@applies decorates a method of an object"):
        applies(classmethod(lambda cls, event: None))


# Neither or both -----------------------------------------------------------------------


def test_e03_6_E005_a_stream_without_appliers():
    """A class that is no model is its events, or nothing. [E03.6]"""

    @stream("checked.nothing")
    class Thing(Handlers):
        thing_id: int = 0

    assert only(Thing)[:2] == (
        "django_cqrs_events.E005",
        (
            "Thing has @event_stream, but it is not a model, and no method is marked with "
            "@applies: it would be stored nowhere."
        ),
    )


@isolate_apps("tests.modelling")
@pytest.mark.parametrize("has_stream", [True, False])
def test_e03_6_E005_appliers_of_a_model(has_stream):
    """The state of a model is its row. [E03.6]"""

    class Streamed(Ticket):
        class Meta:
            app_label = "modelling"
            proxy = True

        @command_handler("streamed.rename")
        def rename(self, title: str) -> None: ...

        @applies
        def opened(self, event: Opened) -> None: ...

    if has_stream:
        event_stream("checked.both")(Streamed)
    aggregate(Streamed)

    assert only(Streamed)[:2] == (
        "django_cqrs_events.E005",
        (
            "Streamed is a model, so its applier opened is never called: its state is its "
            "row."
        ),
    )


# Transactions ------------------------------------------------------------------------


def test_e16_3_E014_without_a_transaction():
    """Events are appended and published in one transaction. [E16.3]"""

    @stream("checked.atomic")
    class Thing(Applied):
        thing_id: int = 0

        @command_handler("thing.touch", atomic=False)
        def touch(self) -> None: ...

    found = only(Thing)
    assert found[0] == "django_cqrs_events.E014"
    assert found[1].endswith(
        "Thing.touch has atomic=False, but what happens to a Thing is appended and "
        "published in one transaction."
    )


# What documents have as well ----------------------------------------------------------


def test_e03_7_objects_without_room_for_the_version():
    """``slots=True`` alone leaves no room; with RecordsEvents there is some. [E03.7]"""

    @aggregate(identifier="thing_id")
    @event_stream("checked.slots")
    class Thing:
        __slots__ = ("thing_id",)
        thing_id: int

        @command_handler("thing.open")
        @classmethod
        def open(cls, thing_id: int) -> Opened:
            return Opened(thing_id)

        @applies
        def opened(self, event: Opened) -> None:
            self.thing_id = event.thing_id

    @aggregate(identifier="thing_id")
    @event_stream("checked.roomy")
    @dataclass(slots=True)
    class Roomy(RecordsEvents, Applied):
        thing_id: int = 0

    assert only(Thing)[:2] == (
        "django_cqrs.E043",
        (
            "Thing has only __slots__, so its objects cannot remember which version was "
            "read."
        ),
    )
    assert faults_in(Roomy) == []


def test_a_state_that_snapshots_cannot_hold():
    """It matters to classes with snapshots alone."""

    class Sets(Applied):
        def open_it(self) -> None:
            self.secret = 1

    @stream("checked.snapshots", snapshot_every=10)
    class Thing(Sets):
        thing_id: int = 0

    @stream("checked.no_snapshots")
    class Other(Sets):
        thing_id: int = 0

    assert only(Thing)[:2] == (
        "django_cqrs.E043",
        "Thing.secret is set but not annotated, so its value would be lost.",
    )
    assert faults_in(Other) == []


def test_identifier_and_version_are_attributes():
    """They are checked as those of documents are."""

    @aggregate(identifier="number", version="revision")
    @event_stream("checked.options")
    @dataclass
    class Thing(Applied):
        thing_id: int = 0
        others: list[UUID] = field(default_factory=list)

    assert [each[0] for each in faults_in(Thing)] == [
        "django_cqrs.E030",
        "django_cqrs.E036",
    ]

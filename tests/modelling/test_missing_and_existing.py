"""What happens where the object of a message is missing, or exists already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
from django.http import Http404

from django_cqrs import (
    CommandBus,
    Identifier,
    Registry,
    Retry,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.checks import check_registry
from django_cqrs.declaration.declarations import Kind
from django_cqrs.documents import DocumentStore, document
from django_cqrs.exceptions import AggregateAlreadyExists, AggregateNotFound
from django_cqrs.modelling import Saga, aggregate, saga
from django_cqrs.models import RecordsEvents
from django_cqrs.outbox.models import OutboxMessage
from tests.outbox.support import worker_of
from tests.support import registry_of
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db(transaction=True)


class NoBox(Exception):
    """What a project raises of its own."""


class Named(Exception):
    """One that is not made from a text alone."""

    def __init__(self, *, name: str) -> None:
        super().__init__(name)


@message("missing.made")
@dataclass(frozen=True)
class Made:
    number: int


def box_of(*, on_missing=None, on_existing=None, output=None, mark=aggregate):
    """Return a registry with an aggregate whose handlers have these keywords."""
    base = Saga if mark is saga else object

    @mark(identifier="number")
    @document("missing.box")
    @dataclass(kw_only=True)
    class Box(RecordsEvents, base):
        number: int
        count: int = 0

        @command_handler("box.make", on_existing=on_existing, output=output)
        @classmethod
        def make(cls, number: int) -> Box:
            Note.objects.create(text="made")
            made = cls(number=number)
            made.record(Made(number))
            return made

        @command_handler("box.fill", on_missing=on_missing)
        def fill(self, count: int) -> None:
            self.count += count

    heard = []

    @event_handler
    def hear(event: Made) -> None:
        heard.append(event.number)

    @command_handler("box.made")
    def made(sent: object) -> None:
        heard.append(sent)

    registry = registry_of(Box, hear, made)
    assert check_registry(registry) == []
    return registry, heard


def test_a_missing_object_raises_an_exception_of_ones_own():
    """Its class gets the text of the usual error, which is the cause."""
    registry, _ = box_of(on_missing=Http404)

    with pytest.raises(Http404, match=r"there is no .*Box with number=7") as caught:
        registry.command_bus.dispatch(1, route="box.fill", aggregate_id=7)

    assert isinstance(caught.value.__cause__, AggregateNotFound)


def test_an_instance_is_raised_as_a_copy_each_time():
    """The traceback of one message is not that of another."""
    given = NoBox("Make one first.")
    registry, _ = box_of(on_missing=given)
    caught = []
    for _ in range(2):
        with pytest.raises(NoBox, match=r"Make one first\.") as each:
            registry.command_bus.dispatch(1, route="box.fill", aggregate_id=7)
        caught.append(each.value)

    assert caught[0] is not caught[1]
    assert given.__traceback__ is None


def test_an_instance_that_cannot_be_copied_is_raised_itself():
    """Its class takes other arguments than it keeps."""
    given = Named(name="box")
    registry, _ = box_of(on_missing=given)

    with pytest.raises(Named) as caught:
        registry.command_bus.dispatch(1, route="box.fill", aggregate_id=7)

    assert caught.value is given


def test_a_message_that_names_no_object_raises_the_usual_error():
    """The sender has made a mistake: that is not a missing object."""
    registry, _ = box_of(on_missing=NoBox)

    with pytest.raises(AggregateNotFound, match="no identifier"):
        registry.command_bus.dispatch(1, route="box.fill")


def test_a_saga_that_is_over_raises_it_too():
    """For its messages it is missing."""
    registry, _ = box_of(on_missing=NoBox, mark=saga)
    registry.command_bus.dispatch(7, route="box.make")
    store = DocumentStore(
        registry.routes.handler_of_key(Kind.COMMAND, "box.fill").owner
    )
    over = store.get(7)
    over.complete()
    store.upsert(7, over)

    with pytest.raises(NoBox, match="is completed"):
        registry.command_bus.dispatch(1, route="box.fill", aggregate_id=7)


def test_an_object_that_exists_is_ignored():
    """The factory is undone whole, nothing is sent, and the identifier is returned."""
    registry, heard = box_of(on_existing="ignore", output="box.made")
    first = registry.command_bus.dispatch(7, route="box.make")
    heard_first = heard[:]
    second = registry.command_bus.dispatch(7, route="box.make")

    assert first == second == 7
    assert sorted(heard_first) == [7, 7]
    assert heard == heard_first
    assert Note.objects.count() == 1


@pytest.mark.parametrize("given", [NoBox, NoBox("there")])
def test_an_object_that_exists_raises_an_exception_of_ones_own(given):
    """Nothing of the factory is kept, as with the usual error."""
    registry, heard = box_of(on_existing=given)
    registry.command_bus.dispatch(7, route="box.make")

    with pytest.raises(NoBox) as caught:
        registry.command_bus.dispatch(7, route="box.make")

    assert isinstance(caught.value.__cause__, AggregateAlreadyExists)
    assert (Note.objects.count(), heard) == (1, [7])


def test_an_object_of_another_factory_is_not_ignored():
    """A factory that dispatches another one gets its error."""
    registry, _ = box_of(on_existing="raise")

    @aggregate(identifier="number")
    @document("missing.crate")
    @dataclass
    class Crate:
        number: int

        @command_handler("crate.make", on_existing="ignore")
        @classmethod
        def make(cls, number: int, bus: CommandBus) -> Crate:
            bus.dispatch(1, route="box.make")
            return cls(number)

    registry.add(Crate)
    registry.command_bus.dispatch(1, route="box.make")

    with pytest.raises(AggregateAlreadyExists):
        registry.command_bus.dispatch(5, route="crate.make")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no", "has on_missing='no'."),
        (7, "has on_missing=7."),
        (dict, "has on_missing=<class 'dict'>."),
        (KeyboardInterrupt, "has on_missing=<class 'KeyboardInterrupt'>."),
        (Named, "is not made from one text, so give an instance"),
    ],
)
def test_a_value_that_is_no_exception_is_a_problem(value, said):
    """One check names the handler, the value and what may stand there."""

    @aggregate(identifier="number")
    @document("missing.bin")
    @dataclass
    class Bin:
        number: int

        @command_handler("bin.fill", on_missing=value)
        def fill(self, count: int) -> None: ...

    [found] = check_registry(registry_of(Bin))

    assert found.id == "django_cqrs.E034"
    assert said in found.msg


# ------------------------------------------------------------ the order of an object


@message("missing.add")
@dataclass(frozen=True)
class Add:
    number: Annotated[int, Identifier()]
    count: int


def ordered(*, shape="action"):
    """Return a registry whose aggregate keeps the messages of each object in order."""
    done = []

    @aggregate(identifier="number")
    @document("missing.tub")
    @dataclass
    class Tub:
        number: int

        if shape == "pair":

            @command_handler
            @classmethod
            def make(cls, sent: Add) -> Tub:
                return cls(sent.number)

        @command_handler(
            channel="outbox",
            ordering_key=True,
            name="tub.add",
            retry=Retry(attempts=1),
        )
        def add(self, sent: Add) -> None:
            done.append((sent.number, sent.count))
            if sent.count < 0:
                raise NoBox

    registry = registry_of(Tub)
    assert check_registry(registry) == []
    for number in (1, 2):
        DocumentStore(Tub).upsert(number, Tub(number))
    return registry, done


@pytest.mark.parametrize("shape", ["action", "pair"])
def test_the_messages_of_one_object_keep_their_order(shape):
    """A dead letter parks the rest of its object, and no other."""
    registry, done = ordered(shape=shape)
    for sent in (Add(1, -1), Add(1, 2), Add(2, 3)):
        registry.command_bus.dispatch(sent)
    keys = {each.ordering_key for each in OutboxMessage.objects.all()}
    subjects = {each.subject for each in OutboxMessage.objects.all()}
    worker_of(registry).run()

    assert keys == subjects
    assert len(keys) == 2
    assert done == [(1, -1), (2, 3)]


@pytest.mark.parametrize("shape", ["function", "factory"])
def test_a_handler_without_an_object_cannot_take_its_order(shape):
    """There is no object that the messages are for."""
    registry = Registry()
    given = {"channel": "outbox", "ordering_key": True}
    if shape == "function":

        @registry.add
        @command_handler("order.act", **given)
        def act(count: int) -> None: ...

    else:

        @registry.add
        @aggregate(identifier="number")
        @document("missing.vat")
        @dataclass
        class Vat:
            number: int

            @command_handler("vat.make", **given)
            @classmethod
            def make(cls, number: int) -> Vat:
                return cls(number)

    [found] = check_registry(registry)
    assert found.id == "django_cqrs.E021"
    assert "ordering_key=True, but" in found.msg

"""An object that a handler holds is never saved over what its unit of work wrote."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import Annotated

import pytest
from django.db import connection, models
from django.db.transaction import atomic

from django_cqrs import CommandBus, Registry, command_handler
from django_cqrs.exceptions import ConcurrencyError
from django_cqrs.modelling import Fetch, Repository
from tests.modelling.boxes import (
    KINDS,
    MODELS,
    Back,
    Inner,
    Outer,
    Relay,
    by_hand,
    put,
    values_of,
)

pytestmark = [pytest.mark.django_db, pytest.mark.database]

BOX = MODELS["Box"]
BY_HAND = f"{by_hand.__module__}.by_hand.<locals>.write"
EVERY_WAY = {
    "command": "{}.inner",
    "event": "{}.back",
    "another aggregate's event": "{}.relayed",
    "repository": BY_HAND,
    "deletion": BY_HAND,
}
WAYS_OF_MODELS = {
    "fetch": BY_HAND,
    "queryset": BY_HAND,
    "object": BY_HAND,
    "bulk": BY_HAND,
    "SQL": BY_HAND,
}
CASES = [(name, way, who) for name in KINDS for way, who in EVERY_WAY.items()] + [
    (name, way, who) for name in MODELS for way, who in WAYS_OF_MODELS.items()
]


@pytest.fixture
def dispatch(name):
    """The command bus of a registry that has the box, with one of each number."""
    registry = Registry()
    for each in (KINDS[name], Relay, by_hand(KINDS[name])):
        registry.add(each)
    for number in (7, 8):
        put(name, number)
        Relay.objects.create(pk=number)
    yield registry.command_bus.dispatch
    getattr(KINDS["KeptBox"](0), "kept").clear()  # noqa: B009


def assert_nobody_looks():
    """Assert that statements are no longer looked at, after the next one."""
    connection.rollback_exc = None  # by which Django keeps the frames of the last one
    gc.collect()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert connection.execute_wrappers == []


@pytest.mark.parametrize(("name", "way", "who"), CASES)
def test_a_save_over_what_the_unit_of_work_wrote_names_both_handlers(
    name, way, who, dispatch
):
    """Whoever wrote it in between, and by what: ConcurrencyError, nothing is kept."""
    with pytest.raises(ConcurrencyError) as raised, atomic():
        dispatch(Outer(7, way))

    text = str(raised.value)
    writer = who.format(name)
    key = "place_ptr_id" if name == "ChildBox" else "box_id"
    assert text.startswith(
        f"{name} with {key}=7 was changed or deleted by {writer} since {name}.outer "
        f"loaded it, in the same unit of work: a save would overwrite "
    )
    assert type(raised.value).__name__ == "ConcurrencyError"
    del raised  # its frames have the objects
    if name != "KeptBox":  # which knows no transaction
        assert values_of(name, 7) == (0, 0)
    assert_nobody_looks()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("way", EVERY_WAY)
def test_what_is_written_to_another_object_is_no_loss(name, way, dispatch):
    """Rows of the same table, but not this one: both are kept."""
    dispatch(Outer(7, way, other_id=8))

    assert values_of(name, 7) == (1, 0)
    assert values_of(name, 8) == (None if way == "deletion" else (0, 1))


@pytest.mark.parametrize("name", KINDS)
def test_an_event_that_comes_back_after_the_save_is_kept(name, dispatch):
    """What an object has recorded is handled when the object is saved."""
    dispatch(Outer(7, "after the save"))

    assert values_of(name, 7) == (1, 1)


@pytest.mark.parametrize("name", MODELS)
def test_a_method_that_writes_its_own_row_by_a_queryset_is_named(name, dispatch):
    """The old value in the object would be written over the new one in the row."""
    if name == "ChildBox":
        pytest.skip("Its b is another table's: a queryset updates it all the same.")
    with pytest.raises(ConcurrencyError) as raised, atomic():
        dispatch(Outer(7, "its own queryset"))

    assert f"by {name}.outer itself since" in str(raised.value)


@pytest.mark.parametrize("name", KINDS)
def test_what_was_rolled_back_is_no_loss(name):
    """A nested command that failed, and whose failure was caught, has left nothing."""
    kind = KINDS[name]

    @command_handler("box.careful")
    def careful(command: Inner, commands: CommandBus) -> None:
        try:
            commands.dispatch(Inner(7, fails=True), route="box.inner")
        except LookupError:
            commands.dispatch(Inner(8), route="box.inner")

    @command_handler("box.by_hand")
    def tried(command: Inner, commands: CommandBus) -> None:
        with suppress(LookupError):
            commands.dispatch(command, route="box.twice")

    @command_handler("box.twice")
    def twice(command: Inner, commands: CommandBus) -> None:
        commands.dispatch(Inner(command.box_id), route="box.inner")
        raise LookupError

    registry = Registry()
    for each in (kind, careful, tried, twice):
        registry.add(each)
    for number in (7, 8):
        put(name, number)

    if name != "KeptBox":
        registry.command_bus.dispatch(Outer(7, "by hand"))
        assert values_of(name, 7) == (1, 0)
    else:  # its storage has kept what the transaction has not, and the save undoes it
        registry.command_bus.dispatch(Outer(7, "by hand"))
        assert values_of(name, 7) == (1, 0)
        KINDS["KeptBox"](0).kept.clear()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("save", ["save", "repository"])
def test_an_object_held_by_a_handler_is_not_saved_over_its_own_unit(name, save):
    """What Fetch and Repository give is guarded as the object of an action is."""
    kind = MODELS[name]

    @command_handler("box.hold")
    def hold(command: Inner, box: None, boxes: None, commands: CommandBus) -> None:
        if save == "repository":
            box = boxes.get(command.box_id)
        commands.dispatch(command, route="box.inner")
        box.a += 1
        if save == "repository":
            boxes.save(box)
        else:
            box.save()

    hold.__annotations__ |= {
        "command": Inner,
        "box": Annotated[kind, Fetch("box_id")],
        "boxes": Repository[kind],
    }
    registry = Registry()
    for each in (kind, hold):
        registry.add(each)
    put(name, 7)

    with pytest.raises(ConcurrencyError) as raised, atomic():
        registry.command_bus.dispatch(Inner(7), route="box.hold")

    text = str(raised.value)
    assert f"by {name}.inner since {hold.__module__}" in text
    assert values_of(name, 7) == (0, 0)
    del raised
    assert_nobody_looks()


class TestWhatIsNoLoss:
    """Saves that write nothing over: they stay as they were."""

    @pytest.fixture
    def run(self):
        """Run a function as the method of a box, and return what is kept."""

        def run(function):
            registry = Registry()
            for each in (MODELS["Box"], by_hand(MODELS["Box"])):
                registry.add(each)
            put("Box", 7)

            @command_handler("box.run")
            def handle(command: Inner, box: None, commands: CommandBus) -> None:
                function(box, commands)
                box.save()

            handle.__annotations__ |= {
                "command": Inner,
                "box": Annotated[BOX, Fetch("box_id")],
            }
            registry.add(handle)
            registry.command_bus.dispatch(Inner(7), route="box.run")
            return values_of("Box", 7)

        return run

    def test_an_object_that_was_refreshed(self, run):
        """It knows what the others wrote."""

        def body(box, commands):
            commands.dispatch(Inner(7), route="box.inner")
            box.refresh_from_db()
            box.a += 1

        assert run(body) == (1, 1)

    def test_an_object_that_saves_itself_twice(self, run):
        """Its own writes are no others'."""

        def body(box, commands):
            box.a += 1
            box.save()
            box.a += 1

        assert run(body) == (2, 0)

    def test_a_save_of_other_fields(self, run):
        """What is not written is not written over; a later whole save is refused."""

        def body(box, commands):
            commands.dispatch(Inner(7), route="box.inner")
            box.a += 1
            box.save(update_fields=["a"])
            assert values_of("Box", 7) == (1, 1)
            box.refresh_from_db(fields=["b"])

        assert run(body) == (1, 1)

    def test_what_the_database_computes(self, run):
        """F() goes on from the value that is there."""

        def body(box, commands):
            commands.dispatch(Inner(7), route="box.inner")
            box.b = models.F("b") + 10

        assert run(body) == (0, 11)

    def test_the_same_value(self, run):
        """Two that write one value have lost nothing."""

        def body(box, commands):
            commands.dispatch(Inner(7), route="box.inner")
            box.b = 1

        assert run(body) == (0, 1)

    def test_a_deferred_field(self, run):
        """A field that was not loaded is not saved."""

        def body(box, commands):
            commands.dispatch(Inner(7), route="box.inner")
            del box.__dict__["b"]

        assert run(body) == (0, 1)


def test_a_save_of_other_fields_does_not_hide_what_is_lost(dispatch_box):
    """A whole save after a partial one is refused as it was before."""

    def body(box, commands):
        commands.dispatch(Inner(7), route="box.inner")
        box.a += 1
        box.save(update_fields=["a"])
        box.save()

    with (
        pytest.raises(ConcurrencyError, match="a save would overwrite b\\."),
        atomic(),
    ):
        dispatch_box(body)


@pytest.fixture
def dispatch_box():
    """Run a function with a box that it holds."""

    def run(function):
        registry = Registry()
        registry.add(MODELS["Box"])
        put("Box", 7)

        @command_handler("box.run")
        def handle(command: Inner, box: None, commands: CommandBus) -> None:
            function(box, commands)

        handle.__annotations__ |= {
            "command": Inner,
            "box": Annotated[BOX, Fetch("box_id")],
        }
        registry.add(handle)
        registry.command_bus.dispatch(Inner(7), route="box.run")

    return run


def test_an_event_handled_outside_a_command_is_guarded_too():
    """An action of an event has a transaction, and so a unit of work, of its own."""
    registry = Registry()
    registry.add(MODELS["Box"])
    put("Box", 7)
    registry.event_bus.publish(Back(7))

    assert values_of("Box", 7) == (0, 1)
    assert_nobody_looks()

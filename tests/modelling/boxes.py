"""One aggregate, kept in every way there is: what happens to it is to be the same."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Annotated, Any

from django.db import connection, models

from django_cqrs import CommandBus, EventBus, command_handler, event_handler
from django_cqrs.documents import DocumentStore, document
from django_cqrs.modelling import Fetch, Repository, aggregate, saga
from django_cqrs.models import RecordsEvents, SagaModel


@dataclass(frozen=True)
class Outer:
    """A command that has `way` of writing chosen while the box is held."""

    box_id: int
    way: str
    other_id: int = 0
    fails: bool = False

    @property
    def target(self) -> int:
        return self.other_id or self.box_id


@dataclass(frozen=True)
class Inner:
    box_id: int
    way: str = ""
    fails: bool = False


@dataclass(frozen=True)
class Back:
    box_id: int


@dataclass(frozen=True)
class Relayed:
    box_id: int


def make_handlers() -> type:
    """Return what every box handles."""

    class Handlers:
        a: int
        b: int
        box_id: int

        @command_handler
        def outer(self, command: Outer, commands: CommandBus, events: EventBus) -> None:
            self.a += 1
            inner = Inner(command.target, command.way, command.fails)
            match command.way:
                case "command":
                    commands.dispatch(inner, route="box.inner")
                case "event":
                    events.publish(Back(command.target))
                case "another aggregate's event":
                    commands.dispatch(route="relay.send", aggregate_id=command.target)
                case "after the save":
                    self.record(Back(command.target))  # type: ignore[attr-defined]
                case "its own queryset":
                    rows = type(self)._default_manager.filter(pk=command.target)
                    rows.update(b=models.F("b") + 1)
                case _:
                    commands.dispatch(inner, route="box.by_hand")

        @command_handler("box.inner")
        def inner(self, command: Inner) -> None:
            self.b += 1
            if command.fails:
                raise LookupError("on purpose")

        @event_handler
        def back(self, event: Back) -> None:
            self.b += 1

        @event_handler
        def relayed(self, event: Relayed) -> None:
            self.b += 1

    return Handlers


Handlers: Any = make_handlers()


class BoxModel(Handlers, RecordsEvents, models.Model):
    box_id = models.IntegerField(primary_key=True)
    a = models.IntegerField(default=0)
    b = models.IntegerField(default=0)

    class Meta:
        abstract = True
        app_label = "modelling"


def make_boxes() -> dict[str, Any]:
    """Return the classes; they are local, so that no registry finds them by itself."""

    @aggregate
    class Box(BoxModel):
        class Meta:
            app_label = "modelling"
            db_table = "modelling_held_box"

    @aggregate(version="version")
    class VersionedBox(BoxModel):
        version = models.PositiveIntegerField(default=0)

        class Meta:
            app_label = "modelling"

    class Place(models.Model):
        box_id = models.IntegerField(primary_key=True)
        b = models.IntegerField(default=0)

        class Meta:
            app_label = "modelling"

    @aggregate
    class ChildBox(Handlers, RecordsEvents, Place):
        a = models.IntegerField(default=0)

        class Meta:
            app_label = "modelling"

    @saga
    class Process(Handlers, SagaModel):
        box_id = models.IntegerField(primary_key=True)
        a = models.IntegerField(default=0)
        b = models.IntegerField(default=0)

        class Meta:
            app_label = "modelling"

    @aggregate
    class Relay(RecordsEvents, models.Model):
        box_id = models.IntegerField(primary_key=True)

        class Meta:
            app_label = "modelling"

        @command_handler("relay.send")
        def send(self) -> None:
            self.record(Relayed(self.box_id))

    return {cls.__name__: cls for cls in (Box, VersionedBox, ChildBox, Process, Relay)}


MODELS = make_boxes()
Relay = MODELS.pop("Relay")


def make_others() -> dict[str, Any]:
    """Return boxes that are no models."""

    @aggregate(identifier="box_id")
    @document("modelling.held_box")
    @dataclass
    class DocumentBox(Handlers, RecordsEvents):
        box_id: int
        a: int = 0
        b: int = 0

    kept: dict[int, Any] = {}

    class InMemory(Repository[Any]):
        def find(self, identifier: Any, /) -> Any:
            return copy.copy(kept.get(identifier))

        def save(self, instance: Any, /) -> None:
            kept[instance.box_id] = copy.copy(instance)

        def delete(self, instance: Any, /) -> None:
            del kept[instance.box_id]

    @aggregate(identifier="box_id", repository=InMemory())
    @dataclass
    class KeptBox(Handlers, RecordsEvents):
        box_id: int
        a: int = 0
        b: int = 0
        kept: dict[int, Any] = field(default_factory=lambda: kept, repr=False)

    return {"DocumentBox": DocumentBox, "KeptBox": KeptBox}


OTHERS = make_others()
KINDS = MODELS | OTHERS


def values_of(name: str, box_id: int) -> tuple[int, int] | None:
    """Return what is kept of a box, None where it is gone."""
    if name in MODELS:
        return MODELS[name].objects.filter(pk=box_id).values_list("a", "b").first()
    if name == "DocumentBox":
        box = DocumentStore(OTHERS[name]).find(box_id)
    else:
        box = OTHERS[name](0).kept.get(box_id)
    return None if box is None else (box.a, box.b)


def put(name: str, box_id: int) -> None:
    """Keep a new box."""
    if name in MODELS:
        MODELS[name].objects.create(box_id=box_id)
    elif name == "DocumentBox":
        DocumentStore(OTHERS[name]).add(box_id, OTHERS[name](box_id))
    else:
        OTHERS[name](0).kept[box_id] = OTHERS[name](box_id)


def by_hand(kind: Any) -> Any:
    """Return a handler that writes a box without any method of its own."""

    @command_handler("box.by_hand")
    def write(
        command: Inner,
        fetched: Annotated[kind, Fetch("box_id")],  # type: ignore[valid-type]
        boxes: Repository[kind],  # type: ignore[valid-type]
    ) -> None:
        rows = getattr(kind, "objects", None)
        match command.way:
            case "fetch":
                fetched.b += 1
                fetched.save()
            case "repository":
                box = boxes.get(command.box_id)
                box.b += 1
                boxes.save(box)
            case "deletion":
                boxes.delete(boxes.get(command.box_id))
            case "queryset":
                rows.filter(pk=command.box_id).update(b=models.F("b") + 1)
            case "object":
                box = rows.get(pk=command.box_id)
                box.b += 1
                box.save(update_fields=["b"])
            case "bulk":
                box = rows.get(pk=command.box_id)
                box.b += 1
                rows.bulk_update([box], ["b"])
            case "SQL":
                table = kind._meta.get_field("b").model._meta.db_table
                with connection.cursor() as cursor:
                    cursor.execute(
                        f"update {table} set b = b + 1 where box_id = %s",
                        [command.box_id],
                    )
        if command.fails:
            raise LookupError("on purpose")

    write.__annotations__ |= {
        "fetched": Annotated[kind, Fetch("box_id")],
        "boxes": Repository[kind],
        "command": Inner,
    }
    return write

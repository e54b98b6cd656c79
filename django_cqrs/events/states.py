"""The states that projections keep between events: one each, or one a partition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.annotations import bare_type, name_of_type
from django_cqrs.events.models import Partition
from django_cqrs.events.partitions import Place
from django_cqrs.events.projecting import ProjectionOptions
from django_cqrs.events.rows import RowPlan, ViewRows
from django_cqrs.events.rules import ProjectionRule
from django_cqrs.exceptions import InvalidHandler
from django_cqrs.messages import MessageName
from django_cqrs.problems import Problem
from django_cqrs.shapes import Shape, shape_of

_NAME: Final = MessageName("")


class StateType:
    """The type of a projection's state, with its JSON form."""

    def __init__(self, annotation: Any) -> None:
        """Take the annotation of a parameter."""
        self.annotation = annotation
        self._shape: Shape = shape_of(annotation)
        self._class = _class_of(annotation)

    def new(self) -> Any:
        """Return a new state."""
        return self._class()

    def takes(self, value: Any) -> bool:
        """Return whether a handler's result is a state."""
        return isinstance(value, self._class)

    def text_of(self, state: Any) -> str:
        """
        Return a state as JSON text.

        Raises:
            MessageConversionError: a part of it would not be restored.

        """
        form = self._shape.dump(state)
        return json.dumps(form, ensure_ascii=False, separators=(",", ":"))

    def read(self, text: str) -> Any:
        """
        Return the state of a JSON text.

        Raises:
            MessageConversionError: it does not have this type.

        """
        return self.read_form(json.loads(text))

    def read_form(self, form: Any) -> Any:
        """
        Return the state of a JSON form.

        Raises:
            MessageConversionError: it does not have this type.

        """
        return self._shape.load(form, _NAME, "", 1)

    def fault(self) -> tuple[str, str] | None:
        """Return the reason why it cannot be a state and its fix, None if it can."""
        name = name_of_type(self.annotation)
        for fault in self._shape.faults():
            return fault.text, fault.hint
        try:
            self.new()
        except Exception as error:  # noqa: BLE001 - the class may run any code
            return (
                f"{name} cannot be made without arguments ({error}).",
                "Give its fields defaults.",
            )
        return None


def _class_of(annotation: Any) -> Any:
    import typing

    bare = bare_type(annotation)
    return typing.get_origin(bare) or bare


def state_problem(
    options: ProjectionOptions, types: Sequence[Any], owner: type
) -> Problem | None:
    """Return the reason why a projection cannot keep its state, None if it can."""
    if not types:
        return None
    name = options.name
    if len(types) > 1:
        named = " and ".join(map(name_of_type, types))
        text = f"The handlers of the projection {name!r} take {named} as its State."
        return Problem(
            ProjectionRule.BAD_STATE, text, "Use one class for the state.", owner
        )
    if options.shards > 1 and options.partition_by is None:
        text = (
            f"The projection {name!r} has {options.shards} shards, which cannot share "
            "one State."
        )
        hint = "Give it partition_by=, so that each partition has a state of its own."
        return Problem(ProjectionRule.BAD_STATE, text, hint, owner)
    fault = StateType(types[0]).fault()
    if fault is None:
        return None
    text = f"The projection {name!r} cannot keep its State: {fault[0]}"
    return Problem(ProjectionRule.BAD_STATE, text, fault[1], owner)


class States:
    """The states of a projection that has none."""

    def expect(self, place: Place) -> None:
        """Note that the state of a partition will be needed."""

    def get(self, message: Any) -> Any:
        """
        Return the state for a message.

        Raises:
            InvalidHandler: there is none.

        """
        msg = "This handler takes a State, but its projection keeps none here."
        raise InvalidHandler(msg)

    def put(self, message: Any, state: Any) -> None:
        """Replace the state for a message by a handler's result, if it is one."""

    def save(self) -> None:
        """Write what has changed, or make it ready to be written."""


NO_STATE: Final = States()


class ProjectionState(States):
    """The one state of a projection, kept beside its position."""

    def __init__(self, annotation: Any, text: str | None) -> None:
        """Take the stored text; None at first."""
        self._type = StateType(annotation)
        self.text = text
        """The text to store; it changes when the states are saved."""
        self._state: Any = None if text is None else self._type.read(text)

    def get(self, message: Any) -> Any:
        """Return the state, a new one at first."""
        if self._state is None:
            self._state = self._type.new()
        return self._state

    def put(self, message: Any, state: Any) -> None:
        """Replace the state."""
        if self._type.takes(state):
            self._state = state

    def save(self) -> None:
        """ShardTurn the state into text."""
        if self._state is not None:
            self.text = self._type.text_of(self._state)


_PLAN_FIELDS: Final = ("generation_id", "stream_id", "key")


def partition_plan() -> RowPlan:
    """Return the plan that finds a partition by generation, stream and key."""
    fields: Any = tuple(Partition._meta.get_field(name) for name in _PLAN_FIELDS)
    place = (Partition, *_PLAN_FIELDS)
    return RowPlan(Partition, fields, "create", lambda _message: (), place)


class PartitionStates(States):
    """A state for each partition, each in a row of its own."""

    def __init__(
        self, annotation: Any, generation: int, connection: BaseDatabaseWrapper
    ) -> None:
        """Take the key of the generation, and the database."""
        self._type = StateType(annotation)
        self._generation = generation
        self._plan = partition_plan()
        self._rows = ViewRows(connection)
        self._states: dict[Place, Any] = {}

    def expect(self, place: Place) -> None:
        """Note that a partition's state will be needed: all are read by one query."""
        self._rows.expect(self._plan, (self._generation, *place))

    def get(self, message: Any) -> Any:
        """Return the state of the message's partition, a new one at first."""
        place: Place = message.partition
        state = self._states.get(place)
        if state is None:
            row: Any = self._rows.get(self._plan, (self._generation, *place))
            stored = row.state
            state = self._type.new() if stored is None else self._read(stored)
            self._states[place] = state
        return state

    def _read(self, stored: Any) -> Any:
        return self._type.read(json.dumps(stored))

    def put(self, message: Any, state: Any) -> None:
        """Replace the state of the message's partition."""
        if self._type.takes(state):
            self.get(message)
            self._states[message.partition] = state

    def save(self) -> None:
        """Write the states that have changed."""
        for place, state in self._states.items():
            row: Any = self._rows.get(self._plan, (self._generation, *place))
            row.state = json.loads(self._type.text_of(state))
        self._rows.flush()

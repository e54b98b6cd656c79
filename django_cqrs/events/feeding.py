"""Stored events as messages, and what handlers of projections get beside the event."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Protocol
from uuid import UUID

from django.db import models

from django_cqrs.annotations import (
    marks_of,
    name_of_type,
    place_of,
    signature_of,
    sole_type,
)
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.declaration.marks import Header
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.rows import Row, RowFault, RowPlan, row_plan
from django_cqrs.events.rules import ProjectionRule
from django_cqrs.exceptions import InvalidOption
from django_cqrs.messages import (
    EPOCH,
    RESERVED_PREFIXES,
    HeaderValue,
    Message,
    Origin,
)
from django_cqrs.parameters.plan import ArgumentPlan, Source
from django_cqrs.parameters.planner import Unfillable
from django_cqrs.problems import Problem, Rule

_MICROSECOND: Final = 1000
_DAY: Final = 86_400 * 10**9
_SECOND: Final = 10**9


class Feeder(Protocol):
    """The batch that an event is handled in, as handlers' parameters need it."""

    is_replay: bool
    scope: Any
    tables: Any
    states: Any

    def emit(self, message: Any, event: Any) -> None:
        """Append an event at the end of the batch."""
        ...

    def link(self, message: Any, stream: str) -> None:
        """Put a message's event into another stream at the end of the batch."""
        ...


class FedMessage(Message):
    """
    The message of a stored event, for a handler that is fed with it.

    Most handlers read its payload only, so all else is made when it is read.
    """

    recorded: Recorded
    batch: Feeder
    call: Any
    """The compiled handler that it is for."""
    place: int
    """The index of the event in its batch."""
    key: Any
    """The key of the row that the handler gets, if it gets one."""
    keys: dict[RowPlan, Any] | None = None
    """The keys of its rows, if it gets several."""
    partition: tuple[int, str]
    """The stream, or the key, of its partition."""
    _own_headers: dict[str, Any]
    """The headers about its aggregate."""

    def __init__(self, payload: Any, recorded: Recorded, batch: Feeder) -> None:
        """Take the event, its place in the store, and the batch that it is in."""
        self._payload = payload
        self.recorded = recorded
        self.batch = batch
        self._scope = batch.scope

    def __getattr__(self, name: str) -> Any:
        """Make what is not there yet."""
        make = _MAKERS.get(name)
        if make is None:
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(msg)
        value = make(self)
        setattr(self, name, value)
        return value

    @property
    def _aggregate(self) -> Mapping[str, Any]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        own: dict[str, Any] = self._own_headers
        return own

    @property
    def correlation_id(self) -> UUID:
        """The id shared by all messages that one first message caused."""
        return self.recorded.correlation_id

    def replace(
        self, *, payload: Any = ..., headers: Mapping[str, HeaderValue] | None = None
    ) -> Message:
        """Return a copy that has all that is otherwise made when it is read."""
        for name in _MAKERS:
            getattr(self, name)
        self._correlation_id = self.recorded.correlation_id
        copy = super().replace(payload=payload, headers=headers)
        copy._aggregate = self._own_headers
        return copy


def _headers(message: FedMessage) -> dict[str, Any]:
    """Return the user's headers, and keep those about the aggregate apart."""
    headers = message.recorded.headers
    own = {
        name: headers.pop(name)
        for name in list(headers)
        if name.startswith(RESERVED_PREFIXES)
    }
    message._own_headers = own
    return headers


def _own_headers(message: FedMessage) -> dict[str, Any]:
    message._user = _headers(message)
    own: dict[str, Any] = vars(message)["_own_headers"]
    return own


def _parent(message: FedMessage) -> Origin:
    recorded = message.recorded
    return Origin(
        message._user, recorded.correlation_id, recorded.causation_id, message._scope
    )


def _nanoseconds(message: FedMessage) -> int:
    span = message.recorded.recorded_at - EPOCH
    return span.days * _DAY + span.seconds * _SECOND + span.microseconds * _MICROSECOND


_MAKERS: Final[dict[str, Callable[[FedMessage], Any]]] = {
    "_user": _headers,
    "_own_headers": _own_headers,
    "_parent": _parent,
    "_message_id": lambda message: message.recorded.event_id,
    "_nanoseconds": _nanoseconds,
}


# ------------------------------------------------------------------------------- marks


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """
    A mark: the state that a projection keeps between events.

    ``state: Annotated[Totals, State()]`` is one object of the class for the projection,
    or for each partition, made without arguments at first. A handler changes it, or
    returns another one in its place.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class _Replaying:
    """The mark of :data:`Replaying`."""


Replaying = Annotated[bool, _Replaying()]
"""The type of a parameter: whether the event is handled again, as in a rebuild."""


@dataclasses.dataclass(frozen=True, slots=True)
class _PartitionName:
    """The mark of :data:`PartitionName`."""


PartitionName = Annotated[str | None, _PartitionName()]
"""The type of a parameter of ``on_reset``: the emptied partition; None for all."""


class Emitter:
    """
    Appends events of a projection's own, and publishes them.

    They are in the stream ``projection-<name>``, and exist if the batch commits.
    """

    def __init__(self, message: FedMessage | Any) -> None:
        """Emit while an event is handled, with that event's headers."""
        self._message = message

    def __call__(self, event: Any) -> None:
        """
        Emit an event.

        Args:
            event: a message of a registered class, or a ``Stored``.

        Raises:
            InvalidOption: it is None, or a class.

        """
        if event is None or isinstance(event, type):
            msg = f"An Emitter takes events, not {event!r}."
            raise InvalidOption(msg)
        self._message.batch.emit(self._message, event)

    def link(self, stream: str) -> None:
        """
        Put the event that is being handled into another stream, by reference.

        Args:
            stream: the name of that stream.

        Raises:
            InvalidOption: no event is being handled here, or the name is not one.

        """
        self._message.batch.link(self._message, stream)


# --------------------------------------------------------------------------- parameters


class StateSource:
    """The source of a state; it knows the class in the annotation."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    def __call__(self, message: Any) -> Any:
        """Return the state of the message's partition."""
        return message.batch.states.get(message)


class RowSource:
    """The source of a row; it knows how the row is found."""

    def __init__(self, plan: RowPlan) -> None:
        self.plan = plan

    def __call__(self, message: Any) -> Any:
        """Return the row of the message's event."""
        plan, keys = self.plan, message.keys
        key = message.key if keys is None else keys[plan]
        return message.batch.tables[plan].get(key, plan.missing)


def recorded_of(message: Any) -> Recorded:
    """Return the stored event of a message."""
    recorded: Recorded = message.recorded
    return recorded


def _replaying(message: Any) -> bool:
    is_replay: bool = message.batch.is_replay
    return is_replay


def source_of(parameter: inspect.Parameter) -> Source | None:
    """
    Return the source of a parameter that only projections have.

    Raises:
        Unfillable: its mark cannot be used.

    """
    annotation = parameter.annotation
    bare = sole_type(annotation)
    for mark in marks_of(annotation):
        if isinstance(mark, Row) or mark is Row:
            return _row_source(bare, mark)
        if isinstance(mark, State) or mark is State:
            return StateSource(bare)
        if isinstance(mark, _Replaying):
            return _replaying
    if bare is Recorded:
        return recorded_of
    if bare is Emitter:
        return Emitter
    return None


class ResetMessage(Message):
    """The message that is current while ``on_reset`` or ``on_delete`` runs."""

    def __init__(self, partition_name: str | None = None) -> None:
        """Take the name of the partition; None for all."""
        super().__init__()
        self.partition_name = partition_name


def partition_name_of(message: Any) -> str | None:
    """Return the name of the partition that is emptied."""
    name: str | None = message.partition_name
    return name


def reset_source_of(parameter: inspect.Parameter) -> Source | None:
    """
    Return the source of a parameter that only ``on_reset`` has.

    Raises:
        Unfillable: its mark cannot be used.

    """
    marks = marks_of(parameter.annotation)
    if any(isinstance(mark, _PartitionName) for mark in marks):
        return partition_name_of
    return source_of(parameter)


def _row_source(model: Any, mark: Any) -> RowSource:
    if mark is Row:
        msg = 'Row needs the names of fields: Row("number")'
        raise Unfillable(msg, ProjectionRule.BAD_ROW)
    if not (isinstance(model, type) and issubclass(model, models.Model)):
        msg = f"{mark} is for a model, and {name_of_type(model)} is none"
        raise Unfillable(msg, ProjectionRule.BAD_ROW)
    try:
        return RowSource(row_plan(model, mark))
    except RowFault as fault:
        msg = f"{mark} finds no row: {fault}"
        raise Unfillable(msg, ProjectionRule.BAD_ROW) from fault


class SeveralPayloads(PayloadType):
    """The type of the events that a handler takes together."""


_SEVERAL: Final = (Sequence, list)


def planned(
    plan: ArgumentPlan, function: Callable[..., Any], owner: type
) -> ArgumentPlan:
    """Return a plan, with a ``Sequence`` of events taken for several events."""
    if plan.payload is None:
        return plan
    annotation = plan.payload.annotation
    if typing.get_origin(annotation) not in _SEVERAL:
        return plan
    arguments = typing.get_args(annotation)
    problems = list(plan.problems)
    parameters, _ = signature_of(function, owner)
    for parameter in parameters:
        if _is_of_one_event(parameter.annotation):
            problem = Problem(
                Rule.UNFILLABLE_PARAMETER,
                f"The parameter {parameter.name!r} of {place_of(function)} is about "
                "one event, but the handler takes several.",
                "Let it take one event, or remove the parameter.",
                function,
            )
            problems.append(problem)
    inner = arguments[0] if arguments else Any
    return dataclasses.replace(
        plan, payload=SeveralPayloads(inner), problems=tuple(problems)
    )


def _is_of_one_event(annotation: Any) -> bool:
    if sole_type(annotation) is Recorded:
        return True
    return any(isinstance(mark, (Header, Row)) for mark in marks_of(annotation))

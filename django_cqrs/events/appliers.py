"""
Appliers: methods that bring the state of an object forward by one event.

An object is what its appliers have made of its events. Nothing here needs a database:
:func:`appliers_of` makes objects, applies events to them, and finds the events in the
value that a method has returned.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import cached_property
from types import FunctionType
from typing import Any, Final, NamedTuple, TypeVar

from django_cqrs.annotations import (
    EMPTY,
    LOCAL,
    NAMESPACE,
    is_plain_class,
    marks_of,
    name_of_type,
    names_seen_by,
    place_of,
    read_signature,
    sole_type,
    union_members,
)
from django_cqrs.conversion.adapters import to_json, to_jsonable
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.declaration.declarations import names_around, role_of
from django_cqrs.declaration.marks import Header
from django_cqrs.events.decoding import Decoder, Reading
from django_cqrs.events.recorded import Recorded, Stored
from django_cqrs.events.rules import StreamRule
from django_cqrs.events.sagas import SagaCompleted, complete_saga
from django_cqrs.exceptions import InvalidEvent, InvalidHandler, UnknownMessage
from django_cqrs.messages import (
    EPOCH,
    RESERVED_PREFIXES,
    Headers,
    Message,
    MessageName,
    Origin,
    current,
    message_name_of,
)
from django_cqrs.modelling.sagas import SagaRole
from django_cqrs.parameters.plan import Argument, Given
from django_cqrs.parameters.planner import TAKES_PAYLOAD, plan_of
from django_cqrs.parameters.services import Services
from django_cqrs.pipeline.envelopes import encode_headers, headers_of
from django_cqrs.problems import Problem
from django_cqrs.recording import apply_recorded_with
from django_cqrs.sends import LATE, made_by
from django_cqrs.shapes import shape_of

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

APPLIES: Final = "__cqrs_applies__"


def applies(method: Method) -> Method:
    """
    Mark a method that changes its object's state by one event.

    Its first parameter is annotated with the class of the event, a base class, a union,
    ``object`` for every event, or ``dict`` for the JSON of every event. Others may be
    ``Annotated[..., Header("name")]``, ``Headers`` and ``Recorded``. It changes the
    object, or returns a new one of the same class, as frozen classes need it.

    Raises:
        TypeError: it is not a method of objects.

    """
    given: object = method
    if not isinstance(given, FunctionType):
        msg = f"@applies decorates a method of an object, not {method!r}."
        raise TypeError(msg)
    setattr(method, APPLIES, True)
    if LOCAL in given.__qualname__:  # its annotations may name local classes
        setattr(method, NAMESPACE, names_around(sys._getframe(1)))
    return method


class About:
    """The origin of an event, for appliers that take more than the event."""

    __slots__ = ("_message", "_recorded")

    def __init__(
        self, *, message: Message | None = None, recorded: Recorded | None = None
    ) -> None:
        """Take one of the two; the other is made when an applier takes it."""
        self._message = message
        self._recorded = recorded

    @property
    def message(self) -> Message:
        """The message of the event."""
        if self._message is None:
            assert self._recorded is not None  # noqa: S101 - one of the two is given
            self._message = message_of(self._recorded)
        return self._message

    @property
    def recorded(self) -> Recorded:
        """The event as it is stored; at position 0 if it is not stored yet."""
        if self._recorded is None:
            self._recorded = _new_recorded(self.message)
        return self._recorded


Call = Callable[[Any, Any, Callable[[], About]], Any]
"""Calls an applier with the object, the event, and a function to the event's origin."""


@dataclasses.dataclass(frozen=True, slots=True)
class Applier:
    """One applier of a class."""

    function: Callable[..., Any]
    classes: tuple[type, ...]
    """The classes of its events; ``object`` for all of them."""
    takes_json: bool
    """Whether it takes the JSON of every event."""
    call: Call
    is_plain: bool
    """Whether it takes the event only."""
    problems: tuple[Problem, ...] = ()

    def takes(self, cls: type) -> bool:
        """Return whether objects of a class are its events."""
        return any(issubclass(cls, each) for each in self.classes)


class ApplyingStep(NamedTuple):
    """The change of an object by stored events of one name and shape."""

    reading: Reading | None
    """None if their name is unknown, and their JSON is applied as it is."""
    alone: Callable[[Any, Any], Any] | None
    """The only applier, if it takes the event only, and no upcaster is needed."""
    calls: tuple[tuple[Call, bool], ...]
    """The appliers in order, and whether each takes JSON."""


NOT_TAKEN: Final = ApplyingStep(None, None, ())
"""The step of events that no applier takes: they are not decoded."""


class Appliers:
    """The appliers of one class, inherited ones first, in order of definition."""

    def __init__(self, cls: type) -> None:
        """Read the class. Faults are in :meth:`problems`; nothing is raised."""
        self.cls = cls
        self.own: tuple[Applier, ...] = tuple(
            _applier(cls, function) for function in _methods_of(cls)
        )
        self._all = self.own
        if isinstance(role_of(cls), SagaRole):
            self._all = (_COMPLETION, *self.own)
        self._by_class: dict[type, tuple[tuple[Call, bool], ...]] = {}
        self._are_events: dict[type, bool] = {}

    @property
    def problems(self) -> list[Problem]:
        """The faults of the appliers."""
        return [problem for each in self.own for problem in each.problems]

    @property
    def needs_origin(self) -> bool:
        """Whether an applier takes more than the event."""
        return not all(each.is_plain for each in self._all)

    @property
    def classes(self) -> tuple[type, ...]:
        """The classes in the annotations of the appliers, but ``object``."""
        found = dict.fromkeys(cls for each in self._all for cls in each.classes)
        return tuple(cls for cls in found if cls is not object)

    def takes(self, cls: type) -> bool:
        """Return whether objects of a class are events, by more than a catch-all."""
        found = self._are_events.get(cls)
        if found is None:
            found = self._are_events[cls] = any(
                issubclass(cls, taken)
                for each in self._all
                for taken in each.classes
                if taken is not object
            )
        return found

    def is_event(self, value: Any) -> bool:
        """Return whether a value is an event of the class, or one as a ``Stored``."""
        return self.takes(type(value.event if type(value) is Stored else value))

    def events_in(self, result: Any) -> list[Any] | None:
        """
        Return the events in the value that a method has returned.

        Args:
            result: an event, or a list or a tuple of events; anything else is a result.

        Returns:
            The events, none for an empty list or tuple. None if it is a result.

        Raises:
            InvalidHandler: a list or a tuple has both events and other values.

        """
        if type(result) not in (list, tuple):
            return [result] if result is not None and self.is_event(result) else None
        found = [self.is_event(each) for each in result]
        if all(found):
            return list(result)
        if not any(found):
            return None
        other = type(result[found.index(False)])
        msg = (
            f"A handler of {name_of_type(self.cls)} returned events together with "
            f"another value, of type {name_of_type(other)}, which no applier takes. "
            f"Write an applier for {name_of_type(other)}, or return only events."
        )
        raise InvalidHandler(msg)

    # Objects ----------------------------------------------------------------------

    def blank(self) -> Any:
        """Return an object to which no event has been applied."""
        return self._blank()

    @cached_property
    def _blank(self) -> Callable[[], Any]:
        self.ensure_sound()
        cls: Any = self.cls
        if _takes_nothing(cls):
            return cls  # type: ignore[no-any-return]
        return shape_of(cls).blank

    def ensure_sound(self) -> None:
        """
        Refuse a class whose appliers cannot be called.

        Raises:
            InvalidHandler: an applier is broken, with the text of the check.

        """
        for problem in self.problems:
            raise InvalidHandler(str(problem))

    def apply(
        self, instance: Any, event: Any, origin: Callable[[], About] | None = None
    ) -> Any:
        """
        Apply an event, and return the object: a new one if an applier returned one.

        Args:
            instance: an object of the class.
            event: the event, or a ``Stored``, whose headers its appliers then see.
            origin: returns the origin of the event; by default it is a new event of the
                message that is being handled, at no position.

        Raises:
            InvalidHandler: an applier is broken, or returned another value.

        """
        given, event = event, event.event if type(event) is Stored else event
        calls = self._by_class.get(type(event))
        if calls is None:
            self.ensure_sound()
            calls = self._by_class[type(event)] = tuple(
                (each.call, each.takes_json)
                for each in self._all
                if each.takes_json or each.takes(type(event))
            )
        if not calls:
            return instance
        about = _Lazily(origin or (lambda: _origin_of(given)))
        for call, takes_json in calls:
            made = call(instance, to_jsonable(event) if takes_json else event, about)
            if made is not None:
                instance = self.replaced(instance, made)
        return instance

    def replay(self, events: Iterable[Any]) -> Any:
        """Return the object that some events make."""
        instance = self.blank()
        for event in events:
            instance = self.apply(instance, event)
        return instance

    def replaced(self, instance: Any, made: Any) -> Any:
        """
        Return the object that an applier has returned in place of another.

        Raises:
            InvalidHandler: it is not an object of the class.

        """
        if type(made) is type(instance):
            return made
        msg = (
            f"An applier of {name_of_type(self.cls)} returned an object of type "
            f"{name_of_type(type(made))}. Return None if it changes the object, or a "
            f"new {name_of_type(self.cls)}."
        )
        raise InvalidHandler(msg)

    # Stored events ----------------------------------------------------------------

    def step(self, decoder: Decoder, name: str, shape: int) -> ApplyingStep:
        """
        Return the way of applying stored events of a name and a shape.

        Args:
            decoder: reads the events of the registry.
            name: the name that they were stored under.
            shape: the version of their payload.

        Raises:
            UnknownMessage: only an older version of their class is known here.
            InvalidHandler: an applier is broken.

        """
        self.ensure_sound()
        try:
            cls: type | None = decoder.types.class_of(name)
        except UnknownMessage:  # its class was deleted
            cls = None
        takers = [
            each
            for each in self._all
            if each.takes_json
            or (each.takes(cls) if cls is not None else object in each.classes)
        ]
        if not takers:
            return NOT_TAKEN
        reading = None if cls is None else decoder.reading(name, shape)
        alone = None
        if len(takers) == 1 and reading is not None and not reading.is_older:
            (taker,) = takers
            alone = taker.function if taker.is_plain and not taker.takes_json else None
        calls = tuple((each.call, each.takes_json) for each in takers)
        return ApplyingStep(reading, alone, calls)


class _Lazily:
    """A function whose result is computed once."""

    __slots__ = ("_function", "_made")

    def __init__(self, function: Callable[[], About]) -> None:
        self._function = function
        self._made: About | None = None

    def __call__(self) -> About:
        if self._made is None:
            self._made = self._function()
        return self._made


def replay(cls: type[T], events: Iterable[Any]) -> T:
    """
    Return the object of a class with appliers that some events make.

    Args:
        cls: the class.
        events: the events in order, each as it is or as a ``Stored``.

    Raises:
        InvalidHandler: an applier of the class is broken.

    """
    instance: T = appliers_of(cls).replay(events)
    return instance


APPLIERS: Final = "__cqrs_appliers__"
"""The attribute of a class with its appliers, once they are read."""


def appliers_of(cls: type) -> Appliers:
    """Return the appliers of a class, read once."""
    found: Appliers | None = cls.__dict__.get(APPLIERS)
    if found is None or found.cls is not cls:  # @dataclass(slots=True) makes a copy
        found = Appliers(cls)
        setattr(cls, APPLIERS, found)
    return found


def _takes_nothing(cls: type) -> bool:
    """Return whether a class can be called without arguments."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):  # its __init__ is written in C
        return False
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not EMPTY or p.kind in optional for p in parameters)


def _methods_of(cls: type) -> Iterator[FunctionType]:
    """Yield the appliers of a class, inherited ones first; overridden ones once."""
    seen: set[str] = set()
    for base in reversed(cls.__mro__):
        for name in vars(base):
            held = inspect.getattr_static(cls, name, None)
            if (
                name not in seen
                and isinstance(held, FunctionType)
                and hasattr(held, APPLIES)
            ):
                seen.add(name)
                yield held


# ------------------------------------------------------------------------- signatures


def _applier(cls: type, function: FunctionType) -> Applier:
    """Return an applier; its faults are in its `problems`."""
    fault = _fault_in(cls, function)
    if isinstance(fault, Problem):
        return Applier(function, (), False, _refused, False, (fault,))
    members, has_more = fault
    takes_json = any(_is_dict(member) for member in members)
    classes = tuple(
        object if member in (Any, EMPTY) else member
        for member in members
        if not _is_dict(member)
    )
    if not has_more:
        return Applier(
            function,
            classes,
            takes_json,
            lambda instance, event, _about: function(instance, event),
            is_plain=True,
        )
    plan = plan_of(
        function, Services(None), owner=cls, payload=TAKES_PAYLOAD, given=_given
    )
    receiver = Argument("self", positional=True, source=Given("self"))
    plan = dataclasses.replace(plan, arguments=(receiver, *plan.arguments))
    bound, has_recorded = plan.bind_given(function), "recorded" in plan.given

    def call(instance: Any, event: Any, about: Callable[[], About]) -> Any:
        origin = about()
        given = {"self": instance}
        if has_recorded:
            given["recorded"] = origin.recorded
        message = origin.message
        if event is not message._payload:
            message = message.replace(payload=event)
        return bound(message, given)

    return Applier(
        function, classes, takes_json, call, is_plain=False, problems=plan.problems
    )


def _given(parameter: inspect.Parameter) -> Given | None:
    return Given("recorded") if sole_type(parameter.annotation) is Recorded else None


def _refused(*_args: Any) -> Any:
    raise AssertionError  # ensure_sound() has raised


def _is_dict(annotation: Any) -> bool:
    return annotation is dict or typing.get_origin(annotation) is dict


def _fault_in(
    cls: type, function: FunctionType
) -> Problem | tuple[tuple[Any, ...], bool]:
    """Return an applier's fault, or its classes and whether it takes an origin."""
    where = place_of(function)

    def problem(message: str, hint: str) -> Problem:
        return Problem(StreamRule.BROKEN_APPLIER, message, hint, function)

    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        kind = "a generator" if inspect.isgeneratorfunction(function) else "async"
        return problem(
            f"The applier {where} is {kind}, so calling it would not execute its body.",
            "Make it a plain method: it only changes its object.",
        )
    try:
        names = names_seen_by(function, cls, {})
        (_, *parameters), _ = read_signature(function, names)
    except Exception as error:  # noqa: BLE001 - an annotation may run any code
        return problem(
            f"The annotations of the applier {where} cannot be evaluated: {error}.",
            "Import the names they use at the top of the module, not under "
            "TYPE_CHECKING.",
        )
    if not parameters or _is_origin(parameters[0]):
        return problem(
            f"The applier {where} does not take an event.",
            "Annotate its first parameter with the class of the event.",
        )
    event, *others = parameters
    for each in others:
        if not _is_origin(each) and each.default is EMPTY:
            return problem(
                f"The applier {where} asks for {each.name!r}. Appliers take the event, "
                "Header, Headers and Recorded, since they run again at every load.",
                "Pass the value in the event, or use it in the handler.",
            )
        if any(not isinstance(mark, Header) for mark in marks_of(each.annotation)):
            return problem(
                f"The applier {where} asks for {each.name!r}, by a mark that appliers "
                "do not have: only Header is possible.",
                "Pass the value in the event, or use it in the handler.",
            )
    members = union_members(event.annotation)
    for member in members:
        if not (member in (Any, EMPTY) or _is_dict(member) or is_plain_class(member)):
            return problem(
                f"The applier {where} takes {name_of_type(member)}, which is not a "
                "class of events.",
                "Annotate its first parameter with classes, object or dict.",
            )
    return members, any(map(_is_origin, others))


def _is_origin(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter is filled with a part of the event's origin."""
    if any(isinstance(mark, Header) for mark in marks_of(parameter.annotation)):
        return True
    return sole_type(parameter.annotation) in (Headers, Recorded)


_COMPLETION: Final = Applier(
    complete_saga,
    (SagaCompleted,),
    takes_json=False,
    call=lambda instance, event, _about: complete_saga(instance, event),
    is_plain=True,
)


# ---------------------------------------------------------------------------- origins


def _origin_of(event: Any) -> About:
    """Return the origin of an event that is recorded just now."""
    own = None
    if type(event) is Stored:
        event, own = event.event, event.headers
    message = Message(event, current.get())
    if own:
        message._add_headers(own)
    return About(message=message)


def _new_recorded(message: Message) -> Recorded:
    event = message._payload
    made = Recorded(
        position=0,
        stream_id=None,
        stream=None,
        version=None,
        name=name_of_event(type(event)),
        shape=(message_name_of(type(event)) or _FIRST).version,
        payload=to_json(event),
        headers=encode_headers(headers_of(message)).decode(),
        event_id=message.message_id,
        correlation_id=message.correlation_id,
        causation_id=message.causation_id,
        recorded_at=message.timestamp,
        link_to=None,
        decoder=_NO_CLASSES,
    )
    made.take(event)
    return made


_FIRST: Final = MessageName("")
_NO_CLASSES: Final = Decoder(MessageTypes(()))


def message_of(recorded: Recorded) -> Message:
    """Return the message of a stored event, with its stored headers."""
    origin = Origin(
        correlation_id=recorded.correlation_id, message_id=recorded.causation_id
    )
    message = Message(recorded.event, origin)
    message._message_id = recorded.event_id
    since = recorded.recorded_at - EPOCH
    message._nanoseconds = since // timedelta(microseconds=1) * 1000
    user: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for name, value in recorded.headers.items():
        (about if name.startswith(RESERVED_PREFIXES) else user)[name] = value
    message._user, message._aggregate = user, about
    return message


def name_of_event(cls: type) -> str:
    """Return the name of an event in texts: that of ``@message``, or its class's."""
    own = message_name_of(cls)
    return name_of_type(cls) if own is None else own.name


# -------------------------------------------------------------------------- recording


def _apply_recorded(instance: Any, event: Any) -> Any:
    """
    Apply an event that an object records; return the event to keep.

    Raises:
        InvalidEvent: it is a ``Stored``, and the class keeps no events.
        InvalidHandler: an applier returned a new object.

    """
    cls = type(instance)
    appliers = appliers_of(cls)
    if not appliers.own:
        if type(event) is Stored and not keeps_stream(cls):
            msg = (
                f"{name_of_type(cls)} keeps no events, so a Stored has no meaning. "
                "Record the event itself, or give the class @event_stream."
            )
            raise InvalidEvent(msg)
        return event
    if type(event) in LATE:  # nothing is known later than now
        event = made_by(event)
    if appliers.apply(instance, event) is not instance:
        name = name_of_type(cls)
        msg = (
            f"An applier of {name} returned a new object, but record() cannot "
            "replace the one whose method is running. Return the event from the "
            "method, instead of recording it."
        )
        raise InvalidHandler(msg)
    return event


STREAM: Final = "__cqrs_event_stream__"
"""The attribute of a class with the declaration of its stream."""


def keeps_stream(cls: type) -> bool:
    """Return whether a class, or a base, has a stream beside its objects."""
    return hasattr(cls, STREAM)


apply_recorded_with(_apply_recorded)

"""
Declare projections: classes whose event handlers turn stored events into rows.

A projection is fed with the events of the store. It subscribes to nothing, so that it
can be fed with the same events again.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Final, Literal, TypeVar, get_args

from django_cqrs.declaration.declarations import (
    MARK,
    STAND_IN,
    Declaration,
    Kind,
    Policies,
    declarations_of,
    role_of,
    take_role,
)
from django_cqrs.declaration.marks import Header
from django_cqrs.events.feeding import planned, source_of
from django_cqrs.events.tags import Tag
from django_cqrs.exceptions import InvalidOption
from django_cqrs.parameters.plan import ArgumentPlan, Source
from django_cqrs.parameters.services import Services
from django_cqrs.retries import Retry
from django_cqrs.routing.endpoint import Role, Subject

T = TypeVar("T", bound=Callable[..., Any])

Start = Literal["beginning", "now", "manual"]
"""The first event of a new projection."""

OnFailure = Literal["stop", "skip", "park"]
"""The fate of an event that a projection cannot handle."""

Partitioning = str | Tag | Header | Callable[..., Any]
"""The source of the key of the events that must stay in order."""

BY_STREAM: Final = "stream"

LONGEST_PROJECTION: Final = 200


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionOptions:
    """The declaration of one projection."""

    name: str
    channel: str | None = None
    """The alias of the channel whose worker follows the events for it."""
    on_demand: bool = False
    """Whether it runs by command alone."""
    views: tuple[Any, ...] = ()
    """The models, or document stores, that it alone writes."""
    sources: tuple[Any, ...] = ()
    """Classes with streams, categories and streams; empty for all events."""
    partition_by: Partitioning | None = None
    """The source of the key of the events that must stay in order, if it is given."""
    shards: int = 1
    batch: int | None = None
    """The maximum number of events in one transaction; None as in the settings."""
    priority: int = 0
    """Inline projections with a higher priority are called earlier."""
    start: Start = "beginning"
    emits: bool = True
    """Whether its ``Emitter`` appends and publishes events."""
    retry: Retry | None = None
    on_failure: OnFailure = "stop"

    @property
    def is_inline(self) -> bool:
        """Whether it runs inside the transaction that appends."""
        return self.channel is None and not self.on_demand

    @property
    def is_following(self) -> bool:
        """Whether the worker of a channel runs it."""
        return self.channel is not None and not self.on_demand

    @property
    def partitioning(self) -> Partitioning:
        """The source of the key of the events that must stay in order."""
        return BY_STREAM if self.partition_by is None else self.partition_by


class ProjectionRole(Role):
    """The role of projections: their handlers are fed with stored events."""

    decorator = "@projection"
    is_fed = True

    def __init__(self, options: ProjectionOptions) -> None:
        """Keep what the decorator says."""
        self.options = options

    def source_of(self, parameter: inspect.Parameter) -> Source | None:
        """Return the source of a row, a state, an emitter, or the stored event."""
        return source_of(parameter)

    def planned(
        self, plan: ArgumentPlan, function: Callable[..., Any], owner: type
    ) -> ArgumentPlan:
        """Return the plan of a handler, which may take several events at once."""
        return planned(plan, function, owner)

    def subject_of(self, owner: type, services: Services) -> Subject:
        """Return nothing: the class is a service."""
        raise NotImplementedError


def projection(
    name: str,
    /,
    *,
    channel: str | None = None,
    on_demand: bool = False,
    views: Sequence[Any] = (),
    sources: Sequence[Any] = (),
    partition_by: Partitioning | None = None,
    shards: int = 1,
    batch: int | None = None,
    priority: int = 0,
    start: Start = "beginning",
    emits: bool = True,
    retry: Retry | None = None,
    on_failure: OnFailure = "stop",
) -> Callable[[T], T]:
    """
    Make a class a projection: its event handlers fill views from stored events.

    A function is a projection of one handler.

    Args:
        name: unique in the project. Positions and states are stored under it.
        channel: the alias of the channel whose worker follows the events for it.
            Without one it is inline: it runs in the transaction that appends.
        on_demand: whether it runs only by command, and not by a worker.
        views: the models that it alone writes; ``DocumentStore`` objects are allowed.
        sources: event-sourced classes, and the names of categories and streams, whose
            events it gets; by default all.
        partition_by: the source of the key of the events that stay in order:
            ``"stream"``, a ``Tag``, an attribute of the event by its name, a
            ``Header``, or a callable that takes the message.
        shards: the number of parts that workers run side by side.
        batch: the maximum number of events in one transaction, by default
            ``PROJECTION_BATCH``.
        priority: inline projections with a higher one are called earlier.
        start: the first event of a new projection: of the ``"beginning"``; from
            ``"now"`` on; or none until ``cqrs_projections init`` (``"manual"``).
        emits: False makes its ``Emitter`` do nothing.
        retry: the pauses, and the number of attempts, for an event whose handler fails.
        on_failure: ``"stop"`` waits with an event that fails and those after it,
            ``"skip"`` goes on without it, ``"park"`` goes on with other partitions.

    Returns:
        The class or the function itself.

    Raises:
        InvalidOption: a value cannot be used.
        TypeError: it decorates neither a class nor a function.

    """
    options = ProjectionOptions(
        name=name,
        channel=channel,
        on_demand=on_demand,
        views=as_tuple(views, "views"),
        sources=as_tuple(sources, "sources"),
        partition_by=partition_by,
        shards=shards,
        batch=batch,
        priority=priority,
        start=start,
        emits=emits,
        retry=retry,
        on_failure=on_failure,
    )
    refuse_bad_values(options)

    def decorate(target: T) -> T:
        role = ProjectionRole(options)
        given: Any = target
        if isinstance(given, type):
            take_role(given, role)
            return target
        if not isinstance(given, FunctionType):
            msg = f"@projection decorates a class or a function, not {target!r}."
            raise TypeError(msg)
        setattr(given, STAND_IN, class_for(given, role))
        return target

    return decorate


def class_for(function: FunctionType, role: Role, *, depth: int = 3) -> type:
    """
    Return a class with a function as its only event handler.

    Args:
        function: the function, which no longer subscribes to anything.
        role: the role of the class.
        depth: the number of frames to the one that the function is decorated in.

    """
    handler = functools.wraps(function)(_copy_of(function))
    declarations = declarations_of(function)
    if declarations:
        delattr(function, MARK)
    setattr(handler, MARK, declarations or (Declaration(Kind.EVENT, None, Policies()),))
    made: Any = type(function.__name__, (), {"handle": staticmethod(handler)})
    made.__module__, made.__qualname__ = function.__module__, function.__qualname__
    made.__doc__ = function.__doc__
    cls: type = take_role(made, role, depth=depth)
    return cls


def _copy_of(function: FunctionType) -> FunctionType:
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def options_of(cls: type) -> ProjectionOptions | None:
    """Return the options of exactly this class, None for other classes."""
    role = role_of(cls)
    return role.options if isinstance(role, ProjectionRole) else None


def as_tuple(values: Any, name: str) -> tuple[Any, ...]:
    """
    Return the values of a keyword that takes a list.

    Raises:
        InvalidOption: they are not a list.

    """
    if isinstance(values, (list, tuple)):
        return tuple(values)
    msg = f"{name}= takes a list, not {values!r}."
    raise InvalidOption(msg)


def refuse_bad_values(options: ProjectionOptions) -> None:
    """
    Refuse values that no check could explain better.

    Raises:
        InvalidOption: a value has a wrong type, or is out of range.

    """
    name = options.name
    if not isinstance(name, str) or not name:
        msg = f'@projection takes the name: @projection("orders"), not {name!r}.'
        raise InvalidOption(msg)
    if len(name) > LONGEST_PROJECTION or name != name.strip() or "\0" in name:
        msg = (
            f"{name[:40]!r} cannot be the name of a projection: it has at most "
            f"{LONGEST_PROJECTION} characters, without spaces at its ends."
        )
        raise InvalidOption(msg)
    _refuse_bad_numbers(options)
    words: dict[str, tuple[Any, Any]] = {
        "start": (options.start, Start),
        "on_failure": (options.on_failure, OnFailure),
    }
    for keyword, (value, allowed) in words.items():
        if value not in get_args(allowed):
            known = ", ".join(map(repr, get_args(allowed)))
            msg = f"Projection {name!r} has {keyword}={value!r}: one of {known}."
            raise InvalidOption(msg)
    if options.retry is not None and not isinstance(options.retry, Retry):
        msg = f"Projection {name!r} has retry={options.retry!r}: it takes a Retry."
        raise InvalidOption(msg)
    by = options.partition_by
    if by is not None and not isinstance(by, (str, Tag, Header)) and not callable(by):
        msg = (
            f"Projection {name!r} has partition_by={by!r}: it takes 'stream', a Tag, "
            "the name of an attribute, a Header or a callable."
        )
        raise InvalidOption(msg)


def _refuse_bad_numbers(options: ProjectionOptions) -> None:
    numbers = {"shards": options.shards, "batch": options.batch}
    for keyword, number in numbers.items():
        if number is not None and (type(number) is not int or number < 1):
            msg = (
                f"Projection {options.name!r} has {keyword}={number!r}: it takes a "
                "whole number of at least 1."
            )
            raise InvalidOption(msg)
    if type(options.priority) is not int:
        msg = (
            f"Projection {options.name!r} has priority={options.priority!r}: it takes "
            "a whole number."
        )
        raise InvalidOption(msg)


# ------------------------------------------------------------------------------- hooks

HOOK: Final = "__cqrs_hook__"


def _hook(name: str) -> Callable[[T], T]:
    def mark(method: T) -> T:
        given: Any = method
        if not isinstance(given, FunctionType):
            msg = f"@{name} decorates a method of a projection, not {method!r}."
            raise TypeError(msg)
        setattr(given, HOOK, name)
        return method

    return mark


def on_init(method: T) -> T:
    """
    Call a method of a projection once, when the projection is set up.

    It runs in the transaction that creates its position. Its parameters are services.

    Raises:
        TypeError: it is not a method.

    """
    return _hook("on_init")(method)


def on_flush(method: T) -> T:
    """
    Call a method of a projection at the end of each batch in which it handled an event.

    It runs in the transaction of the batch, after the rows are written. It may take the
    ``State``, the ``Emitter``, ``Replaying``, and services.

    Raises:
        TypeError: it is not a method.

    """
    return _hook("on_flush")(method)


def on_reset(method: T) -> T:
    """
    Call a method of a projection when its views are emptied, in the same transaction.

    It empties what is not in ``views=``. Its parameters are services. With a parameter
    of the type ``PartitionName`` it also empties one partition, whose rows it deletes
    from the views as well.

    Raises:
        TypeError: it is not a method.

    """
    return _hook("on_reset")(method)


def on_delete(method: T) -> T:
    """
    Call a method of a projection when the projection is deleted, after its views.

    Its parameters are services.

    Raises:
        TypeError: it is not a method.

    """
    return _hook("on_delete")(method)


def hooks_of(cls: type, name: str) -> list[tuple[str, FunctionType]]:
    """Return the methods of a class that are marked so, with their attributes."""
    found: dict[str, FunctionType] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            found.pop(attribute, None)
            if getattr(value, HOOK, None) == name:
                found[attribute] = value
    return list(found.items())

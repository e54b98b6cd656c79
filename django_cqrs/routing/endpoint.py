"""Endpoints, the join points around them, and the objects that they are called on."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from django_cqrs.annotations import place_of
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import DEFAULT_CHANNEL_ALIAS
from django_cqrs.channels.retry_settings import project_retry
from django_cqrs.declaration.declarations import Kind, Policies
from django_cqrs.declaration.keywords import HandlerRole
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.messages import Message, handling_of
from django_cqrs.parameters.plan import ArgumentPlan, Source
from django_cqrs.problems import Problem
from django_cqrs.retries import DEFAULT_RETRY, Retry

if TYPE_CHECKING:
    from django_cqrs.parameters.services import Services

BUS_METHODS = {
    Kind.COMMAND: "command_bus.dispatch",
    Kind.QUERY: "query_bus.ask",
    Kind.EVENT: "event_bus.publish",
}


class RetrySource(enum.StrEnum):
    """The source of a handler's policy for messages whose handling failed."""

    HANDLER = "handler"
    CHANNEL = "channel"
    PROJECT = "project"
    DEFAULT = "default"


_NOTHING_SAID: Final = Policies()


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Endpoint:
    """A handler with its policies, under a stable name."""

    kind: Kind
    name: str
    app: str | None
    """The label of its app, None outside all apps."""
    function: Callable[..., Any]
    """The callable: plain, or bound to its class."""
    owner: type | None
    """The class that has it as a method."""
    attribute: str | None
    """The name of that method in the class."""
    plan: ArgumentPlan
    keys: tuple[str, ...]
    """Its routing keys, and for events the patterns."""
    classes: tuple[type, ...]
    """The classes that it handles."""
    policies: Policies
    order: int
    """Its place in the order of registration."""
    problems: tuple[Problem, ...]
    subject: Subject | None = None
    """Finds and saves the object that its method is called on."""
    is_factory: bool = False
    """Whether it creates such an object, instead of being called on one."""
    action: Endpoint | None = None
    """The endpoint that is called instead of this factory if the object exists."""
    own: Policies = _NOTHING_SAID
    """The policies of its own decorators; `policies` includes those of its partner."""
    partners: tuple[str, ...] = ()
    """The names of the factories and actions that share its messages."""
    is_alone_somewhere: bool = True
    """Whether a message is routed here that is not routed to a factory."""
    is_declared: bool = True
    """Whether a decorator declares it: if not, no interceptor applies to it."""
    is_fed: bool = False
    """Whether its class is fed with stored events, so that it subscribes to none."""

    @property
    def role(self) -> HandlerRole:
        """Its role for the objects of its class."""
        if self.subject is None:
            return HandlerRole.PLAIN
        if self.partners:
            is_saga = self.subject.has_an_end
            return HandlerRole.SAGA_PAIR if is_saga else HandlerRole.PAIR
        return HandlerRole.FACTORY if self.is_factory else HandlerRole.ACTION

    @property
    def method(self) -> str | None:
        """The name of a method that is called on an object; otherwise None."""
        return None if self.is_factory or self.owner is None else self.attribute

    @property
    def priority(self) -> int:
        """Handlers of one event with a higher priority are called earlier."""
        return self.policies.priority or 0

    @property
    def channel(self) -> str | None:
        """The alias of the channel that its messages wait in; None: called at once."""
        channel = self.policies.channel
        if channel is True:
            return DEFAULT_CHANNEL_ALIAS
        return None if channel is False else channel

    @property
    def alias(self) -> str | None:
        """The present database of its declaration, or of its objects."""
        if self.policies.using is not None or self.subject is None:
            return self.policies.using
        return self.subject.write_alias()

    @property
    def is_atomic(self) -> bool:
        """Whether it runs in a transaction of its own."""
        may_be = self.kind is Kind.COMMAND or self.channel is not None
        return may_be and self.policies.atomic is not False

    @property
    def retry(self) -> Retry | None:
        """
        The policy for messages whose handling failed; None if its channel decides.

        Raises:
            ImproperlyConfigured: ``RETRY`` in the settings is not a policy.

        """
        return self.sourced_retry[1]

    @property
    def sourced_retry(self) -> tuple[RetrySource, Retry | None]:
        """
        That policy and its source: the most special one is decisive.

        Raises:
            ImproperlyConfigured: ``RETRY`` in the settings is not a policy.

        """
        own = self.policies.retry
        if own is not None:
            return RetrySource.HANDLER, own
        default: Retry | None = DEFAULT_RETRY
        if self.channel is not None:  # messages may still wait in one that it had
            try:
                channel = channels[self.channel]
            except InvalidChannel:  # a check reports it
                return RetrySource.DEFAULT, default
            if not channel.supports_redelivery:
                return RetrySource.DEFAULT, None
            if channel.retry is not None:
                return RetrySource.CHANNEL, channel.retry
            default = channel.default_retry
        shared = project_retry()
        if shared is not None:
            return RetrySource.PROJECT, shared
        return RetrySource.DEFAULT, default

    @property
    def plans(self) -> tuple[ArgumentPlan, ...]:
        """Its own plan, and that of the action that may be called instead."""
        return (self.plan,) if self.action is None else (self.plan, self.action.plan)

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, its former names, and those of the action beside it."""
        beside = () if self.action is None else self.action.names
        return (self.name, *self.policies.aliases, *beside)

    @property
    def place(self) -> str:
        """The dotted path of the handler."""
        return place_of(self.function)

    @property
    def source(self) -> tuple[str, int]:
        """The path of the file and the line where the handler begins."""
        code = inspect.unwrap(self.function).__code__
        return code.co_filename, code.co_firstlineno

    def __repr__(self) -> str:
        """Return the kind and the name."""
        return f"<Endpoint {self.kind} {self.name}>"


def payload_types_of(endpoint: Endpoint) -> tuple[Any, ...]:
    """Return the payload types that an endpoint accepts."""
    return endpoint.plan.payload.members if endpoint.plan.payload else ()


@dataclasses.dataclass(frozen=True, slots=True)
class JoinPoint:
    """A place for interceptors: an endpoint, the bus used, the payload's type."""

    endpoint: Endpoint
    bus: Any
    payload_type: type | None
    is_consumed: bool = False
    """Whether the message comes out of a channel."""

    @property
    def views(self) -> Iterator[JoinPoint]:
        """Itself for a factory, and for the action that may be called instead."""
        yield self
        if self.endpoint.action is not None:
            yield dataclasses.replace(self, endpoint=self.endpoint.action)


Run = Callable[[Message], Any]


class Role(ABC):
    """The role that a decorator gives the objects of a class."""

    decorator: str
    """Its name in code, for hints: ``@aggregate``."""
    is_fed: bool = False
    """
    Whether the objects are fed with stored events.

    Their event handlers then subscribe to nothing. Each object is a service, and
    :meth:`subject_of` is not called.
    """

    def source_of(self, parameter: inspect.Parameter) -> Source | None:
        """Return the source of a parameter that only handlers in this role have."""
        return None

    def planned(
        self, plan: ArgumentPlan, function: Callable[..., Any], owner: type
    ) -> ArgumentPlan:
        """
        Return the plan of an event handler as this role reads it.

        Args:
            plan: its plan as that of any handler.
            function: the function, as defined in the class.
            owner: the class.

        """
        return plan

    @abstractmethod
    def subject_of(self, owner: type, services: Services) -> Subject:
        """Return the subject that finds and saves a class's objects in this role."""


class Subject(ABC):
    """Finds the object that a method is called on, and saves it afterwards."""

    owner: type
    has_an_end: bool = False
    """Whether an object can end: it is then kept, and accepts no more messages."""

    @abstractmethod
    def write_alias(self) -> str:
        """Return the database alias for saving, asked per message."""

    @abstractmethod
    def read_alias(self) -> str:
        """Return the database alias for reading only."""

    @abstractmethod
    def identifier_given(self, given: Any, message: Message) -> Any:
        """
        Return the identifier in ``aggregate_id=``, as plain values for a header.

        Args:
            given: the argument of the call.
            message: the message for the object.

        Raises:
            InvalidIdentifier: it cannot be an identifier.

        """

    @abstractmethod
    def problems_of(self, endpoint: Any) -> Iterator[Problem]:
        """Yield the problems of an endpoint."""

    @abstractmethod
    def result_of(self, endpoint: Any) -> Any:
        """Return the type of a dispatch's result."""

    @abstractmethod
    def address(self, endpoint: Any, cls: type) -> Callable[[Message], str]:
        """
        Return a function that names the object of a message for a channel.

        Args:
            endpoint: the handler.
            cls: the class of the payloads.

        Returns:
            A function to a text such as ``shop.Order:7``, empty if the object is
            unknown.

        """

    @abstractmethod
    def parts_missing_in(self, endpoint: Any, cls: type) -> list[str]:
        """
        Return the parts of the identifier that a message cannot have.

        Args:
            endpoint: the handler.
            cls: the class of the payloads.

        Returns:
            Their names; none if the handler creates the object.

        """

    def messages(self) -> Iterable[type]:
        """Return the classes of messages that its objects know, beside its handlers."""
        return ()

    @abstractmethod
    def surround(self, run: Run, point: JoinPoint, alias: str) -> Run:
        """
        Return `run` with the object found before it, and saved after it.

        Args:
            run: calls the method on the message's subject, which is None if a
                class-method creates the object.
            point: the join point.
            alias: the alias of the database.

        """


def subject_of(message: Message) -> Any:
    """Return the object that a message's method is called on."""
    return handling_of(message).subject

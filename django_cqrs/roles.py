"""
What a registered class is beyond a service: its objects are found, called and kept.

Here is only what the floors below need to know of it; what finds and keeps objects
stands on a higher floor, whose decorators put a role on a class.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from django_cqrs.declarations import remember
from django_cqrs.messages import Message
from django_cqrs.problems import Problem

if TYPE_CHECKING:
    from django_cqrs.interception import JoinPoint
    from django_cqrs.parameters import Services

Run = Callable[[Message], Any]
C = TypeVar("C", bound=type)

ROLE = "__cqrs_role__"


class Role(ABC):
    """What a decorator says that the objects of a class are."""

    decorator: str
    """How it is written, for hints: ``@aggregate``."""

    @abstractmethod
    def subject_of(self, owner: type, services: Services) -> Subject:
        """Return what finds and keeps the objects of a class in this role."""


class Subject(ABC):
    """Finds the object that a method is called on, and keeps it afterwards."""

    owner: type
    has_an_end: bool = False
    """Whether an object can be over, is kept then, and takes no more messages."""

    @abstractmethod
    def write_alias(self) -> str:
        """Return the database alias that objects are kept in, asked per message."""

    @abstractmethod
    def read_alias(self) -> str:
        """Return the database alias that objects are only read from."""

    @abstractmethod
    def identifier_given(self, given: Any, message: Message) -> Any:
        """
        Return what ``aggregate_id=`` gives, of the plain values that a header may have.

        Args:
            given: by the call.
            message: that is for the object.

        Raises:
            InvalidIdentifier: it cannot be one.

        """

    @abstractmethod
    def problems_of(self, endpoint: Any) -> Iterator[Problem]:
        """Yield what keeps an endpoint from working."""

    @abstractmethod
    def result_of(self, endpoint: Any) -> Any:
        """Return the type of what a dispatch gives back."""

    @abstractmethod
    def address(self, endpoint: Any, cls: type) -> Callable[[Message], str]:
        """
        Return what says which object a message is for, before it waits in a channel.

        Args:
            endpoint: the handler.
            cls: of the payloads.

        Returns:
            A function to a text such as ``shop.Order:7``, empty where nothing says.

        """

    @abstractmethod
    def surround(self, run: Run, point: JoinPoint, alias: str) -> Run:
        """
        Return `run` with the finding of the object before it, the keeping after it.

        Args:
            run: calls the method on the message's ``_subject``, which is None where
                a class-method is to make the object.
            point: where this is.
            alias: of the database.

        """


def take_role(cls: C, role: Role, *, depth: int = 2) -> C:
    """
    Put a role on a class, and have it discovered.

    Args:
        cls: the class.
        role: what its objects are.
        depth: how many frames up the decorator was applied.

    Raises:
        TypeError: it is no class.

    """
    if not isinstance(cls, type):
        msg = f"{role.decorator} decorates a class, not {cls!r}."
        raise TypeError(msg)
    setattr(cls, ROLE, role)
    remember(cls, sys._getframe(depth))
    return cls


def role_of(cls: object) -> Role | None:
    """Return the role of exactly this class, None where it has none."""
    return vars(cls).get(ROLE) if isinstance(cls, type) else None


def subject_of(message: Message) -> Any:
    """Return the object that a message's method is called on."""
    return message._subject

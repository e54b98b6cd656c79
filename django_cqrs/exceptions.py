"""
Every error this package raises, under one base.

* CQRSError
  + InvalidHandler · also ImproperlyConfigured
    - DuplicateHandler
  + InvalidChannel · also ImproperlyConfigured
  + NoHandlerFound · also LookupError
  + UnknownEndpoint · also LookupError
  + UnknownMessage · also LookupError
  + InvalidOption · also ValueError
  + InvalidHeader · also ValueError
  + InvalidKey · also ValueError
  + InvalidEvent · also ValueError
  + MessageConversionError · also ValueError
  + ParameterError · also TypeError
    - MissingHeader · also LookupError
  + UnexpectedResult · also ValueError
  + AggregateNotFound · also ObjectDoesNotExist
  + AggregateAlreadyExists
  + ConcurrencyError
  + DocumentNotFound · also ObjectDoesNotExist
  + DocumentAlreadyExists
  + StatementTooLarge · also ValueError
  + InvalidIdentifier · also ValueError
  + MessageStopped
  + BrokenTransaction · also TransactionManagementError
  + SynchronousDispatch · also SynchronousOnlyOperation

A handler's own exception is none of these: it reaches the caller unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from django.core.exceptions import (
    ImproperlyConfigured,
    ObjectDoesNotExist,
    SynchronousOnlyOperation,
)
from django.db.transaction import TransactionManagementError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AggregateAlreadyExists",
    "AggregateNotFound",
    "BrokenTransaction",
    "CQRSError",
    "ConcurrencyError",
    "DocumentAlreadyExists",
    "DocumentNotFound",
    "DuplicateHandler",
    "FieldError",
    "InvalidChannel",
    "InvalidEvent",
    "InvalidHandler",
    "InvalidHeader",
    "InvalidIdentifier",
    "InvalidKey",
    "InvalidOption",
    "MessageConversionError",
    "MessageStopped",
    "MissingHeader",
    "NoHandlerFound",
    "ParameterError",
    "StatementTooLarge",
    "SynchronousDispatch",
    "UnexpectedResult",
    "UnknownEndpoint",
    "UnknownMessage",
]


class CQRSError(Exception):
    """The base of every error of this package: catch it to catch them all."""


class InvalidHandler(CQRSError, ImproperlyConfigured):
    """A declaration is broken: the text is that of the system check."""


class DuplicateHandler(InvalidHandler):
    """Two handlers answer one command or query, and one is all there may be."""


class InvalidChannel(CQRSError, ImproperlyConfigured):
    """A channel's alias, backend or options cannot be used."""


class UnknownEndpoint(CQRSError, LookupError):
    """A stored message is for an endpoint that no handler has, under any name."""


class NoHandlerFound(CQRSError, LookupError):
    """
    No handler takes this command or query.

    Attributes:
        at_entrance: as for :class:`MessageConversionError`.

    """

    at_entrance: bool = False


class UnknownMessage(CQRSError, LookupError):
    """No registered message class has this name, or this class has no name."""


class InvalidOption(CQRSError, ValueError):
    """The arguments given to a bus do not fit together, or not this route."""


class InvalidHeader(CQRSError, ValueError):
    """A header's name is reserved, or its value could not cross a channel."""


class FieldError(NamedTuple):
    """The fault of one field of a payload."""

    path: str
    """Where it is, dotted: ``lines.0.quantity``; empty for the payload itself."""
    message: str
    """What is wrong with it, in a sentence without the value."""
    code: str
    """A short stable word for the kind of mistake, such as ``missing``."""


class MessageConversionError(CQRSError, ValueError):
    """
    A payload, header or answer could not be made its type, or JSON and back.

    Attributes:
        target: the name of the type that was wanted.
        errors: a :class:`FieldError` for every field that is wrong, at least one.
        at_entrance: whether it was the first message of its chain that was refused,
            before any handler was called: then the fault is in what came from
            outside. A handler's own sending, and an answer, are the code's fault.
        what: what was to be converted: ``payload``, ``header`` (or all ``headers``),
            or ``answer``.

    """

    at_entrance: bool = False
    what: str = "payload"

    def __init__(self, target: str, errors: Sequence[FieldError]) -> None:
        """Name the target type and all faults of the given value."""
        self.target = target
        self.errors: list[FieldError] = list(errors)
        super().__init__(target, self.errors)

    def __str__(self) -> str:
        """Return one sentence with every path."""
        faults = "; ".join(
            f"{error.path}: {error.message}" if error.path else error.message
            for error in self.errors
        )
        return f"Cannot convert the {self.what} to {self.target}: {faults}."


class ParameterError(CQRSError, TypeError):
    """A handler's parameter could not be filled."""


class MissingHeader(ParameterError, LookupError):
    """A handler requires a header that its message does not have."""


class InvalidKey(CQRSError, ValueError):
    """A message lacks the key that its handler or bus wants, or it cannot be one."""


class InvalidEvent(CQRSError, ValueError):
    """A recorded event, or an output, has a value that is known only after the save."""


class UnexpectedResult(CQRSError, ValueError):
    """A result is not of its annotated type, or cannot be kept for duplicates."""


class AggregateNotFound(CQRSError, ObjectDoesNotExist):
    """
    No object has the identifier, or the message names none.

    Attributes:
        at_entrance: as for :class:`MessageConversionError`.
        is_named: whether the message names one; False where it does not say which.

    """

    at_entrance: bool = False
    is_named: bool = True


class AggregateAlreadyExists(CQRSError):
    """
    A factory made an object whose identifier another one has.

    Attributes:
        at_entrance: as for :class:`MessageConversionError`.

    """

    at_entrance: bool = False


class ConcurrencyError(CQRSError):
    """
    Somebody else has changed the object since it was loaded, or was seen.

    Attributes:
        at_entrance: as for :class:`MessageConversionError`.

    """

    at_entrance: bool = False


class DocumentNotFound(CQRSError, ObjectDoesNotExist):
    """A collection has nothing under this key."""


class DocumentAlreadyExists(CQRSError):
    """A collection has something under this key already."""


class StatementTooLarge(CQRSError, ValueError):
    """A message or a document is larger than the database's server takes at once."""


class InvalidIdentifier(CQRSError, ValueError):
    """
    A value cannot be an identifier: a list, or text for a number.

    Attributes:
        at_entrance: as for :class:`MessageConversionError`.

    """

    at_entrance: bool = False


class MessageStopped(CQRSError):
    """An interceptor stopped a message whose sender was promised a result."""


class BrokenTransaction(CQRSError, TransactionManagementError):
    """A command meets, or leaves, a transaction that can only be rolled back."""


class SynchronousDispatch(CQRSError, SynchronousOnlyOperation):
    """A synchronous bus method was called where an event loop runs."""

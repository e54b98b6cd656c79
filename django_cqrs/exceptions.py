"""
All errors of this package, with one base.

* CQRSError
  + InvalidHandler · also ImproperlyConfigured
    - DuplicateHandler
  + InvalidChannel · also ImproperlyConfigured
  + NoHandlerFound · also LookupError
  + UnknownEndpoint · also LookupError
  + UnknownMessage · also LookupError
  + UnknownSchedule · also LookupError
  + InvalidOption · also ValueError
  + InvalidHeader · also ValueError
  + InvalidKey · also ValueError
  + InvalidEvent · also ValueError
  + UnsentCommand
  + MessageConversionError · also ValueError
  + ParameterError · also TypeError
    - MissingHeader · also LookupError
  + MissingTenant · also LookupError
  + UnknownTenant · also LookupError
  + TenantSwitch
  + UnexpectedResult · also ValueError
  + AggregateNotFound · also ObjectDoesNotExist
  + AggregateAlreadyExists
  + ConcurrencyError
  + StreamNotFound · also ObjectDoesNotExist
  + StreamArchived
  + EventAlreadyStored
  + ProjectionNotFound · also LookupError
  + ProjectionBusy
  + ProjectionBehind · also TimeoutError
  + ReplayForbidden
  + StoreWentBack
  + PreconditionError · also ValueError
  + DocumentNotFound · also ObjectDoesNotExist
  + DocumentAlreadyExists
  + StatementTooLarge · also ValueError
  + InvalidIdentifier · also ValueError
  + MessageStopped
  + BrokenTransaction · also TransactionManagementError
  + SynchronousDispatch · also SynchronousOnlyOperation

Exceptions raised by handlers are not wrapped: they reach the caller unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
    "EventAlreadyStored",
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
    "MissingTenant",
    "NoHandlerFound",
    "ParameterError",
    "PreconditionError",
    "ProjectionBehind",
    "ProjectionBusy",
    "ProjectionNotFound",
    "ReplayForbidden",
    "StatementTooLarge",
    "StoreWentBack",
    "StreamArchived",
    "StreamNotFound",
    "SynchronousDispatch",
    "TenantSwitch",
    "UnexpectedResult",
    "UnknownEndpoint",
    "UnknownMessage",
    "UnknownSchedule",
    "UnknownTenant",
    "UnsentCommand",
]


class CQRSError(Exception):
    """The base of all errors of this package."""


class InvalidHandler(CQRSError, ImproperlyConfigured):
    """A declaration is broken: the text is that of the system check."""


class DuplicateHandler(InvalidHandler):
    """Two handlers take one command or query, and only one is allowed."""


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


class UnknownSchedule(CQRSError, LookupError):
    """No handler has a schedule of this name."""


class InvalidOption(CQRSError, ValueError):
    """A bus's arguments cannot be combined, or do not apply to this route."""


class InvalidHeader(CQRSError, ValueError):
    """A header's name is reserved, or its value cannot be stored in a channel."""


class FieldError(NamedTuple):
    """The fault of one field of a payload."""

    path: str
    """Its place, dotted: ``lines.0.quantity``; empty for the payload itself."""
    message: str
    """The fault in a sentence, without the value."""
    code: str
    """A short stable word for the kind of mistake, such as ``missing``."""


class MessageConversionError(CQRSError, ValueError):
    """
    A payload, header or answer could not be converted to its type, or to and from JSON.

    Attributes:
        target: the name of the wanted type.
        errors: a :class:`FieldError` for every invalid field, at least one.
        at_entrance: whether the first message of its chain was refused, before any
            handler was called: then the outside input is at fault. For messages sent by
            a handler, and for answers, the code is.
        what: the converted thing: ``payload``, ``header`` (or all ``headers``), or
            ``answer``.

    """

    at_entrance: bool = False
    what: str = "payload"

    def __init__(self, target: str, errors: Sequence[FieldError]) -> None:
        """Take the name of the target type, and all faults of the value."""
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


class MissingTenant(CQRSError, LookupError):
    """A message, or a call, has no tenant, and its handler needs one."""


class UnknownTenant(CQRSError, LookupError):
    """No tenant has this name, or the tenant's database is not in the settings."""


class TenantSwitch(CQRSError):
    """A message of another tenant was sent while one of a tenant is handled."""


class InvalidKey(CQRSError, ValueError):
    """A message lacks the key that its handler or bus needs, or the key is invalid."""


class InvalidEvent(CQRSError, ValueError):
    """
    A recorded event, or a command to be sent after the save, is not a message.

    It has a value that is only known after the save, or it is None or a class.
    """


class UnsentCommand(CQRSError):
    """An object has commands to send, but nothing saves it that would send them."""


class UnexpectedResult(CQRSError, ValueError):
    """A result does not have its annotated type, or cannot be kept for duplicates."""


class AggregateNotFound(CQRSError, ObjectDoesNotExist):
    """
    No object has the identifier, or the message has none.

    Attributes:
        at_entrance: as for :class:`MessageConversionError`.
        is_named: whether the message has an identifier; False if it has none.

    """

    at_entrance: bool = False
    is_named: bool = True


class AggregateAlreadyExists(CQRSError):
    """
    A factory made an object whose identifier, or natural key, is in use.

    Attributes:
        at_entrance: as for :class:`MessageConversionError`.
        identifier: that of the existing object, if it has another one than the new
            object, but the natural key of that.

    """

    at_entrance: bool = False
    identifier: Any = None


class ConcurrencyError(CQRSError):
    """
    Somebody else has changed the object since it was loaded, or seen by the sender.

    Attributes:
        at_entrance: as for :class:`MessageConversionError`.
        is_precondition: whether the sender was a request that named the version in
            ``If-Match``.

    """

    at_entrance: bool = False
    is_precondition: bool = False


class StreamNotFound(CQRSError, ObjectDoesNotExist):
    """The event store has no stream of this name."""


class StreamArchived(CQRSError):
    """An event is to be appended to a stream that is archived."""


class ReplayForbidden(CQRSError):
    """A projection that handles events again does what must not happen twice."""


class EventAlreadyStored(CQRSError):
    """An event has the id of one that is stored in another place."""


class ProjectionNotFound(CQRSError, LookupError):
    """No projection has this name, or it is not set up in this database."""


class ProjectionBusy(CQRSError):
    """A projection is being worked on in a way that allows nothing else."""


class ProjectionBehind(CQRSError, TimeoutError):
    """A projection has not come to a position in time."""


class StoreWentBack(CQRSError):
    """The event store was set back below the position of a projection."""


class PreconditionError(CQRSError, ValueError):
    """
    A request's ``If-Match`` is missing, malformed, or names no version of its object.

    Attributes:
        status: the status of the response: 428, 400 or 412.

    """

    def __init__(self, status: int, detail: str) -> None:
        """Take the status and the text of the response."""
        self.status = status
        super().__init__(detail)


class DocumentNotFound(CQRSError, ObjectDoesNotExist):
    """A collection has no value under this key."""


class DocumentAlreadyExists(CQRSError):
    """A collection already has a value under this key."""


class StatementTooLarge(CQRSError, ValueError):
    """A message or a document is larger than the database's server accepts."""


class InvalidIdentifier(CQRSError, ValueError):
    """
    A value cannot be an identifier: a list, for example, or text for a number.

    Attributes:
        at_entrance: as for :class:`MessageConversionError`.

    """

    at_entrance: bool = False


class MessageStopped(CQRSError):
    """An interceptor stopped a message whose sender was promised a result."""


class BrokenTransaction(CQRSError, TransactionManagementError):
    """A command meets, or leaves, a transaction that can only be rolled back."""


class SynchronousDispatch(CQRSError, SynchronousOnlyOperation):
    """A synchronous bus method was called in a running event loop."""

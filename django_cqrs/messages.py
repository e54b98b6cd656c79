"""Messages and headers, and the message that is being handled."""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import getrandbits
from typing import Any, Final, Generic, Protocol, TypeVar
from uuid import UUID, SafeUUID

from django_cqrs.exceptions import InvalidHeader
from django_cqrs.plain import as_plain, has_surrogate

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

HeaderValue = str | int | float | bool | UUID | Decimal | datetime | enum.Enum | None
"""The possible values of a header. The last four become text on a channel."""

OWN_HEADERS = (
    "message_id",
    "correlation_id",
    "causation_id",
    "timestamp",
    "attempt",
    "is_last_attempt",
)
RESERVED_HEADERS = frozenset(
    {
        "message_id",
        "causation_id",
        "timestamp",
        "attempt",
        "is_last_attempt",
        "content_type",
        "delay",
        "expires",
        "priority",
    }
)
RESERVED_PREFIXES = ("aggregate_", "schedule_", "stored_")
"""The beginnings of headers about an aggregate, a schedule, or a place in the store."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_HEADERS: Mapping[str, HeaderValue] = {}
_NO_AGGREGATE: Mapping[str, Any] = {}


class Command(Generic[R_co]):
    """A base that declares the result: ``class OpenTicket(Command[UUID])``."""

    __slots__ = ()


class Query(Generic[R_co]):
    """A base that declares the result: ``class GetTicket(Query[TicketRow])``."""

    __slots__ = ()


def result_type_of(cls: type) -> Any:
    """Return the R of ``Command[R]`` or ``Query[R]``, ``Any`` if it is not given."""
    found = _result_said_by(cls)
    return Any if isinstance(found, TypeVar) else found


def _result_said_by(cls: type) -> Any:
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        generic = typing.get_origin(base) or base
        arguments = [_evaluated(each, cls) for each in typing.get_args(base)]
        if generic in (Command, Query):
            return arguments[0] if arguments else Any
        said = _result_said_by(generic) if isinstance(generic, type) else Any
        if said is not Any:
            return _with_arguments(said, generic, arguments)
    return Any


def _with_arguments(said: Any, generic: Any, arguments: list[Any]) -> Any:
    """Return the result type of a generic base, its type variables replaced."""
    parameters = getattr(generic, "__parameters__", ())
    arguments = arguments or [Any] * len(parameters)
    if len(arguments) != len(parameters):  # a variadic one
        return Any
    known = dict(zip(parameters, arguments, strict=True))
    if isinstance(said, TypeVar):
        return dict[Any, Any](known).get(said, Any)
    free = getattr(said, "__parameters__", ())
    return said[tuple(known.get(each, Any) for each in free)] if free else said


def _evaluated(annotation: Any, cls: type) -> Any:
    """Return a type argument; one in quotes is evaluated in its class's module."""
    holder = types.SimpleNamespace(__annotations__={"result": annotation})
    try:
        names = vars(sys.modules[cls.__module__])
        return typing.get_type_hints(holder, globalns=names)["result"]
    except (NameError, KeyError):
        return Any


class RetryPolicy(Protocol):
    """A policy for messages whose handling failed."""

    def is_last(self, attempt: int, error: BaseException | None = None) -> bool:
        """
        Return whether no attempt follows one that fails.

        Args:
            attempt: its number, from 1.
            error: the exception with which it failed, if that is known.

        """
        ...


class Handling:
    """
    The state that the layers keep with a message while it is sent and handled.

    It is created when a layer writes to it: most messages need none.
    """

    # Pipeline.
    subject: Any = None
    """The object that its handler is called on; None if one is to be created."""
    is_retried: bool = False
    """Whether a retry is active around it, so that nested messages need none."""
    drops: list[bool] | None = None
    """Filled by :func:`drop`; None if none of the message's keys is remembered."""
    existing: tuple[Exception, Any] | None = None
    """The error of a factory whose object exists, and the identifier of that."""
    output: list[Any] | None = None
    """The values that a factory wants sent, in place of the identifier."""
    ran: Ran | None = None
    """Whether the factory or the action has run."""
    options: Any = None
    """The options that it is sent with, if any."""
    held: list[Any] | None = None
    """The messages for channels, sent after all handlers of the event were called."""
    stored: list[SentMessage] | None = None
    """Filled when it is sent to a channel, if its sender wants a receipt."""
    # Around it.
    note: Any = None
    """The journal's note on it."""
    trace: dict[str, str] | None = None
    """The context of the trace that it is sent in."""

    def passed_on(self) -> Handling:
        """Return the part for a copy of the message, to be sent and handled again."""
        copy = Handling()
        vars(copy).update(vars(self))
        copy.subject = copy.trace = None
        return copy


class SentMessage(typing.NamedTuple):
    """The id and place of a message that was sent to a channel, for its receipt."""

    message_id: UUID
    using: str
    """The alias of the database that it was sent in."""
    is_duplicate: bool = False
    """Whether it was not sent, since an earlier one, whose id this is, has its key."""


_UNHANDLED: Final = Handling()


class Origin:
    """
    The start of a chain of messages: the values that the first one inherits.

    It has those attributes of a message that are read of a cause.
    """

    __slots__ = ("_scope", "_user", "correlation_id", "message_id")

    attempt: Final = 1
    is_last_attempt: Final = True

    def __init__(
        self,
        user: Mapping[str, HeaderValue] = _NO_HEADERS,
        correlation_id: UUID | None = None,
        message_id: UUID | None = None,
        scope: Any = None,
    ) -> None:
        self._user = user
        self.correlation_id: UUID | None = correlation_id
        self.message_id: UUID | None = message_id
        self._scope = scope


_ORIGIN = Origin()

NOBODY = _ORIGIN
"""The current origin if no message is handled, and no headers are inherited."""

current: ContextVar[Message | Origin] = ContextVar("django_cqrs", default=_ORIGIN)
"""The message being handled, or the origin of the next one."""


MILLISECOND: Final = 1_000_000


class Clock:
    """Holds the last sending time, in a slot: a global is slower to set."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0


clock: Final = Clock()


def sending_time() -> int:
    """
    Return the present time in nanoseconds, later than the result of the last call.

    If the clock goes back by more than a millisecond, so does the result.
    """
    now = time.time_ns()
    if now <= clock.last < now + MILLISECOND:
        now = clock.last + 1
    clock.last = now  # what two threads do to it at once, does no harm
    return now


_new: Final[Any] = object.__new__
_beginning = 0, 7 << 22 | 2 << 8
_VERSION_AND_VARIANT: Final = 7 << 22 | 2 << 8


def setter_of(cls: type, name: str) -> Callable[[Any, Any], None]:
    """Return a function that sets an attribute, bypassing a class's `__setattr__`."""
    slot = vars(cls).get(name)
    if isinstance(slot, types.MemberDescriptorType):
        return slot.__set__  # in half the time
    return lambda made, value: object.__setattr__(made, name, value)


_put_int = setter_of(UUID, "int")
_put_is_safe = setter_of(UUID, "is_safe")
_SAFE_UNKNOWN: Final = SafeUUID.unknown


class Message:
    """
    A payload and its headers.

    The identity and the headers are created on access: most messages live for a
    microsecond, and nothing reads them. So is the time, unless the handler runs in a
    transaction or takes more than the payload: then it is the time of the start.
    """

    # Attributes that most messages never have belong to the class: a slot would have to
    # be filled for each message, or raise and catch an error when it is read. But one
    # that is set often is faster if the class has none of that name.
    _aggregate: Mapping[str, Any] = _NO_AGGREGATE
    _aggregate_id: Any = None
    _attempt: int = 0  # that of the message whose handling it is part of
    _correlation_id: UUID | None = None
    _dependencies: Any = None  # not in `handling`: each message with Depends has some
    _handling: Handling = _UNHANDLED
    _retry: RetryPolicy | None = None  # of a message with an attempt of its own
    _scope: Any = None
    _using: str | None = None

    _message_id: UUID | None
    _nanoseconds: int
    _payload: Any
    _parent: Message | Origin
    _user: Mapping[str, HeaderValue]

    def __init__(self, payload: Any = None, parent: Message | Origin = _ORIGIN) -> None:
        """
        Create the message that `parent` causes.

        Args:
            payload: a plain object.
            parent: the message being handled, whose headers are passed on.

        """
        self._payload = payload
        self._parent = parent
        self._user = parent._user
        self._message_id = None

    @property
    def payload(self) -> Any:
        """The object that was sent."""
        return self._payload

    @property
    def message_id(self) -> UUID:
        """
        This message's own id, a UUIDv7 of the time at which it was sent.

        It is higher than the ids of messages that this process has sent before: ids
        sort by their times, to the nanosecond. After the 48 bits of milliseconds come
        20 of the rest of the time, where RFC 9562 (6.2, method 3) allows it, and 54
        random bits.
        """
        global _beginning  # noqa: PLW0603 - each thread takes both of it at once
        known = self._message_id
        if known is not None:
            return known
        # The cause first, so that the times of one chain are in its order.
        self._parent.message_id  # noqa: B018
        nanoseconds = getattr(self, "_nanoseconds", None) or self._time()
        begin, front = _beginning
        rest = nanoseconds - begin
        if not 0 <= rest < MILLISECOND:  # many have that of the last one
            milliseconds, rest = divmod(nanoseconds, MILLISECOND)
            front = milliseconds << 26 | _VERSION_AND_VARIANT
            _beginning = nanoseconds - rest, front
        # The rest has two parts, of 12 and of 8 bits, with the two bits of the variant
        # between them: the first part is worth 4 * 256.
        front += rest + (rest >> 8) * (3 * 256)
        made: UUID = _new(UUID)  # without the checks of the constructor
        _put_int(made, (front << 54) + getrandbits(54))
        _put_is_safe(made, _SAFE_UNKNOWN)
        self._message_id = made
        return made

    @property
    def correlation_id(self) -> UUID:
        """The id shared by all messages that one first message caused."""
        shared = self._correlation_id
        if shared is None:
            shared = self._parent.correlation_id or self.message_id
            self._correlation_id = shared
        return shared

    @property
    def causation_id(self) -> UUID | None:
        """The id of the message whose handling sent this one."""
        return self._parent.message_id

    @property
    def timestamp(self) -> datetime:
        """The time of sending: aware, in UTC, to the microsecond."""
        return EPOCH + timedelta(microseconds=self._time() // 1000)

    def _time(self) -> int:
        taken: int | None = getattr(self, "_nanoseconds", None)
        if taken is None:
            taken = self._nanoseconds = sending_time()
        return taken

    @property
    def attempt(self) -> int:
        """
        The number of this attempt at handling it, from 1.

        A message that is handled inside the handling of another one has its attempt.
        """
        return self._attempt or self._parent.attempt

    @property
    def is_last_attempt(self) -> bool:
        """
        Whether it is given up if this attempt fails, since no other attempt is left.

        False does not promise another one: ``on=`` may end the attempts earlier.
        """
        if not self._attempt:
            return self._parent.is_last_attempt
        return self._retry is not None and self._retry.is_last(self._attempt)

    @property
    def headers(self) -> Headers:
        """The user's headers and the message's own, read-only."""
        return Headers(self)

    @property
    def using(self) -> str | None:
        """The database alias that the sender gave with ``using=``."""
        return self._using

    def replace(
        self, *, payload: Any = ..., headers: Mapping[str, HeaderValue] | None = None
    ) -> Message:
        """
        Return a copy with the same identity and another payload or more headers.

        Raises:
            InvalidHeader: a header is reserved, or has a type that cannot be stored.

        """
        __traceback_hide__ = True
        copy = Message.__new__(Message)
        vars(copy).update(vars(self))
        copy._message_id = self.message_id
        copy._correlation_id = self.correlation_id
        copy._nanoseconds = self._time()
        if payload is not ...:
            copy._payload = payload
        if self._handling is not _UNHANDLED:
            copy._handling = self._handling.passed_on()
        if headers:
            copy._add_headers(headers)
        return copy

    @property
    def handling(self) -> Handling:
        """The layers' state, for writing; see :func:`handling_of`."""
        if self._handling is _UNHANDLED:
            self._handling = Handling()
        return self._handling

    @property
    def aggregate_id(self) -> Any:
        """The identifier that the sender gave with ``aggregate_id=``, or None."""
        return self._aggregate_id

    def _add_headers(self, headers: Mapping[str, HeaderValue]) -> None:
        __traceback_hide__ = True
        if type(headers) is dict and _are_plain(headers):
            user = self._user
            self._user = {**user, **headers} if user else headers.copy()
            return
        own, correlation_id = split_headers(headers)
        if own:
            self._user = {**self._user, **own}
        if correlation_id is not None:
            self._correlation_id = correlation_id

    def __repr__(self) -> str:
        """Return the payload's type and the id: a payload may be secret."""
        return f"<Message {type(self._payload).__name__} {self.message_id}>"


def is_last_after(message: Message | Origin, error: BaseException) -> bool:
    """
    Return whether the policy for a message ends its attempts with a failure.

    Args:
        message: the message, or one that is handled inside its handling.
        error: the exception of the handler.

    """
    while isinstance(message, Message):
        if message._attempt:
            retry = message._retry
            return retry is not None and retry.is_last(message._attempt, error)
        message = message._parent
    return True


def handling_of(message: object) -> Handling:
    """Return the state kept with a message, for reading; empty for other objects."""
    handling: Handling = getattr(message, "_handling", _UNHANDLED)
    return handling


class Ran:
    """Records whether the factory or the action of a message has run."""

    __slots__ = ("name",)

    def __init__(self) -> None:
        """Start with neither."""
        self.name: str = ""


def name_run(message: Message, name: str) -> str:
    """
    Return the name of the endpoint that has run, for logs and errors.

    Args:
        message: the message being handled.
        name: the name of the endpoint that it was sent to, which is returned if that is
            not a pair, or if neither of the two has run.

    """
    ran: Ran | None = handling_of(message).ran
    return (ran is not None and ran.name) or name


def drop(message: Message) -> None:
    """Note that a message was not handled, so that its keys are forgotten."""
    drops = handling_of(message).drops
    if drops is not None:
        drops.append(True)


def scope_of(message: Message | Origin) -> Any:
    """Return the bus scope of a message's handling, or None."""
    while message._scope is None and isinstance(message, Message):
        message = message._parent
    return message._scope


def aggregate_headers_of(message: Message) -> Mapping[str, Any]:
    """Return a message's headers about its aggregate or its schedule."""
    return message._aggregate


class Headers(Mapping[str, Any]):
    """
    All headers of a message: the user's and its own. Read-only.

    An event that an aggregate recorded also has ``aggregate_id``, ``aggregate_type``
    and ``aggregate_version``, and the command of a schedule has ``schedule_name``,
    ``schedule_due_at`` and ``schedule_missed``. An event from a feed has
    ``stored_stream``, ``stored_version`` and ``stored_position``. They are not passed
    on.
    """

    __slots__ = ("_message",)

    def __init__(self, message: Message) -> None:
        """Show the headers of `message`."""
        self._message = message

    def __getitem__(self, name: str) -> Any:
        """Return a header's value, in the type that it was given in."""
        if name in OWN_HEADERS:
            return getattr(self._message, name)
        if name.startswith(RESERVED_PREFIXES):
            return aggregate_headers_of(self._message)[name]
        return self._message._user[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the message's own names, then the user's."""
        yield from OWN_HEADERS
        yield from aggregate_headers_of(self._message)
        yield from self._message._user

    def __len__(self) -> int:
        """Return the number of headers."""
        own = len(OWN_HEADERS) + len(aggregate_headers_of(self._message))
        return own + len(self._message._user)

    def __repr__(self) -> str:
        """Return the names only: values may be secret."""
        return f"<Headers {', '.join(self)}>"


def split_headers(
    headers: Mapping[str, HeaderValue],
) -> tuple[dict[str, HeaderValue], UUID | None]:
    """
    Check a user's headers; return them and the correlation id, if any.

    Raises:
        InvalidHeader: a name is reserved or not a string, or a value's type cannot be
            stored. Nothing was sent.

    """
    __traceback_hide__ = True
    own: dict[str, HeaderValue] = {}
    correlation_id = None
    if isinstance(headers, Headers):  # a handler's: pass on the user's
        return dict(headers._message._user), headers._message.correlation_id
    if not isinstance(headers, Mapping):
        given = type(headers).__qualname__
        msg = f"headers= takes a mapping of names to values, not {given}."
        raise InvalidHeader(msg)
    for name, value in headers.items():
        if not isinstance(name, str):
            msg = f"A header's name must be a string, not {name!r}."
            raise InvalidHeader(msg)
        if has_surrogate(name):
            msg = (
                f"The header {name!r} has an incomplete character (a lone surrogate) "
                "in its name."
            )
            raise InvalidHeader(msg)
        if name in RESERVED_HEADERS or name.startswith(RESERVED_PREFIXES):
            msg = (
                f"The header {name!r} is reserved: every message has its own. Choose "
                "another name; only correlation_id may be given."
            )
            raise InvalidHeader(msg)
        if name == "correlation_id":
            correlation_id = _correlation_id_of(value)
        else:
            own[name] = _travelling(name, value)
            if type(name) is str:
                if len(_known_names) >= MOST_NAMES:  # those in use come back at once
                    _known_names.clear()
                _known_names.add(name)
    return own, correlation_id


_known_names: set[str] = set()
"""Names of headers that are known to be valid. Callers may choose them freely."""

MOST_NAMES: Final = 1000
"""The maximum number of remembered names; a project has few."""

_PLAIN: Final = frozenset((int, bool, type(None), UUID, Decimal, datetime))


def _are_plain(headers: dict[str, Any]) -> bool:
    """Return whether :func:`split_headers` would keep all headers unchanged."""
    for name, value in headers.items():
        if name not in _known_names:
            return False
        kind = type(value)
        if kind not in _PLAIN and not (kind is str and value.isascii()):
            return False
    return True


def _travelling(name: str, value: HeaderValue) -> HeaderValue:
    fault = _fault_in(getattr(value, "value", None) if _is_enum(value) else value)
    if fault is None:
        plain: HeaderValue = as_plain(value)
        return plain
    msg = f"The header {name!r} {fault}"
    raise InvalidHeader(msg)


def _is_enum(value: object) -> bool:
    return isinstance(value, enum.Enum)


def _fault_in(value: object) -> str | None:
    """Return the reason why a header cannot hold a value, on any channel."""
    if isinstance(value, str):
        if has_surrogate(value):
            return (
                "contains an incomplete character (a lone surrogate), which UTF-8 "
                "cannot encode."
            )
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value!r}, which JSON cannot represent."
    value = as_plain(value)
    if value is None or isinstance(value, (int, float, UUID, Decimal, datetime)):
        return None
    return (
        f"has a value of type {type(value).__qualname__}. A header's value must be a "
        "str, int, float, bool, None, UUID, Decimal, datetime or Enum."
    )


def _correlation_id_of(value: object) -> UUID:
    try:
        return value if type(value) is UUID else UUID(str(value))
    except ValueError:
        msg = f"The header 'correlation_id' must be a UUID, not {value!r}."
        raise InvalidHeader(msg) from None


@contextmanager
def inherited_headers(headers: Mapping[str, HeaderValue]) -> Iterator[None]:
    """
    Give these headers to all messages sent inside the block, as for a request.

    Raises:
        InvalidHeader: a header is reserved, or has a type that cannot be stored.

    """
    own, correlation_id = split_headers(headers)
    token = current.set(Origin(own, correlation_id))
    try:
        yield
    finally:
        current.reset(token)


@dataclasses.dataclass(frozen=True, slots=True)
class MessageName:
    """The name that routes and stores a message class."""

    name: str
    version: int = 1
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


NAME_MARK = "__cqrs_message_name__"

declared_messages: list[type] = []
"""The classes decorated with :func:`message`, in the order of decoration."""


def message(
    name: str,
    /,
    *,
    version: int = 1,
    aliases: tuple[str, ...] | list[str] = (),
    tags: tuple[str, ...] | list[str] = (),
) -> Callable[[type[T]], type[T]]:
    """
    Name a message class, for routing and for storage.

    Args:
        name: unique in the project, such as ``"order.placed"``.
        version: the version of the payload's shape, from 1.
        aliases: former names under which messages of this class were stored.
        tags: tags that each event of this class has in the event store.

    Subclasses do not inherit the name.

    """
    if not isinstance(name, str) or not name:
        msg = f'@message takes the name: @message("order.placed"), not {name!r}.'
        raise TypeError(msg)

    def decorate(cls: type[T]) -> type[T]:
        named = MessageName(name, version, tuple(aliases), tuple(tags))
        setattr(cls, NAME_MARK, named)
        declared_messages.append(cls)
        return cls

    return decorate


def message_name_of(cls: type) -> MessageName | None:
    """Return the name given to exactly this class with :func:`message`."""
    return cls.__dict__.get(NAME_MARK)

"""Messages and headers, and which message is being handled here and now."""

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
from typing import Any, Final, Generic, TypeVar
from uuid import UUID, SafeUUID

from django_cqrs.exceptions import InvalidHeader
from django_cqrs.plain import as_plain, has_surrogate

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

HeaderValue = str | int | float | bool | UUID | Decimal | datetime | enum.Enum | None
"""What a header may hold. The last four become text on a channel."""

OWN_HEADERS = ("message_id", "correlation_id", "causation_id", "timestamp")
RESERVED_HEADERS = frozenset(
    {
        "message_id",
        "causation_id",
        "timestamp",
        "content_type",
        "delay",
        "expires",
        "priority",
    }
)
RESERVED_PREFIX = "aggregate_"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_HEADERS: Mapping[str, HeaderValue] = {}
_NO_AGGREGATE: Mapping[str, Any] = {}


class Command(Generic[R_co]):
    """A base that names the result: ``class OpenTicket(Command[UUID])``."""

    __slots__ = ()


class Query(Generic[R_co]):
    """A base that names the result: ``class GetTicket(Query[TicketRow])``."""

    __slots__ = ()


def result_type_of(cls: type) -> Any:
    """Return the R of ``Command[R]`` or ``Query[R]``, ``Any`` where none is said."""
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
    """Return what a generic base says of the result, its type variables replaced."""
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
    """Return a type argument; one in quotes is looked up where its class stands."""
    holder = types.SimpleNamespace(__annotations__={"result": annotation})
    try:
        names = vars(sys.modules[cls.__module__])
        return typing.get_type_hints(holder, globalns=names)["result"]
    except (NameError, KeyError):
        return Any


class Handling:
    """
    What the floors keep with a message while it is sent and handled.

    A message has none until a floor writes into it: most messages need none.
    """

    # Pipeline.
    subject: Any = None
    """The object that its handler is called on; None where one is to be made."""
    is_retried: bool = False
    """Whether a retry stands around it, so that what it sends needs none."""
    drops: list[bool] | None = None
    """Whether each key that it is handled under was met before, the outermost first."""
    output: list[Any] | None = None
    """What a factory says is to be sent on, in place of the identifier."""
    ran: Ran | None = None
    """Which of a factory and an action has run."""
    options: Any = None
    """The options that it is sent with, where there are any."""
    held: list[Any] | None = None
    """What is put into channels once all handlers of the event have been called."""
    # Around it.
    note: Any = None
    """What the journal notes of it."""
    trace: dict[str, str] | None = None
    """The context of the trace that it is sent in."""

    def passed_on(self) -> Handling:
        """Return what a copy of the message has of it: it is sent, and called, anew."""
        copy = Handling()
        vars(copy).update(vars(self))
        copy.subject = copy.trace = None
        return copy


_UNHANDLED: Final = Handling()


class Origin:
    """
    Where a chain of messages begins: what the first one inherits.

    It has the face of a message as far as a message looks at its cause.
    """

    __slots__ = ("_scope", "_user", "correlation_id", "message_id")

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
"""What is current where no message is handled, and no headers are inherited."""

current: ContextVar[Message | Origin] = ContextVar("django_cqrs", default=_ORIGIN)
"""The message being handled, or the origin that the next one begins at."""


_MILLISECOND: Final = 1_000_000
_last = 0


def sending_time() -> int:
    """
    Return the present time in nanoseconds, later than at the call before.

    A clock that goes back by more than a millisecond takes it along.
    """
    global _last  # noqa: PLW0603 - what two threads do to it at once, does no harm
    now = time.time_ns()
    if now <= _last < now + _MILLISECOND:
        now = _last + 1
    _last = now
    return now


def id_of(nanoseconds: int) -> UUID:
    """
    Return a new id, a UUIDv7 of a time: ids sort as their times do, to the nanosecond.

    Behind the 48 bits of milliseconds stand 20 of what is left of the time, where RFC
    9562 (6.2, method 3) has room for it, and 54 that are random.
    """
    global _beginning  # noqa: PLW0603 - each thread takes both of it at once
    begin, front = _beginning
    rest = nanoseconds - begin
    if not 0 <= rest < _MILLISECOND:  # many ids are of the millisecond of the last one
        milliseconds, rest = divmod(nanoseconds, _MILLISECOND)
        front = (milliseconds << 26 | _VERSION_AND_VARIANT) << 54
        _beginning = nanoseconds - rest, front
    # The rest is in two parts, of 12 and of 8 bits, with the variant between them.
    parted = (rest >> 8) * 0x400 + (rest & 0xFF)
    made: UUID = _new(UUID)  # without the checks of what it may be made of
    _put_int(made, front + (parted << 54) + getrandbits(54))
    _put_is_safe(made, _SAFE_UNKNOWN)
    return made


_new: Final[Any] = object.__new__
_beginning = 0, (7 << 22 | 2 << 8) << 54
_VERSION_AND_VARIANT: Final = 7 << 22 | 2 << 8


def setter_of(cls: type, name: str) -> Callable[[Any, Any], None]:
    """Return what sets an attribute past the `__setattr__` of a class."""
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

    The identity and the headers are made when somebody asks for them: most
    messages live a microsecond and nobody does. So is the time, unless the handler
    runs in a transaction or takes more than the payload: then it is that of the
    start.
    """

    # What most messages never have is the class's, not their own: a slot would have to
    # be filled for each of them, or raise and catch an error when it is read.
    _aggregate: Mapping[str, Any] = _NO_AGGREGATE
    _aggregate_id: Any = None
    _correlation_id: UUID | None = None
    _dependencies: Any = None  # not in the handling: each with Depends has some
    _handling: Handling = _UNHANDLED
    _message_id: UUID | None = None
    _scope: Any = None
    _using: str | None = None

    _nanoseconds: int
    _payload: Any
    _parent: Message | Origin
    _user: Mapping[str, HeaderValue]

    def __init__(self, payload: Any = None, parent: Message | Origin = _ORIGIN) -> None:
        """
        Make the message that `parent` causes.

        Args:
            payload: a plain object.
            parent: the message being handled, whose headers are passed on.

        """
        self._payload = payload
        self._parent = parent
        self._user = parent._user

    @property
    def payload(self) -> Any:
        """The object that was sent."""
        return self._payload

    @property
    def message_id(self) -> UUID:
        """
        This message's own id, a UUIDv7 of the time it was sent.

        It is higher than those of the messages that this process has sent before.
        """
        made = self._message_id
        if made is None:
            # The cause first: the times of one chain are then in its order.
            self._parent.message_id  # noqa: B018
            taken = getattr(self, "_nanoseconds", None)
            made = id_of(self._time() if taken is None else taken)
            self._message_id = made
        return made

    @property
    def correlation_id(self) -> UUID:
        """The id shared by all that one first message caused."""
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
        """When it was sent: aware, in UTC, to the microsecond."""
        return EPOCH + timedelta(microseconds=self._time() // 1000)

    def _time(self) -> int:
        taken: int | None = getattr(self, "_nanoseconds", None)
        if taken is None:
            taken = self._nanoseconds = sending_time()
        return taken

    @property
    def headers(self) -> Headers:
        """The user's headers and the message's own, read-only."""
        return Headers(self)

    @property
    def using(self) -> str | None:
        """The database alias that the sender asked for with ``using=``."""
        return self._using

    def replace(
        self, *, payload: Any = ..., headers: Mapping[str, HeaderValue] | None = None
    ) -> Message:
        """
        Return a copy of the same identity with another payload or more headers.

        Raises:
            InvalidHeader: a header is reserved or of a type that cannot travel.

        """
        __traceback_hide__ = True
        copy = Message.__new__(Message)
        # What is made when it is asked for, is the same in both.
        self.message_id, self.correlation_id, self._time()
        vars(copy).update(vars(self))
        if payload is not ...:
            copy._payload = payload
        if self._handling is not _UNHANDLED:
            copy._handling = self._handling.passed_on()
        if headers:
            copy._add_headers(headers)
        return copy

    @property
    def handling(self) -> Handling:
        """What the floors keep with it, to be written to; see :func:`handling_of`."""
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


def handling_of(message: object) -> Handling:
    """Return what is kept with a message, to be read; of another object, nothing."""
    handling: Handling = getattr(message, "_handling", _UNHANDLED)
    return handling


class Ran:
    """Which of two handlers has run, where a message has a factory and an action."""

    __slots__ = ("name",)

    def __init__(self) -> None:
        """Begin before either does."""
        self.name: str = ""


def name_run(message: Message, name: str) -> str:
    """
    Return the name of the endpoint that has run, for logs and errors.

    Args:
        message: that is being handled.
        name: of the endpoint that it was sent to, which is the answer if that is not
            a pair, or if neither of the two has run.

    """
    ran: Ran | None = handling_of(message).ran
    return (ran is not None and ran.name) or name


def drop(message: Message) -> None:
    """Let who remembers messages by a key know that this one was not handled."""
    drops = handling_of(message).drops
    if drops is not None:
        drops.append(True)


def scope_of(message: Message | Origin) -> Any:
    """Return the bus scope that a message is handled in, or None."""
    while message._scope is None and isinstance(message, Message):
        message = message._parent
    return message._scope


def aggregate_headers_of(message: Message) -> Mapping[str, Any]:
    """Return what a recorded event says of the aggregate that recorded it."""
    return message._aggregate


class Headers(Mapping[str, Any]):
    """
    All headers of a message: the user's and its own. Read-only.

    An event that an aggregate recorded has ``aggregate_id``, ``aggregate_type`` and
    ``aggregate_version`` as well. They are not passed on.
    """

    __slots__ = ("_message",)

    def __init__(self, message: Message) -> None:
        """Show the headers of `message`."""
        self._message = message

    def __getitem__(self, name: str) -> Any:
        """Return a header's value, of the type it was given."""
        if name in OWN_HEADERS:
            return getattr(self._message, name)
        if name.startswith(RESERVED_PREFIX):
            return aggregate_headers_of(self._message)[name]
        return self._message._user[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the message's own names, then the user's."""
        yield from OWN_HEADERS
        yield from aggregate_headers_of(self._message)
        yield from self._message._user

    def __len__(self) -> int:
        """Count them."""
        own = len(OWN_HEADERS) + len(aggregate_headers_of(self._message))
        return own + len(self._message._user)

    def __repr__(self) -> str:
        """Return the names: values may be secret."""
        return f"<Headers {', '.join(self)}>"


def split_headers(
    headers: Mapping[str, HeaderValue],
) -> tuple[dict[str, HeaderValue], UUID | None]:
    """
    Check headers that a user gives; return them and the correlation id, if any.

    Raises:
        InvalidHeader: a name is reserved or no string, or a value's type cannot
            travel. Nothing was sent.

    """
    __traceback_hide__ = True
    own: dict[str, HeaderValue] = {}
    correlation_id = None
    if isinstance(headers, Headers):  # what a handler got: its user's go on
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
        if name in RESERVED_HEADERS or name.startswith(RESERVED_PREFIX):
            msg = (
                f"The header {name!r} is reserved: every message has its own. Choose "
                "another name; only correlation_id may be given."
            )
            raise InvalidHeader(msg)
        if name == "correlation_id":
            correlation_id = _correlation_id_of(value)
        else:
            own[name] = _travelling(name, value)
            if len(_known_names) < MOST_NAMES and type(name) is str:
                _known_names.add(name)
    return own, correlation_id


_known_names: set[str] = set()
"""Names of headers that have been found right. Callers may choose them freely."""

MOST_NAMES: Final = 1000
"""So many of them are remembered; a project has few."""

_PLAIN: Final = frozenset((int, bool, type(None), UUID, Decimal, datetime))


def _are_plain(headers: dict[str, Any]) -> bool:
    """Return whether :func:`split_headers` is known to change and refuse nothing."""
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
    """Say what keeps a value from travelling in a header, whichever way it goes."""
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
    Give all messages sent inside the block these headers, as a request does.

    Raises:
        InvalidHeader: a header is reserved or of a type that cannot travel.

    """
    own, correlation_id = split_headers(headers)
    token = current.set(Origin(own, correlation_id))
    try:
        yield
    finally:
        current.reset(token)


@dataclasses.dataclass(frozen=True, slots=True)
class MessageName:
    """The name by which a message class is routed and stored."""

    name: str
    version: int = 1
    aliases: tuple[str, ...] = ()


NAME_MARK = "__cqrs_message_name__"

declared_messages: list[type] = []
"""The classes decorated with :func:`message`, in the order of their decoration."""


def message(
    name: str, /, *, version: int = 1, aliases: tuple[str, ...] | list[str] = ()
) -> Callable[[type[T]], type[T]]:
    """
    Name a message class, for routing and for the wire.

    Args:
        name: unique in the project, such as ``"order.placed"``.
        version: the version of the payload's shape, from 1.
        aliases: names under which messages of this class were stored before.

    A subclass does not inherit the name.

    """
    if not isinstance(name, str) or not name:
        msg = f'@message takes the name: @message("order.placed"), not {name!r}.'
        raise TypeError(msg)

    def decorate(cls: type[T]) -> type[T]:
        setattr(cls, NAME_MARK, MessageName(name, version, tuple(aliases)))
        declared_messages.append(cls)
        return cls

    return decorate


def message_name_of(cls: type) -> MessageName | None:
    """Return the name given to exactly this class with :func:`message`."""
    return cls.__dict__.get(NAME_MARK)

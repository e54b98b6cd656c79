"""Commands that an object sends after it was saved: ``Send``."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import partial, reduce
from operator import or_
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final, final

from django_cqrs.annotations import name_of_type, union_members
from django_cqrs.channels.channel import Due, ensure_time
from django_cqrs.exceptions import InvalidEvent, InvalidOption
from django_cqrs.messages import Headers, HeaderValue, split_headers

LATE: Final = frozenset({FunctionType, MethodType, BuiltinFunctionType, partial})
"""The types of functions that return a message: they are called after the save."""


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """
    A command to be sent after the save, with the options of its dispatch.

    A method of an aggregate or a saga returns it, alone or in a list or tuple with
    others. ``RecordsEvents.send()`` takes the same arguments.

    Args:
        command: the command, or a function without arguments that returns it after the
            save; with `route`, any value or none.
        route: a routing key, if the command's class does not decide.
        aggregate_id: the identifier of the aggregate that handles it.
        headers: as for ``command_bus.dispatch``.
        delay: for a handler on a channel, in seconds, a timedelta, or a datetime.
        expires: likewise.
        priority: likewise; higher first.

    Raises:
        InvalidOption: the command is missing or a class, or an option is invalid.
        InvalidHeader: a header is reserved or cannot be stored.

    """

    command: Any = None
    _: dataclasses.KW_ONLY
    route: str | None = None
    aggregate_id: Any = None
    headers: Mapping[str, HeaderValue] | None = None
    delay: Due | None = None
    expires: Due | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        """Check the arguments where they are written, not where they are used."""
        if self.route is None and (self.command is None or _is_class(self.command)):
            raise InvalidOption(_not_an_object("Send", "a command", self.command))
        if type(self.command) is Send:
            msg = "A Send is already complete: return it, or send its command."
            raise InvalidOption(msg)
        if self.route is not None and not isinstance(self.route, str):
            msg = f"route= must be a routing key (a string), not {self.route!r}."
            raise InvalidOption(msg)
        for name in ("delay", "expires"):
            value = getattr(self, name)
            if value is not None:
                ensure_time(value, name)
        priority: Any = self.priority
        if priority is not None and type(priority) is not int:
            msg = f"priority= takes a whole number, not {priority!r}."
            raise InvalidOption(msg)
        if self.headers is not None:
            split_headers(self.headers)
            if not isinstance(self.headers, Headers):  # those are read-only
                object.__setattr__(self, "headers", dict(self.headers))

    def made(self) -> Send:
        """Return itself, with the command that its function returns."""
        if type(self.command) not in LATE:
            return self
        return dataclasses.replace(self, command=made_by(self.command))


def send_on(commands: Any, sent: Any, *keys: str) -> None:
    """
    Dispatch a returned value, or a `Send`.

    Args:
        commands: the command bus.
        sent: a payload for all keys; a `Send`, which may have a route of its own.
        *keys: the routing keys; none if its class or its own route decides.

    """
    if type(sent) is not Send:
        payload = made_by(sent) if type(sent) in LATE else sent
        for key in keys:
            commands.dispatch(payload, route=key)
        return
    send = sent.made()
    routes: tuple[str | None, ...] = keys or (None,)
    if send.route is not None:
        routes = (send.route,)
    for route in routes:
        commands.dispatch(
            send.command,
            route=route,
            aggregate_id=send.aggregate_id,
            headers=send.headers,
            delay=send.delay,
            expires=send.expires,
            priority=send.priority,
        )


def made_by(function: Any) -> Any:
    """
    Return the message that a function returns, after the save.

    Raises:
        InvalidEvent: it does not return an object.

    """
    made = function()
    if made is None or _is_class(made) or type(made) in LATE or type(made) is Send:
        name = getattr(function, "__qualname__", repr(function))
        raise InvalidEvent(_not_an_object(f"{name}, called after the save,", "", made))
    return made


def ensure_object(event: Any) -> None:
    """
    Refuse to record what cannot be an event: None, a class, a `Send`.

    Raises:
        InvalidEvent: it is one of them.

    """
    if event is None or _is_class(event):
        raise InvalidEvent(_not_an_object("record()", "an event", event))
    if type(event) is Send:
        msg = "record() takes an event. Send a command with send(...)."
        raise InvalidEvent(msg)


def _is_class(value: object) -> bool:
    return isinstance(value, type)


def _not_an_object(who: str, wanted: str, given: Any) -> str:
    if not wanted:
        said = given.__qualname__ if _is_class(given) else repr(given)
        return f"{who} must return a message, not {said}."
    if _is_class(given):
        name = given.__qualname__
        return f"{who} takes an instance, {name}(...), not the class {name}."
    return f"{who} takes {wanted}, not {given!r}."


# ------------------------------------------------------------------- returned values

MAY_SEND: Final = frozenset({Send, list, tuple})
"""The types of returned values that are, or may contain, a `Send`."""


def split_sends(value: Any, *, says_send: bool) -> tuple[Any, list[Send]] | None:
    """
    Divide a returned value into the result and the messages to be sent.

    Args:
        value: a `Send`, a list or a tuple: its type is in :data:`MAY_SEND`.
        says_send: whether the annotation of the method mentions `Send`, so that an
            empty list stands for no messages.

    Returns:
        The result, None without one, and the messages. None if there are no messages:
        then the value itself is the result.

    Raises:
        InvalidEvent: there is more than one other value.

    """
    if type(value) is Send:
        return None, [value]
    sends: list[Send] = []
    others: list[Any] = []
    is_split = says_send and not value
    for each in value:
        kind = type(each)
        if kind is Send:
            sends.append(each)
        elif _are_sends(each) or (says_send and kind in (list, tuple) and not each):
            sends += each
            is_split = True
        else:
            others.append(each)
    if not sends and not is_split:
        return None
    if len(others) > 1:
        msg = (
            f"A handler returned a Send together with {len(others)} other values. "
            "Return one result beside the Sends, or none."
        )
        raise InvalidEvent(msg)
    return (others[0] if others else None), sends


def _are_sends(value: Any) -> bool:
    return (
        type(value) in (list, tuple)
        and bool(value)
        and all(type(each) is Send for each in value)
    )


def says_send(annotation: Any) -> bool:
    """Return whether an annotation mentions `Send`."""
    return annotation is Send or any(map(says_send, typing.get_args(annotation)))


def without_sends(annotation: Any) -> Any:
    """Return the annotation of the result of a method that may also return `Send`."""
    if not says_send(annotation):
        return annotation
    if typing.get_origin(annotation) is tuple:
        others = [each for each in typing.get_args(annotation) if not says_send(each)]
        others = [each for each in others if each is not ...]
        return others[0] if len(others) == 1 else type(None)
    members = union_members(annotation)
    if len(members) == 1:
        return type(None)
    found = dict.fromkeys(without_sends(each) for each in members)
    return reduce(or_, found)


def said_of_command(sent: Send) -> str:
    """Return the name of a command in errors."""
    if sent.route is not None:
        return repr(sent.route)
    if type(sent.command) in LATE:
        return "a command of a function"
    return name_of_type(type(sent.command))

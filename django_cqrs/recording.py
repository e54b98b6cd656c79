"""Check what an object records: known values, and commands that are sent."""

from __future__ import annotations

import datetime as dt
import decimal
import typing
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from django.db.models import Model
from django.db.models.signals import pre_save

from django_cqrs.annotations import (
    field_names,
    name_of_type,
    union_members,
    usual_name,
)
from django_cqrs.exceptions import InvalidEvent, UnsentCommand
from django_cqrs.messages import Message, Origin, current, handling_of
from django_cqrs.pipeline.scopes import BusScope
from django_cqrs.sends import LATE, Send, said_of_command


class _LateValue(NamedTuple):
    """A part of an event whose value is only known after the save."""

    path: str
    value: Any


def ensure_known(
    instance: Any,
    event: Any,
    names: Collection[str] | None = None,
    *,
    is_command: bool = False,
) -> None:
    """
    Refuse a message with a value that only the database provides, at the save.

    These are a key that the database creates, which is None until then, and
    expressions: ``F("total") + 1``, a ``DatabaseDefault``.

    Args:
        instance: the object that records it.
        event: the recorded event, or a command as a `Send`. A function is accepted: it
            is called after the save.
        names: the names of the object's identifier in messages, if the database is to
            provide it; empty if it is known, None to ask the model.
        is_command: whether the message is sent as a command, as a `Send` always is.

    Raises:
        InvalidEvent: there are such values; its text names their places and the fix.

    """
    payload = event
    if type(event) is Send:
        is_command, payload = True, event.command
    if type(payload) in LATE:
        return
    if names is None:
        names = _names_of_unknown_key(instance)
    found = next(_unknown(payload, names), None)
    if found is None:
        return
    said, owner = name_of_type(type(payload)), name_of_type(type(instance))
    verb, noun = ("sent", "command") if is_command else ("recorded", "event")
    if found.value is None:
        its = "" if is_command else ": its header aggregate_id has it"
        msg = (
            f"{said} cannot be {verb}: {found.path} is None, because the database "
            f"makes the key of the {owner} when it saves it. Give a function that is "
            f"called after the save, lambda: {said}(...). Or leave the key out of the "
            f"{noun}{its}. Or give the key a default in Python, such as uuid.uuid4."
        )
    else:
        where = f"{found.path} is" if found.path else "it is"
        msg = (
            f"{said} cannot be {verb}: {where} an expression "
            f"({name_of_type(type(found.value))}), which only the database computes, "
            f"when it saves the {owner}. Compute the value in Python, or leave it out "
            f"of the {noun} and let its handlers read the {owner}."
        )
    raise InvalidEvent(msg)


# ------------------------------------------------------------- commands that are sent

RECORDED: Final = "_recorded_events"
"""The attribute with the events that an object has recorded."""

RECORDED_COMMANDS: Final = "_recorded_commands"
"""The attribute with the commands that an object sends after its save."""


RecordingApplier = Callable[[Any, Any], Any]
"""Applies an event to the object that records it; returns the event to record."""

recording_appliers: list[RecordingApplier] = []
"""The functions of installed apps that apply recorded events at once."""


def apply_recorded_with(apply: RecordingApplier) -> None:
    """Let an app apply events when they are recorded, before they are kept."""
    if apply not in recording_appliers:
        recording_appliers.append(apply)


def expect_collection(instance: Any) -> None:
    """
    Make sure that the commands of an object are sent, or that an error is raised.

    Its own handler sends them, and so does a repository. Any other handler fails at its
    end. Outside handlers, a model's ``save()`` fails.
    """
    message = current.get()
    if not isinstance(message, Message):
        if isinstance(instance, Model):
            cls = type(instance)
            pre_save.connect(_refuse_unsent, sender=cls, dispatch_uid=(_UID, cls))
        return
    if handling_of(message).subject is instance:
        return
    scope = _scope_of_handler(message)
    if scope is not None and scope.is_open:
        scope.check_at_end(partial(_ensure_sent, instance))


_UID: Final = "django_cqrs.recording"


def _scope_of_handler(message: Message) -> BusScope | None:
    """Return the scope of the nearest handler with a transaction of its own."""
    around: Message | Origin = message
    while isinstance(around, Message):
        if around._scope is not None:
            scope: BusScope = around._scope
            return scope
        around = around._parent
    return None


def _refuse_unsent(instance: Any, **_kwargs: Any) -> None:
    if not isinstance(current.get(), Message):
        _ensure_sent(instance)


def _ensure_sent(instance: Any) -> None:
    unsent = getattr(instance, RECORDED_COMMANDS, ())
    if unsent:
        owner = name_of_type(type(instance))
        names = ", ".join(map(said_of_command, unsent))
        msg = (
            f"The {owner} has commands that nothing sends: {names}. They are sent "
            f"if a handler of the {owner} calls send(), if a factory returns the "
            f"object, or if Repository[{owner}] saves it. Use one of these, or "
            "command_bus.dispatch(). pull_recorded_commands() discards them."
        )
        raise UnsentCommand(msg)


def _names_of_unknown_key(instance: Any) -> tuple[str, ...]:
    """Return the names of a model's key in messages, none if the object has a key."""
    if not isinstance(instance, Model):
        return ()
    pk = instance.pk
    is_known = None not in pk if isinstance(pk, tuple) else pk is not None
    if is_known or not instance._state.adding:
        return ()
    fields = getattr(instance._meta, "pk_fields", None) or (instance._meta.pk,)
    own = {name for each in fields for name in (each.name, each.attname)}
    return (usual_name(type(instance)), *own)


def _unknown(
    value: Any, names: Collection[str], path: str = ""
) -> Iterator[_LateValue]:
    kind = type(value)
    if kind in _KNOWN:
        return
    # Ask the class, which does not evaluate a lazy object.
    if hasattr(kind, "resolve_expression"):
        yield _LateValue(path, value)
    elif kind in (list, tuple, set, frozenset):
        for place, each in enumerate(value):
            yield from _unknown(each, names, f"{path}.{place}" if path else str(place))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _unknown(each, names, f"{path}.{key}" if path else str(key))
    else:
        fields = field_names(kind) or ()
        for name in fields:
            each = getattr(value, name, _NOTHING)
            inside = f"{path}.{name}" if path else name
            if each is not None:
                yield from _unknown(each, names, inside)
            elif names and (name in names or name in _required(kind)):
                yield _LateValue(inside, None)


_NOTHING: Final = object()

_KNOWN: Final = frozenset(
    {
        *(bool, int, float, complex, str, bytes, type(None), object),
        *(dt.date, dt.time, dt.datetime, dt.timedelta),
        *(decimal.Decimal, uuid.UUID),
    }
)

_required_names: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def _required(cls: type) -> frozenset[str]:
    """Return the fields of a class whose annotations do not allow None."""
    found = _required_names.get(cls)
    if found is None:
        try:
            hints = typing.get_type_hints(cls)
        except Exception:  # noqa: BLE001 - an annotation may run any code
            hints = {}
        found = _required_names[cls] = frozenset(
            name for name, hint in hints.items() if _refuses_none(hint)
        )
    return found


def _refuses_none(hint: Any) -> bool:
    members = union_members(hint)
    return all(isinstance(each, type) and each not in _OPEN for each in members)


# The types that include None.
_OPEN: Final = (object, type(None))

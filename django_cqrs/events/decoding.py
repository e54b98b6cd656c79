"""Stored JSON as events: renamed classes, older shapes, and events that are dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from django_cqrs.annotations import path_of
from django_cqrs.conversion.adapters import Adapter, adapter_of
from django_cqrs.conversion.schemas import REFUSALS
from django_cqrs.conversion.stored import MessageTypes, restore_unset
from django_cqrs.conversion.upcasting import has_upcasters, upcast
from django_cqrs.exceptions import FieldError, MessageConversionError, UnknownMessage
from django_cqrs.messages import MessageName
from django_cqrs.pipeline.envelopes import AGGREGATE_ID, TRACE, UNSET

TAGS: Final = "django_cqrs.tags"
"""The stored header with the tags of an event, if it has any."""

OWN: Final = frozenset({AGGREGATE_ID, TAGS, TRACE, UNSET})
"""The stored headers that are not shown as such."""

UNREADABLE: Final = (*REFUSALS, RecursionError)
"""The exceptions of a reader, beside those of this package."""

_UNSET: Final = f'"{UNSET}"'


class Reading(NamedTuple):
    """The way from the JSON of one name and shape to an event."""

    cls: type
    adapter: Adapter
    read: Callable[[str], Any]
    """The reader, for JSON that needs no upcaster; it raises pydantic's errors."""
    names: tuple[str, ...]
    """All names of the class, first the one that was stored."""
    shape: int
    wanted: int
    is_older: bool
    """Whether upcasters apply, so that :func:`Decoder.event` is to be used."""


class Decoder:
    """Reads the events of one table of message types."""

    def __init__(self, types: MessageTypes) -> None:
        """Take the registered classes."""
        self.types = types
        self._readings: dict[tuple[str, int], Reading] = {}

    def reading(self, name: str, shape: int) -> Reading:
        """
        Return the way to read the JSON of a name and a shape.

        Raises:
            UnknownMessage: no registered class has the name, or only an older one.

        """
        found = self._readings.get((name, shape))
        if found is None:
            found = self._readings[name, shape] = self._make(name, shape)
        return found

    def _make(self, name: str, shape: int) -> Reading:
        cls = self.types.class_of(name)
        own: MessageName = self.types.name_of(cls)
        if not 1 <= shape <= own.version:
            why = (
                "this process runs older code" if shape > 0 else "there is none below 1"
            )
            msg = (
                f"{name!r} was stored in version {shape}, but {path_of(cls)} has "
                f"version {own.version} here: {why}."
            )
            raise UnknownMessage(msg)
        names = tuple(dict.fromkeys((name, own.name, *own.aliases)))
        adapter = adapter_of(cls)
        return Reading(
            cls,
            adapter,
            adapter.stored_reader,
            names,
            shape,
            own.version,
            has_upcasters(names, shape, own.version),
        )

    def event(self, name: str, shape: int, payload: str, headers: str) -> Any:
        """
        Return an event.

        Args:
            name: the name that it was stored under.
            shape: the version of its payload.
            payload: the stored JSON.
            headers: the stored headers, as JSON.

        Returns:
            The object; None if an upcaster drops it.

        Raises:
            UnknownMessage: no registered class has its name, or only an older one.
            MessageConversionError: the JSON does not fit its class.

        """
        __traceback_hide__ = True
        reading = self.reading(name, shape)
        text = payload
        if reading.is_older:
            upcasted = self._upcast(reading, payload, headers)
            if upcasted is None:
                return None
            text = json.dumps(upcasted)
        try:
            event = reading.read(text)
        except MessageConversionError:
            raise
        except UNREADABLE as error:
            raise reading.adapter.explain(error, text) from error
        if _UNSET in headers:
            _restore_unset(event, headers)
        return event

    def payload(self, name: str, shape: int, payload: str, headers: str) -> Any:
        """
        Return the JSON of an event in its present shape.

        Returns:
            The JSON, as it was stored where no class has the name; None if an upcaster
            drops the event.

        Raises:
            MessageConversionError: an upcaster refuses it, or it is not JSON.

        """
        __traceback_hide__ = True
        try:
            reading = self.reading(name, shape)
        except UnknownMessage:
            return json_in(payload, name)
        if reading.is_older:
            return self._upcast(reading, payload, headers)
        return json_in(payload, name)

    @staticmethod
    def _upcast(reading: Reading, payload: str, headers: str) -> Any:
        return upcast(
            json_in(payload, reading.names[0]),
            reading.names,
            reading.shape,
            reading.wanted,
            user_headers(headers_in(headers)),
        )


def _restore_unset(event: Any, headers: str) -> None:
    """
    Restore the unset fields of models.

    Raises:
        MessageConversionError: the header about them was edited.

    """
    try:
        restore_unset(event, headers_in(headers).get(UNSET, []))
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, MessageConversionError):
            raise
        faults = [FieldError(UNSET, "it does not name fields", "headers")]
        told = MessageConversionError("a list", faults)
        told.what = "headers"
        raise told from error


_decoders: WeakKeyDictionary[MessageTypes, Decoder] = WeakKeyDictionary()


def decoder_of(types: MessageTypes) -> Decoder:
    """Return the decoder of a table of message types."""
    found = _decoders.get(types)
    if found is None:
        found = _decoders[types] = Decoder(types)
    return found


def json_in(text: str, target: str) -> Any:
    """
    Return the content of JSON text.

    Raises:
        MessageConversionError: it is not JSON.

    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        faults = [FieldError("", f"it is not valid JSON ({error})", "json_invalid")]
        raise MessageConversionError(target, faults) from error


def headers_in(text: str) -> dict[str, Any]:
    """
    Return all headers of a stored event, this package's own too.

    Raises:
        MessageConversionError: the text is not a JSON object.

    """
    if text == "{}":  # the usual case
        return {}
    headers = json_in(text, "a dict")
    if not isinstance(headers, dict):
        faults = [FieldError("", "the stored value is not a JSON object", "headers")]
        error = MessageConversionError("a dict", faults)
        error.what = "headers"
        raise error
    return headers


def user_headers(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers that handlers see: the user's, and those about the object."""
    if OWN.isdisjoint(headers):
        return headers
    return {name: value for name, value in headers.items() if name not in OWN}

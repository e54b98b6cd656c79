"""Messages as envelopes, and envelopes as messages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from django_cqrs.annotations import is_value_type
from django_cqrs.channels.channel import Envelope
from django_cqrs.conversion.adapters import adapter_of, to_jsonable
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.conversion.stored import MessageTypes, Unset, restore_unset, unset_in
from django_cqrs.exceptions import FieldError, InvalidHeader, MessageConversionError
from django_cqrs.given_up import MessageGaveUp
from django_cqrs.messages import (
    EPOCH,
    RESERVED_PREFIXES,
    HeaderValue,
    Message,
    Origin,
    aggregate_headers_of,
    handling_of,
)
from django_cqrs.routing.endpoint import Endpoint

TRACE = "django_cqrs.trace"
"""The header of an envelope with the context of a trace, an object of text."""

AGGREGATE_ID = "django_cqrs.aggregate_id"
"""The header with the identifier that the sender gave."""

UNSET = "django_cqrs.unset"
"""The header with the unset fields of pydantic models, by their paths."""


def headers_of(message: Message) -> dict[str, Any]:
    """Return the headers of a message for its envelope."""
    __traceback_hide__ = True
    headers = {**message._user, **aggregate_headers_of(message)}
    trace = handling_of(message).trace
    if trace:
        headers[TRACE] = trace
    if message.aggregate_id is not None:
        headers[AGGREGATE_ID] = message.aggregate_id
    return headers


def encode(
    endpoint: Endpoint, types: MessageTypes, payload: Any
) -> tuple[str, int, bytes]:
    """
    Return a payload's name, version and JSON text. A plain value has no name.

    Raises:
        UnknownMessage: its class is not registered.
        MessageConversionError: it could not be restored unchanged.

    """
    __traceback_hide__ = True
    if is_value_type(type(payload)):
        wanted = endpoint.plan.payload or PayloadType(Any)
        return "", 0, wanted.to_json(payload)
    if isinstance(payload, MessageGaveUp):
        payload = stored_form(types, payload)
    name, text = types.encode(payload)
    return name.name, name.version, text


def stored_form(types: MessageTypes, event: MessageGaveUp) -> MessageGaveUp:
    """Return the event with its payload as JSON, for a channel."""
    payload, name, version = event.payload, event.name, event.version
    if is_value_type(type(payload)):
        plain = to_jsonable(payload)
    else:
        own, text = types.encode(payload)
        plain, name, version = json.loads(text), own.name, own.version
    return dataclasses.replace(event, payload=plain, name=name, version=version)


def unset_of(endpoint: Endpoint, payload: Any) -> Unset:
    """Return the unset fields of a payload, if its restoration needs them."""
    __traceback_hide__ = True
    if is_value_type(type(payload)):
        wanted = endpoint.plan.payload or PayloadType(Any)
        return wanted.unset_in(payload)
    return unset_in(adapter_of(type(payload)), payload)


def decode(endpoint: Endpoint, types: MessageTypes, envelope: Envelope) -> Any:
    """
    Return the payload of an envelope, in the type of the endpoint's handler.

    Raises:
        UnknownMessage: no registered class has its name.
        MessageConversionError: the text does not fit its class.

    """
    __traceback_hide__ = True
    wanted = endpoint.plan.payload or PayloadType(Any)
    if not envelope.name:
        payload = wanted.from_stored_json(envelope.payload)
        _restore_unset(payload, envelope)
        return payload
    payload = types.decode(envelope.name, envelope.payload, envelope.version)
    _restore_unset(payload, envelope)
    return wanted.from_python(payload)


def _restore_unset(payload: Any, envelope: Envelope) -> None:
    __traceback_hide__ = True
    if _UNSET in envelope.headers:
        restore_unset(payload, decode_headers(envelope.headers).get(UNSET, []))


_UNSET = UNSET.encode()


_NO_HEADERS = b"{}"


def encode_headers(headers: Mapping[str, HeaderValue]) -> bytes:
    """
    Return the user's headers as a JSON object.

    Raises:
        InvalidHeader: a value has no JSON form, such as an Enum.

    """
    __traceback_hide__ = True
    if not headers:  # the usual case
        return _NO_HEADERS
    try:
        return json.dumps(to_jsonable(headers), allow_nan=False).encode()
    except ValueError as error:
        msg = f"A header has no JSON form, but a channel needs one. {error}"
        raise InvalidHeader(msg) from error


def decode_headers(text: bytes) -> dict[str, Any]:
    """
    Return the user's headers, in JSON's types.

    Raises:
        MessageConversionError: the text is not a JSON object.

    """
    __traceback_hide__ = True
    if text == _NO_HEADERS:  # the usual case
        return {}
    try:
        headers = json.loads(text)
    except (ValueError, RecursionError):
        headers = None
    if not isinstance(headers, dict):
        fault = FieldError("", "the stored value is not a JSON object", "headers")
        error = MessageConversionError("a dict", [fault])
        error.what = "headers"
        raise error
    return headers


def message_of(envelope: Envelope, payload: Any, scope: Any = None) -> Message:
    """
    Return the message that was sent, with its identity and headers.

    Args:
        envelope: the envelope, as stored.
        payload: the payload read from it.
        scope: the bus scope that surrounds its handling, if any.

    Raises:
        MessageConversionError: its headers cannot be read.

    """
    __traceback_hide__ = True
    headers = decode_headers(envelope.headers)
    origin = Origin(headers, envelope.correlation_id, envelope.causation_id, scope)
    message = Message(payload, origin)
    message._message_id = envelope.message_id
    message._nanoseconds = (envelope.timestamp - EPOCH) // _MICROSECOND * 1000
    if headers:
        _take_own(headers, message)
    return message


def _take_own(headers: dict[str, Any], message: Message) -> None:
    """Move the headers that this library has added from the user's to a message."""
    for name in ("attempt", "is_last_attempt"):  # stored when they were not reserved
        headers.pop(name, None)
    trace = headers.pop(TRACE) if isinstance(headers.get(TRACE), dict) else None
    aggregate_id = headers.pop(AGGREGATE_ID, None)
    headers.pop(UNSET, None)
    own = {
        name: headers.pop(name)
        for name in list(headers)
        if name.startswith(RESERVED_PREFIXES)
    }
    if trace:
        message.handling.trace = trace
    if aggregate_id is not None:
        message._aggregate_id = aggregate_id
    if own:
        message._aggregate = own


_MICROSECOND: Final = timedelta(microseconds=1)

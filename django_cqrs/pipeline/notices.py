"""Messages about messages: the event that one is given up, from and to storage."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final
from uuid import UUID

from django_cqrs.annotations import is_value_type
from django_cqrs.channels.channel import Envelope, next_sequence
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.exceptions import CQRSError, MessageConversionError
from django_cqrs.given_up import MessageGaveUp
from django_cqrs.messages import (
    EPOCH,
    RESERVED_PREFIXES,
    HeaderValue,
    Message,
    Origin,
)
from django_cqrs.pipeline.envelopes import (
    AGGREGATE_ID,
    TRACE,
    UNSET,
    decode,
    decode_headers,
    encode,
    encode_headers,
    headers_of,
)
from django_cqrs.pipeline.tenancy import tenant_in
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.routing.table import RouteTable

GAVE_UP: Final = "django_cqrs.gave_up"
"""The header with the endpoints whose messages were given up earlier in a chain."""


def user_headers_of(envelope: Envelope) -> dict[str, Any]:
    """Return the headers of a stored message; none if they cannot be read."""
    try:
        headers = decode_headers(envelope.headers)
    except MessageConversionError:
        return {}
    aggregate_id = headers.pop(AGGREGATE_ID, None)
    for name in (TRACE, UNSET):
        headers.pop(name, None)
    if aggregate_id is not None:
        headers.setdefault("aggregate_id", aggregate_id)
    return headers


def is_about_notice(envelope: Envelope, types: MessageTypes) -> bool:
    """Return whether a stored message is itself the event about another one."""
    try:
        return issubclass(types.class_of(envelope.name), MessageGaveUp)
    except CQRSError:
        return False


def read_payload(table: RouteTable, envelope: Envelope) -> tuple[Any, str, int]:
    """
    Return the payload of a stored message, and the name and version of its class.

    Whatever cannot be read stays as it is stored: as JSON, or as text.
    """
    types = table.types
    try:
        try:
            payload = decode(table.endpoint_named(envelope.endpoint), types, envelope)
        except CQRSError:
            if not envelope.name:
                raise
            payload = types.decode(envelope.name, envelope.payload, envelope.version)
        if is_value_type(type(payload)):
            return payload, envelope.name, envelope.version
        own = types.name_of(type(payload))
    except Exception:  # noqa: BLE001 - of somebody's converter or upcaster
        return _stored_value(envelope.payload), envelope.name, envelope.version
    return payload, own.name, own.version


def _stored_value(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.decode(errors="backslashreplace")


def restored_form(table: RouteTable, event: MessageGaveUp) -> MessageGaveUp:
    """Return an event from a channel with its payload as the object that it was."""
    envelope = Envelope(
        endpoint=event.endpoint,
        name=event.name,
        version=event.version,
        payload=json.dumps(event.payload).encode(),
        headers=b"{}",
        message_id=_NOBODY,
        correlation_id=_NOBODY,
        causation_id=None,
        timestamp=EPOCH,
        sequence=0,
    )
    payload, name, version = read_payload(table, envelope)
    return dataclasses.replace(event, payload=payload, name=name, version=version)


def message_about(envelope: Envelope, event: MessageGaveUp) -> Message:
    """
    Return the message that tells of another one: caused by it, with its headers.

    Args:
        envelope: the message that was given up.
        event: the event about it.

    """
    user: dict[str, HeaderValue] = {
        name: value
        for name, value in user_headers_of(envelope).items()
        if not name.startswith(RESERVED_PREFIXES)
    }
    user[GAVE_UP] = ",".join([*earlier_in(envelope), envelope.endpoint])
    origin = Origin(user, envelope.correlation_id, envelope.message_id)
    return Message(event, origin)


def earlier_in(envelope: Envelope) -> list[str]:
    """Return the endpoints whose messages were given up earlier in a chain."""
    given = user_headers_of(envelope).get(GAVE_UP)
    return given.split(",") if isinstance(given, str) else []


def envelope_for(endpoint: Endpoint, types: MessageTypes, message: Message) -> Envelope:
    """Return a message as it would be stored for an endpoint without a channel."""
    name, version, text = encode(endpoint, types, message.payload)
    subject = ""
    if endpoint.subject is not None:
        try:
            subject = endpoint.subject.address(endpoint, type(message.payload))(message)
        except Exception:  # noqa: BLE001 - of somebody's identifier=
            subject = ""
    return Envelope(
        endpoint=endpoint.name,
        name=name,
        version=version,
        payload=text,
        headers=encode_headers(headers_of(message)),
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        causation_id=message.causation_id,
        timestamp=message.timestamp,
        sequence=next_sequence(),
        subject=subject,
        tenant=tenant_in(message._user),
    )


_NOBODY: Final = UUID(int=0)

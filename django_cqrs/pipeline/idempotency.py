"""The idempotency stage: later messages with the same key are duplicates."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Union

from django.db import connections

from django_cqrs.annotations import is_plain_class
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import Delivery, Envelope, next_sequence
from django_cqrs.conversion.payloads import PayloadType
from django_cqrs.conversion.stored import restore_unset
from django_cqrs.declaration.key_sources import (
    KeyReader,
    KeySource,
    as_key,
    faults_of,
    key_reader,
)
from django_cqrs.declaration.marks import Header
from django_cqrs.exceptions import (
    InvalidHandler,
    InvalidOption,
    MessageConversionError,
    UnexpectedResult,
)
from django_cqrs.inbox import Inbox, find_inbox, no_inbox
from django_cqrs.messages import (
    Message,
    SentMessage,
    handling_of,
    result_type_of,
    scope_of,
)
from django_cqrs.pipeline.scopes import Recording, Sent, send
from django_cqrs.pipeline.tenancy import tenancy
from django_cqrs.routing.endpoint import Endpoint, JoinPoint, Run
from django_cqrs.sends import without_sends

logger: Final = logging.getLogger("django_cqrs.pipeline")


def idempotency_key_of(endpoint: Endpoint) -> KeySource | None:
    """Return the key source of an endpoint, or of the action beside it."""
    source: KeySource | None = endpoint.policies.idempotency_key
    return source


def once(run: Run, point: JoinPoint, alias: str, *, answers: bool) -> Run:
    """
    Limit `run` to the first message of each key of an endpoint.

    Args:
        run: the inner run, in the transaction in which the key is entered.
        point: the join point.
        alias: the database of that transaction.
        answers: whether a sender waits for the result of `run`, so that it is kept for
            duplicates.

    """
    endpoint = point.endpoint
    source = idempotency_key_of(endpoint)
    if source is None:
        return run
    return _once(
        run,
        alias,
        endpoint,
        inbox=inbox_for(endpoint.place),
        read=_of_tenant(key_reader(source, "idempotency_key", endpoint.name)),
        owners=_owners(endpoint),
        answer=Answer(point) if answers else None,
        outputs=None,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class BusKey:
    """A bus's key for duplicates, and its handling of them."""

    source: KeySource
    replays: bool | Header = False
    """Whether the messages of the first one are sent again; a header may decide."""

    def __post_init__(self) -> None:
        """
        Refuse an invalid key of a bus.

        Raises:
            InvalidOption: it is invalid, or no two messages would share it.

        """
        faults = list(faults_of(self.source, ()))
        if self.source == Header("message_id"):
            faults.append("Each message that is sent has a different one.")
        if faults:
            msg = f"CommandBus(idempotency_key={self.source!r}): {' '.join(faults)}"
            raise InvalidOption(msg)
        if not isinstance(self.replays, (bool, Header)):
            msg = f"replay_outputs= is True, False or a Header, not {self.replays!r}."
            raise InvalidOption(msg)

    def __str__(self) -> str:
        """Return the owner of the key."""
        return f"A CommandBus keyed by {self.source!r}"

    @property
    def space(self) -> str:
        """The prefix that separates its keys from those of other sources."""
        if isinstance(self.source, Header):
            return f"bus:header:{self.source.name}"
        if isinstance(self.source, str):
            return f"bus:attribute:{self.source}"
        return "bus"


def once_on_bus(
    run: Run, point: JoinPoint, alias: str, key: BusKey, *, answers: bool
) -> Run:
    """
    Limit `run` to the first message of each key that a bus sends to an endpoint.

    Args:
        run: the inner run, in the transaction in which the key is entered.
        point: the join point.
        alias: the database of that transaction.
        key: the bus's key.
        answers: whether `run` returns the handler's result.

    Raises:
        InvalidOption: no installed app remembers keys.

    """
    endpoint = point.endpoint
    inbox = find_inbox()
    if inbox is None:
        raise InvalidOption(str(no_inbox(str(key))))
    outputs = None
    if key.replays is not False:
        outputs = Outputs(key.replays, point.bus.registry.deliver)
    return _once(
        run,
        alias,
        endpoint,
        inbox=inbox,
        read=_of_tenant(
            key_reader(key.source, "idempotency_key", f"the bus to {endpoint.name}")
        ),
        owners=_owners(endpoint, f"{key.space}:"),
        answer=Answer(point) if answers else None,
        outputs=outputs,
    )


def _once(
    run: Run,
    alias: str,
    endpoint: Endpoint,
    *,
    inbox: Inbox,
    read: KeyReader,
    owners: tuple[str, tuple[str, ...]],
    answer: Answer | None,
    outputs: Outputs | None,
) -> Run:
    owner, former = owners

    def run_once(message: Message) -> Any:
        __traceback_hide__ = True
        key = read(message)
        if key is None:
            return run(message)
        seen = inbox.enter(alias, owner, key, message.message_id, former=former)
        if seen is not None:
            log_duplicate(message, endpoint)
            stored = handling_of(message).stored
            if stored is not None:
                stored.append(SentMessage(seen.message_id, alias, is_duplicate=True))
            if outputs is not None:
                outputs.send_again(seen.outputs, message)
            return None if answer is None else answer.read(seen.result)
        recording = None if outputs is None else Recording(scope_of(message))
        handling = message.handling
        around: list[bool] = [] if handling.drops is None else handling.drops
        drops: list[bool] = []  # of this attempt
        handling.drops = drops
        result = run(message)
        if drops:  # it was not handled, so a later one is not a duplicate
            around += drops
            inbox.forget(alias, owner, key)
            return result
        kept = None if answer is None else answer.write(result)
        sent = None
        if outputs is not None and recording is not None:
            sent = outputs.write(recording.sent())
        if kept is not None or sent is not None:
            inbox.keep(alias, owner, key, result=kept, outputs=sent)
        return result

    return run_once


def _of_tenant(read: KeyReader) -> KeyReader:
    """Return a reader of keys that no two tenants share; the given one without any."""
    policy = tenancy()
    return read if policy is None else policy.keyed(read)


def inbox_for(whose: str) -> Inbox:
    """
    Return the inbox that remembers keys.

    Raises:
        InvalidHandler: no installed app provides an inbox.

    """
    inbox = find_inbox()
    if inbox is None:
        raise InvalidHandler(str(no_inbox(whose)))
    return inbox


def _owners(endpoint: Endpoint, space: str = "") -> tuple[str, tuple[str, ...]]:
    """Return the present and former names that own an endpoint's keys."""
    owner, *former = (as_key(f"{space}{name}") for name in endpoint.names)
    return owner, tuple(former)


def log_duplicate(message: Message, endpoint: Endpoint) -> None:
    """Log that a duplicate is not handled."""
    logger.info(
        "Message for %s is a duplicate and was not handled",
        endpoint.name,
        extra={
            "cqrs_message_id": str(message.message_id),
            "cqrs_correlation_id": str(message.correlation_id),
            "cqrs_endpoint": endpoint.name,
        },
    )


class Answer:
    """Converts the result of a dispatch to JSON text and back."""

    def __init__(self, point: JoinPoint) -> None:
        """Use the type that the command declares, or else its handler's."""
        self._place = point.endpoint.place
        self._type = PayloadType(_result_type_at(point))

    def write(self, result: Any) -> bytes | None:
        """
        Return a result in stored form.

        Raises:
            UnexpectedResult: it could not be restored unchanged.

        """
        if result is None:
            return None
        try:
            text = self._type.to_json(result)
        except MessageConversionError as error:
            msg = (
                f"{self._place} returned a value that cannot be stored for duplicates "
                f"of the message: {error} Annotate its return with a type that can be "
                "created from JSON, or return None."
            )
            raise UnexpectedResult(msg) from error
        unset = self._type.unset_in(result)
        if not unset:
            return text
        return b"%b%b%b%b}" % (_UNSET, json.dumps(unset).encode(), _VALUE, text)

    def read(self, text: bytes | None) -> Any:
        """Return a stored result."""
        if text is None:
            return None
        if not text.startswith(_UNSET):
            return self._type.from_stored_json(text)
        whole = text.decode()
        unset, end = json.JSONDecoder().raw_decode(whole, len(_UNSET))
        value = whole[end + len(_VALUE) : -1].encode()
        result = self._type.from_stored_json(value)
        restore_unset(result, unset)
        return result


# Around a result with models: their unset fields.
_UNSET: Final = b'{"django_cqrs.unset":'
_VALUE: Final = b',"value":'


def _result_type_at(point: JoinPoint) -> Any:
    cls = point.payload_type
    if cls is not None and is_plain_class(cls):
        promised = result_type_of(cls)
        if promised is not Any:
            return promised
    both = (point.endpoint, point.endpoint.action)
    types = tuple(_returned_by(each) for each in both if each is not None)
    return Union[types]  # noqa: UP007 - of as many as there are


def _returned_by(endpoint: Endpoint) -> Any:
    if endpoint.subject is not None:
        return endpoint.subject.result_of(endpoint)
    return without_sends(endpoint.plan.returns)


# ----------------------------------------------------------------- replayed messages


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """A message that was sent to a channel, as kept for duplicates."""

    using: str
    channel: str
    envelope: Envelope


class Outputs:
    """The messages that the handling of one has sent: kept as JSON, and sent again."""

    def __init__(self, on: bool | Header, deliver: Callable[..., None]) -> None:
        """
        Take the handling of messages, for channels that do it in this process.

        Args:
            on: True, or a header without which a duplicate sends nothing.
            deliver: handles a message, ``using=`` the database that it was sent in.

        """
        self._header = on.name if isinstance(on, Header) else None
        self._deliver = deliver
        self._type = PayloadType(list[Output])

    def write(self, sent: Sequence[Sent]) -> bytes | None:
        """Return messages in stored form, in the order of sending."""
        outputs = [
            Output(each.alias, each.sink.alias, each.entry.envelope)
            for each in sent
            if isinstance(each.entry, Delivery)  # not an entry of the journal
        ]
        outputs.sort(key=lambda output: output.envelope.sequence)
        return self._type.to_json(outputs) if outputs else None

    def send_again(self, text: bytes | None, message: Message) -> None:
        """
        Send kept messages again: the same ones, by ids, headers and times.

        Args:
            text: the kept messages, if any.
            message: the duplicate, in whose transaction they are sent.

        Raises:
            InvalidChannel: one of their channels no longer exists.

        """
        if text is None or not self._is_wanted(message):
            return
        scope = scope_of(message)
        outputs: list[Output] = self._type.from_stored_json(text)
        for output in outputs:
            envelope = dataclasses.replace(output.envelope, sequence=next_sequence())
            delivery = Delivery(envelope, partial(self._deliver, using=output.using))
            send(scope, connections[output.using], channels[output.channel], delivery)
        logger.info(
            "%d messages of the first command with its key are sent again", len(outputs)
        )

    def _is_wanted(self, message: Message) -> bool:
        return self._header is None or bool(message._user.get(self._header))
